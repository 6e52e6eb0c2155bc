"""The out-of-memory doctor on run folders as a trainer leaves them: no torch, no child."""

from __future__ import annotations

import dataclasses
import json

import pytest

from studio import cli_memory
from studio.core.config_io import build_config
from studio.core.errors import BusyError, ConfigError
from studio.core.fit_memory import LENGTHS
from studio.core.out_of_memory import MemoryFault, OtherProgram, size_text
from studio.core.runs import read_json
from studio.hardware.platforms import write_json
from studio.services.memory import DataFacts
from studio.services.memory_doctor import (
    MemoryDoctor,
    advice_line,
    facts_of,
    sentence_of,
    to_dict,
)
from studio.services.runs import create_run
from studio.services.supervisor import Supervisor
from tests.fakes.parts import build_parts
from tests.services.fake_counter import FakeCounter, FakeMachine
from tests.services.test_memory import service
from tests.services.test_warm_start import put

GIB = 2**30
TRAIN = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_length": 1024,
         "activation_checkpointing": False, "optim": "adamw_torch_fused",
         "num_train_epochs": 3.0}  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    found = build_parts(tmp_path / "workspace")
    return dataclasses.replace(found, machine=FakeMachine(20 * GIB))


@pytest.fixture
def memory(parts):
    found = service(parts.workspace, FakeCounter())
    found._shapes._key = lambda model_id: "k"  # the fake model of `parts` has no config.json
    found._shapes._models.inspect_path = lambda model_id: parts.workspace
    return found


@pytest.fixture
def doctor(parts, memory):
    return MemoryDoctor(parts, memory, Supervisor(parts))


def config(**train):
    return build_config({"data": {"path": "tiny.jsonl"}, "runtime": {"device": "cuda:0"},
                         "train": {**TRAIN, **train}})  # fmt: skip


def ended(parts, fault, *, state="failed", steps=(), total=90, **train):
    """A run that ran out of memory, with checkpoints at some steps."""
    paths = create_run(parts, config(**train))
    for step in steps:
        put(paths.checkpoints / f"step-{step}", step, r=16)
    write_json(paths.process_json, {"attempt": 1})
    write_json(paths.state_json, {"state": "running", "step": fault.step, "total_steps": total,
                                  "attempt": 1, "longest_tokens": 900,
                                  "rows_over": {str(n): 1100 - n for n in LENGTHS}})  # fmt: skip
    error = {"type": "OutOfMemoryError", "text": "x", "what": "x", "memory": fault.to_dict()}
    if state == "failed":
        end = {"state": "failed", "attempt": 1, "steps": fault.step, "error": error}
        write_json(paths.exit_json, end)
    else:
        write_json(paths.root / "vanished.json", {"attempt": 1, **error})
    return paths


def fault_of(memory, *, free=0.9, **more):
    """A card that had a share of what the estimate says."""
    high = memory.estimate("starter", config()).estimate.high
    budget = int(free * high)
    return MemoryFault(
        "gpu", "first_step", **{"asked_bytes": 2 * GIB, "free_bytes": GIB, "total_bytes": 24 * GIB,
                                "used_bytes": budget - GIB, "budget_bytes": budget, **more},
    )  # fmt: skip


def test_options_are_held_against_what_the_run_could_have_had(parts, memory, doctor):
    fault = fault_of(memory)
    found = doctor.diagnose(ended(parts, fault).id)
    assert found.sentence.startswith("The card ran out of memory in the first step: 2 GiB was")
    assert found.options and found.budget_bytes == fault.budget_bytes
    assert all(option.needs_bytes <= fault.budget_bytes for option in found.options)
    assert found.options[0].title == "checkpointing"
    assert found.begins.startswith("It starts over")
    assert "What would fit: checkpointing (saves" in advice_line(found)
    told = json.loads(json.dumps(to_dict(found)))
    assert told["options"][0]["changes"][0]["speed"] == "about a third slower"
    shorter = [c for o in found.options for c in o.changes if c.values.get("train.max_length")]
    # 512 tokens are all that the model reads.
    assert [c.lost_rows for c in shorter] == [512 - c.values["train.max_length"] for c in shorter]
    assert shorter


def test_an_estimate_that_promised_too_much_is_raised(parts, memory, doctor):
    """It said that the run fits; the run knows better, so one notch less is not enough."""
    fault = fault_of(memory, free=1.1)
    fault = dataclasses.replace(fault, used_bytes=fault.budget_bytes, asked_bytes=6 * GIB)
    found = doctor.diagnose(ended(parts, fault).id)
    assert found.predicted_bytes < fault.budget_bytes  # it had promised
    assert found.needed_bytes == fault.budget_bytes + 6 * GIB
    least = [option.saved_bytes for option in found.options]
    assert least and min(least) >= 6 * GIB


def test_retry_begins_with_the_last_checkpoint_and_trains_what_is_left(parts, memory, doctor):
    fault = dataclasses.replace(fault_of(memory), phase="training", step=35)
    paths = ended(parts, fault, steps=(10, 30))
    found = doctor.diagnose(paths.id)
    assert found.step == 30 and "after step 35" in found.sentence
    assert "weights of step 30, the last checkpoint, and trains 2 epochs more" in found.begins
    option = found.options[0]
    new = doctor.retry(paths.id, option.key)
    assert doctor.retry(paths.id, option.key) == new  # two clicks, one run
    record = read_json(parts.runs.paths(new).run_json)
    assert record["warm_start"]["run"] == paths.id and record["warm_start"]["step"] == 30
    assert record["config"]["train"]["activation_checkpointing"] is True
    assert record["config"]["train"]["num_train_epochs"] == 2
    assert record["config"]["lora"] == read_json(paths.run_json)["config"]["lora"]
    assert parts.runs.get(new).name.endswith(", checkpointing")
    other = doctor.retry(paths.id, found.options[1].key)
    assert other != new


def test_without_a_whole_checkpoint_it_begins_again(parts, memory, doctor):
    paths = ended(parts, fault_of(memory), steps=(4,))
    (paths.checkpoints / "step-4" / "adapter_model.safetensors").write_bytes(b"torn")
    found = doctor.diagnose(paths.id)
    assert found.step == 0
    new = doctor.retry(paths.id, found.options[0].key)
    record = read_json(parts.runs.paths(new).run_json)
    assert record.get("warm_start") is None
    assert record["config"]["train"]["num_train_epochs"] == 3.0


def test_a_kill_by_the_system_is_diagnosed_too(parts, memory, doctor):
    paths = ended(parts, fault_of(memory, asked_bytes=None, used_bytes=None), state="vanished")
    found = doctor.diagnose(paths.id)
    assert found.options
    assert doctor.retry(paths.id, found.options[0].key)


def test_other_programs_are_named_and_closing_them_is_an_answer(parts, memory, doctor):
    other = OtherProgram(4242, 9 * GIB, "python")
    found = doctor.diagnose(ended(parts, fault_of(memory, others=(other,))).id)
    assert found.notes[0] == "9 GiB of the card belonged to python (process 4242)"
    assert "Without these programs the run fits as it is" in found.notes[1]


def test_nothing_fits_says_what_the_smallest_needs(parts, memory, doctor):
    found = doctor.diagnose(ended(parts, fault_of(memory, free=0.05)).id)
    assert found.options == ()
    assert "Even with the smallest settings it needs about" in found.notes[-1]
    assert advice_line(found).startswith("Even with")


@pytest.mark.parametrize("budget", [None])
def test_unknown_budget_falls_back_to_what_is_free_now(parts, memory, doctor, budget):
    paths = ended(parts, MemoryFault("gpu", "loading", budget_bytes=budget))
    found = doctor.diagnose(paths.id)
    assert found.budget_bytes is not None and found.sentence.endswith("while loading the model")


def test_activations_that_nobody_can_count_promise_nothing(parts, doctor, memory):
    fault = fault_of(memory)
    memory._shapes._child.refuses = True
    memory._shapes._known.clear()
    for file in (parts.workspace / "cache" / "profiles").glob("*"):
        file.unlink()
    found = doctor.diagnose(ended(parts, fault).id)
    assert found.options == () and "cannot be counted" in found.notes[-1]


def test_what_is_refused(parts, memory, doctor):
    well = create_run(parts, config())
    with pytest.raises(BusyError, match="did not run out of memory"):
        doctor.diagnose(well.id)
    paths = ended(parts, fault_of(memory))
    with pytest.raises(ConfigError, match="no longer among those that fit"):
        doctor.retry(paths.id, "batch-1-x-64; rm")
    key = doctor.diagnose(paths.id).options[0].key
    looks_only = MemoryDoctor(parts, memory, Supervisor(parts, read_only="Another studio"))
    with pytest.raises(BusyError, match="read-only"):
        looks_only.retry(paths.id, key)
    write_json(paths.imported_json, {})
    with pytest.raises(BusyError, match="came from elsewhere"):
        doctor.retry(paths.id, key)
    assert len(parts.runs.list()) == 2


def test_sentence_without_figures():
    assert (
        sentence_of(MemoryFault("host", "saving")) == "The computer ran out of memory while saving"
    )
    assert size_text(3 * GIB) == "3 GiB"


@pytest.mark.parametrize("nonsense", ["Infinity", "NaN", "-3", '"x"', "[1]", "1e300", "true"])
def test_a_damaged_state_is_no_estimate_of_rows(parts, memory, doctor, nonsense):
    paths = ended(parts, fault_of(memory))
    state = {"longest_tokens": 0, "learned_share": 0, "rows_over": {"384": 0}}
    text = json.dumps(read_json(paths.state_json) | state).replace(": 0", f": {nonsense}")
    paths.state_json.write_text(text)
    assert facts_of(parts.runs.get(paths.id)) in (DataFacts(), DataFacts(1, 1.0))
    assert doctor.diagnose(paths.id).options


def test_terminal_is_told_in_one_line_what_to_add(parts, memory, doctor, monkeypatch):
    fault = dataclasses.replace(fault_of(memory), phase="training", step=35)
    paths = ended(parts, fault, steps=(30,))
    monkeypatch.setattr("studio.services.memory.MemoryService", lambda *parts: memory)
    found = cli_memory.diagnose(parts.workspace, parts.runs.get(paths.id))
    line = cli_memory.advice(found)
    assert "\n" not in line and line.startswith("What would fit: checkpointing (saves ")
    assert line.endswith(f"--set train.activation_checkpointing=true --warm-start {paths.id}@30")
    told = cli_memory.with_advice({"error": {"text": "x"}, "state": "failed"}, found)
    assert told["error"]["doctor"]["advice"] == line and told["state"] == "failed"
    assert json.loads(json.dumps(told)) == told
    well = create_run(parts, config())
    assert cli_memory.diagnose(parts.workspace, parts.runs.get(well.id)) is None
    assert cli_memory.with_advice({"error": None}, None) == {"error": None}
