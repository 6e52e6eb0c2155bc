"""Rows into tokens: nothing is lost in silence; and what is measured equals a plain computation."""

import json

import pytest
import torch

from studio.backend import adapters, loading, measuring
from studio.backend.data import (
    choose_prompts,
    eval_rows,
    load_rows,
    prepare,
    row_lengths,
    spread,
    to_dataset,
)
from studio.backend.failures import error_record, is_out_of_memory, remedies, translate
from studio.core.config_io import build_config
from studio.core.errors import (
    DatasetError,
    DeviceError,
    ModelError,
    OutOfMemoryError,
    StoreError,
    TargetModulesError,
)
from tests.backend.tiny import make_rows, make_tokenizer, save_model, write_dataset

PLAIN = {"model": {"dtype": "float32", "attn_implementation": "sdpa"},
         "runtime": {"device": "cpu", "num_threads": 1}}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_in_the_trainer():
    loading.quiet_libraries()


def config(**train):
    return build_config({**PLAIN, "lora": {"r": 4, "lora_alpha": 8}, "train": train})


def test_rows_are_split_without_overlap_and_all_are_counted():
    tokenizer = make_tokenizer("marked")
    data = prepare(tokenizer, make_rows(50), config(max_length=64))
    assert len(data.train) == data.counts["train"] == 45
    assert len(data.held_out) == 5
    assert data.counts["left_out"] == data.counts["truncated"] == 0
    assert sorted([*data.train.rows, *data.held_out.rows]) == list(range(50))
    assert data.notes == []


def test_rows_that_the_template_refuses_are_counted_with_the_reason():
    template = "{{- raise_exception('only one turn') if messages|length > 2 else 'x' }}" + (
        "{%- for m in messages %}{{- m['content'] }}{%- endfor %}"
    )
    rows = make_rows(10)
    rows[0]["messages"] = rows[0]["messages"] * 2
    data = prepare(make_tokenizer(template), rows, config(max_length=64))
    assert data.counts["left_out"] == 1
    assert "only one turn" in data.notes[0]


def test_no_usable_row_is_an_error_with_the_way_out():
    rows = make_rows(10)
    for row in rows:
        row["messages"][0]["content"] = "red " * 50
    with pytest.raises(DatasetError, match="raise train.max_length"):
        prepare(make_tokenizer("marked"), rows, config(max_length=16))


def test_missing_damaged_and_empty_data_are_told(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        load_rows(tmp_path)
    (tmp_path / "data.jsonl").write_text("{not json\n")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_rows(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="empty"):
        load_rows(tmp_path)
    write_dataset(tmp_path / "good", make_rows(3))
    assert list(load_rows(tmp_path / "good")) == make_rows(3)


def test_prompts_are_spaced_different_and_end_with_the_question():
    rows = make_rows(30)
    prompts = choose_prompts(rows)
    assert [p.index for p in prompts] == [0, 1, 2]
    assert [p.shown for p in prompts] == [rows[i]["messages"][0]["content"] for i in (5, 15, 25)]
    assert all(p.messages[-1]["role"] == "user" for p in prompts)
    assert len(choose_prompts([rows[0]] * 5)) == 1
    assert choose_prompts([]) == []
    system = {"messages": [{"role": "system", "content": "s"}, *rows[0]["messages"]]}
    assert choose_prompts([system])[0].messages[0]["role"] == "system"


@pytest.mark.parametrize("limit", [1, 3, 100, 1000])
def test_spread_is_even_and_in_order(limit):
    picked = spread(range(100), limit)
    assert len(picked) == min(limit, 100)
    assert picked == sorted(set(picked))
    gaps = [b - a for a, b in zip(picked, [*picked[1:], 100], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_short_runs_are_measured_on_fewer_rows_unless_asked():
    short = config(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert eval_rows(short, 30) == 16
    assert eval_rows(short, 60) == 19
    assert eval_rows(short, 10_000) == 128
    assert eval_rows(config(eval_max_rows=100), 1) == 100


def test_packing_keeps_every_token_and_its_label():
    rows = prepare(make_tokenizer("marked"), make_rows(40), config(max_length=64)).train
    packed = to_dataset(rows, pack_to=64)
    assert len(packed) < len(rows)
    assert sum(sum(row["seq_lengths"]) for row in packed) == sum(len(r.input_ids) for r in rows)
    assert row_lengths(packed) == [len(row["input_ids"]) for row in packed]
    learned = sum(label != -100 for row in packed for label in row["labels"])
    assert learned == sum(sum(label != -100 for label in r.labels) for r in rows)


def test_mean_loss_is_the_mean_over_tokens_however_batched(model_folder):
    from trl.trainer.utils import add_fused_lm_head

    model = loading.load_model(model_folder, config())
    rows = prepare(make_tokenizer("marked"), make_rows(12), config(max_length=64)).train
    total = count = 0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].double()
        labels = torch.tensor(row.labels[1:])
        picked = labels != -100
        total -= logits.log_softmax(-1)[picked, labels[picked]].sum().item()
        count += int(picked.sum())
    add_fused_lm_head(model)
    for batch_size in (1, 4, 100):
        loss = measuring.mean_loss(model, rows, batch_size=batch_size, pad_token_id=3)
        assert loss == pytest.approx(total / count, abs=1e-5)


def test_batched_answers_equal_single_ones_and_the_sampling_config_is_not_used(model_folder):
    tokenizer = make_tokenizer("marked")
    model = loading.load_model(model_folder, config())
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    before = model.generation_config
    prompts = choose_prompts(make_rows(9))
    together = measuring.greedy_answers(model, tokenizer, prompts)
    alone = [measuring.greedy_answers(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert [a.text for a in together] == [a.text for a in alone]
    assert model.generation_config is before
    assert all(answer.truncated and answer.tokens == 8 for answer in together)


def test_the_head_is_given_rows_side_by_side(model_folder):
    """A slice would be multiplied as a batch, with a copy of the head for each prompt."""
    tokenizer = make_tokenizer("marked")
    model = loading.load_model(model_folder, config())
    head, seen = model.get_output_embeddings(), []
    project = head.forward
    head.forward = lambda rows: seen.append(rows.is_contiguous()) or project(rows)
    measuring.greedy_answers(model, tokenizer, choose_prompts(make_rows(9)))
    assert seen and all(seen)
    assert not head._forward_pre_hooks


def test_answers_to_long_prompts_fit_the_context(model_folder):
    tokenizer = make_tokenizer("marked")
    model = loading.load_model(model_folder, config())
    [row] = make_rows(1)
    row["messages"][0]["content"] = "red " * 500
    [answer] = measuring.greedy_answers(model, tokenizer, choose_prompts([row]))
    assert answer.tokens == 8


def test_measuring_leaves_mode_and_random_numbers(model_folder):
    model = loading.load_model(model_folder, config()).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with measuring.undisturbed(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)
    assert model.training


@pytest.mark.parametrize("wrong", [["query_key_value"], ["q_proj", "nope"], ["lm_head"]])
def test_unmatched_target_module_names_the_real_ones(model_folder, wrong):
    model = loading.load_model(model_folder, config())
    lora = build_config({"lora": {"target_modules": wrong}}).lora
    with pytest.raises(TargetModulesError, match="q_proj") as error:
        adapters.attach(model, lora, seed=0)
    assert wrong[-1] in str(error.value)
    assert "gate_proj" in str(error.value)


def test_adapter_starts_from_the_seed_in_fp32_and_changes_nothing(model_folder):
    first, second = (
        adapters.attach(loading.load_model(model_folder, config()), config().lora, seed=5)
        for _ in range(2)
    )
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad or a.dtype == torch.float32, name
    ids = torch.arange(9)[None]
    with torch.no_grad(), first.disable_adapter():
        off = first(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, off)


def test_models_that_cannot_be_loaded_are_told(tmp_path, model_folder):
    with pytest.raises(ModelError, match="no safetensors"):
        loading.load_model(tmp_path, config())
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        loading.load_model(tmp_path, config())
    model = loading.load_model(model_folder, config())
    tokenizer = make_tokenizer("marked")
    loading.check_vocabulary(model, tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelError, match="more tokens than the model"):
        loading.check_vocabulary(model, tokenizer)


@pytest.mark.parametrize("eos", ["<|im_end|>", None])
def test_padding_token_comes_from_the_vocabulary(eos):
    tokenizer = make_tokenizer("marked", pad=False, eos_token=eos)
    size = len(tokenizer)
    assert loading.ensure_pad_token(tokenizer) is not None
    assert tokenizer.pad_token_id is not None
    assert len(tokenizer) == size
    assert loading.ensure_pad_token(tokenizer) is None


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_device_that_is_gone_is_told(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="sees no"):
        loading.check_device(device)
    loading.check_device("cpu")


def test_model_fingerprint_changes_with_weights_and_template(tmp_path, model_folder):
    first = loading.model_fingerprint(model_folder)
    other = save_model(tmp_path / "other", "chatml")
    assert loading.model_fingerprint(model_folder) == first
    assert loading.model_fingerprint(other) != first


RESOLVED = build_config({**PLAIN, "train": {"per_device_train_batch_size": 8}})


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), OutOfMemoryError, "in an evaluation"),
        (MemoryError(), OutOfMemoryError, "per_device_train_batch_size=4"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "computer"),
        (OSError(28, "No space left on device", "/x/y"), StoreError, "No space left"),
        (RuntimeError("CUDA error: an illegal memory access"), DeviceError, "GPU reported"),
        (ValueError("strange"), Exception, "ValueError: strange"),
        (ModelError("known"), ModelError, "known"),
    ],
)
def test_foreign_errors_become_sentences(error, kind, words):
    ours = translate(error, "eval", RESOLVED)
    assert isinstance(ours, kind)
    assert words in str(ours)
    record = error_record(ours, "eval")
    assert record["phase"] == "eval"
    json.dumps(record)
    assert is_out_of_memory(error) is (kind is OutOfMemoryError)


def test_out_of_memory_names_three_knobs_that_are_not_turned_yet():
    assert len(remedies(RESOLVED)[:3]) == 3
    small = build_config({
        **PLAIN, "quantization": {"load_in_4bit": True}, "lora": {"r": 4},
        "train": {"per_device_train_batch_size": 1, "activation_checkpointing": True,
                  "max_length": 128},
    })  # fmt: skip
    assert remedies(small)[0] == "choose a smaller model"
    assert len(remedies(small)) == 3
    assert len(remedies(None)) == 3
