"""The plan: no auto is left, every choice has a reason, impossible wishes are refused."""

import math

import pytest

from studio.core.config import RunConfig
from studio.core.config_io import build_config, dump_config
from studio.core.errors import ConfigError, DatasetError, DeviceError
from studio.core.plan import MAX_EVALUATIONS, evaluation_interval, resolve

CPU = {"cuda": False, "mps": False, "bnb": True, "bf16": True, "cores": 2,
       "reasons": {"cuda": "No NVIDIA GPU found: training runs on the CPU"}}  # fmt: skip
GPU = {"cuda": True, "mps": False, "bnb": True, "bf16": True, "cores": 16, "reasons": {},
       "gpus": [{"name": "A", "used_bytes": 9, "total_bytes": 10},
                {"name": "B", "used_bytes": 1, "total_bytes": 10}]}  # fmt: skip
STARTER = {"params": 6_000_000, "context_length": 512}
LARGE = {"params": 8_000_000_000, "context_length": 40_960}


def plan(values=None, machine=CPU, rows=100, held_out=10, model=STARTER):
    return resolve(build_config(values or {}), machine, rows, held_out, model)


def autos(config: RunConfig) -> list[str]:
    return [
        f"{section}.{key}"
        for section, values in dump_config(config).items()
        for key, value in values.items()
        if value == "auto" and f"{section}.{key}" != "data.format"
    ]


@pytest.mark.parametrize(
    ("machine", "four_bit"),
    [(CPU, False), (CPU, True), (GPU, False), (GPU, True), ({**CPU, "mps": True}, False)],
)
def test_resolve_leaves_no_auto_and_gives_a_reason_for_each(machine, four_bit):
    before = build_config({"quantization": {"load_in_4bit": four_bit}})
    plan = resolve(before, machine, 100, 10, LARGE)
    assert autos(plan.config) == []
    for path in autos(before):
        assert len(plan.reasons[path]) > 5, path


def test_resolve_keeps_what_was_asked():
    asked = {
        "model": {"dtype": "float32", "attn_implementation": "eager"},
        "train": {"optim": "sgd", "eval_steps": 7, "save_steps": 9, "max_length": 64,
                  "activation_checkpointing": True},
        "runtime": {"device": "cpu", "num_threads": 3},
    }  # fmt: skip
    result = plan(asked)
    for section, values in asked.items():
        for key, value in values.items():
            assert getattr(getattr(result.config, section), key) == value
            assert f"{section}.{key}" not in result.reasons


def test_device_is_the_gpu_with_most_free_memory():
    assert plan(machine=GPU).config.runtime.device == "cuda:1"
    assert plan({"runtime": {"device": "cuda"}}, GPU).config.runtime.device == "cuda:0"


@pytest.mark.parametrize(
    ("machine", "model", "dtype"),
    [
        (CPU, STARTER, "float32"),
        (CPU, LARGE, "bfloat16"),
        ({**CPU, "bf16": False}, LARGE, "float32"),
        (GPU, STARTER, "bfloat16"),
        ({**GPU, "bf16": False}, LARGE, "float16"),
    ],
)
def test_dtype_follows_device_and_size(machine, model, dtype):
    result = plan(machine=machine, model=model)
    assert result.config.model.dtype == dtype
    assert result.config.quantization.bnb_4bit_compute_dtype == dtype


@pytest.mark.parametrize(
    ("values", "machine", "error"),
    [
        ({"runtime": {"device": "cuda"}}, CPU, DeviceError),
        ({"runtime": {"device": "mps"}}, CPU, DeviceError),
        ({"train": {"optim": "paged_adamw_8bit"}}, CPU, ConfigError),
        ({"quantization": {"load_in_4bit": True}}, {**CPU, "bnb": False}, DeviceError),
        ({"quantization": {"load_in_4bit": True}}, {**CPU, "mps": True}, DeviceError),
        ({"model": {"dtype": "bfloat16"}}, {**GPU, "bf16": False}, DeviceError),
        ({"model": {"dtype": "float16"}}, CPU, DeviceError),
    ],
)
def test_what_the_machine_cannot_do_is_refused(values, machine, error):
    with pytest.raises(error):
        plan(values, machine)


def test_paged_optimizer_is_kept_with_cuda():
    result = plan({"train": {"optim": "paged_adamw_8bit"}}, GPU)
    assert result.config.train.optim == "paged_adamw_8bit"


def test_no_rows_is_refused():
    with pytest.raises(DatasetError, match="no row to train on"):
        plan(rows=0)


@pytest.mark.parametrize("rows", [1, 7, 100, 1001])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("epochs", [0.5, 1, 3])
def test_steps_are_counted_by_hand(rows, batch, accumulation, epochs):
    result = plan(
        {"train": {"per_device_train_batch_size": batch, "num_train_epochs": epochs,
                   "gradient_accumulation_steps": accumulation}},
        rows=rows,
    )  # fmt: skip
    batches = len(range(0, rows, batch))
    steps = len(range(0, batches, accumulation))
    assert result.steps_per_epoch == steps
    assert result.total_steps == math.ceil(steps * epochs)
    assert not result.estimated


def test_max_steps_wins_and_packing_is_an_estimate():
    assert plan({"train": {"max_steps": 30}}).total_steps == 30
    packed = plan({"train": {"packing": True, "max_length": 500}}, rows=100,
                  model={**STARTER, "mean_tokens": 50})  # fmt: skip
    assert packed.estimated
    assert packed.steps_per_epoch == math.ceil(math.ceil(100 * 50 / 500) / 4 / 4)


@pytest.mark.parametrize("total", [1, 2, 10, 11, 30, 60, 99, 1000, 12345])
def test_at_most_twelve_evaluations(total):
    every = evaluation_interval(total)
    steps = {0, total, *range(every, total + 1, every)}
    assert len(steps) <= MAX_EVALUATIONS


def test_without_held_out_rows_nothing_is_evaluated_and_it_is_said():
    result = plan(held_out=0, values={"train": {"max_steps": 50}})
    assert result.config.train.eval_steps == 50
    assert result.config.train.save_steps < 50
    assert any("held out" in text for text in result.warnings)


def test_max_length_is_cut_to_the_model_with_a_reason():
    result = plan({"train": {"max_length": 1024}})
    assert result.config.train.max_length == 512
    assert "512" in result.reasons["train.max_length"]
    assert "1024" in result.reasons["train.max_length"]


def test_threads_are_taken_from_the_machine():
    machine = {**CPU, "threads": 1, "threads_reason": "a busy machine"}
    result = plan(machine=machine)
    assert result.config.runtime.num_threads == 1
    assert result.reasons["runtime.num_threads"] == "a busy machine"


def test_warnings_name_what_looks_wrong():
    long = plan({"train": {"max_steps": 1000}}, rows=10)
    assert any("by heart" in text for text in long.warnings)
    warm = plan({"train": {"max_steps": 20, "warmup_steps": 30}})
    assert any("Warm-up" in text for text in warm.warnings)
    assert plan().warnings == []
