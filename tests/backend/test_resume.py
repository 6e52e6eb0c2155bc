"""Stop, pause, crash and go on: nothing is lost and the result is that of a run without breaks."""

import json
import shutil

import pytest

from studio.core.events import read_records
from studio.core.runs import derive_state
from tests.backend.tiny import losses, records, same_tensors, tensors, train

DROPOUT = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
EXACT = {"save_steps": 2, "eval_steps": 3, "num_train_epochs": 3, "max_steps": 14}


def steps_on_disk(paths):
    return sorted(int(p.name.split("-")[1]) for p in paths.checkpoints.glob("step-*"))


def damage(file, how):
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize(
    ("train_values", "first", "second"),
    [
        ({"group_by_length": True}, (3, 1), (9, 0)),
        ({"group_by_length": False, "lr_scheduler_type": "cosine"}, (6, 0), (10, 1)),
        ({"packing": True, "per_device_train_batch_size": 1, "max_length": 32}, (3, 1), (9, 0)),
    ],
    ids=["grouped", "shuffled, at the end of an epoch", "packed"],
)
def test_resume_equals_the_run_without_break(make_run, train_values, first, second):
    """Broken off twice: between micro-batches or steps, in the first epoch and in a later one."""
    values = {"lora": DROPOUT, "train": {**EXACT, **train_values}}
    whole, broken = make_run(values, rows=24), make_run(values, rows=24)
    end = train(whole)
    assert train(broken, {first: "pause"})["state"] == "paused"
    assert train(broken, {second: "stop"})["state"] == "stopped"
    again = train(broken)
    assert losses(broken) == losses(whole)
    assert same_tensors(tensors(broken.adapter), tensors(whole.adapter))
    for key in ("eval_loss", "eval_loss_first", "best_step", "tokens_total", "steps"):
        assert again[key] == end[key], key
    assert again["train_loss"] == pytest.approx(end["train_loss"], rel=1e-12)


def test_pause_saves_the_last_completed_step_and_state_says_so(make_run):
    paths = make_run({"train": {"max_steps": 20}})
    result = train(paths, {(3, 1): "pause"})
    assert (result["state"], result["steps"]) == ("paused", 3)
    assert steps_on_disk(paths)[-1] == 3
    assert derive_state(paths, alive=False) == "paused"
    assert (paths.adapter / "adapter_model.safetensors").is_file()
    assert list(paths.commands.glob("*.ack"))
    assert result["cause"] == "asked to pause"


def test_stop_after_a_step_saves_it(make_run):
    paths = make_run({"train": {"max_steps": 20}})
    result = train(paths, {(4, 0): "stop_now"})
    assert result["state"] == "stopped"
    assert steps_on_disk(paths)[-1] == result["steps"] == 4


def test_save_on_demand_goes_on(make_run):
    paths = make_run({"train": {"max_steps": 6, "eval_steps": 100, "save_steps": 100}})
    assert train(paths, {(2, 1): "save"})["state"] == "done"
    assert steps_on_disk(paths) == [3]


def test_an_order_before_the_first_step_is_obeyed(make_run):
    result = train(make_run(), {(0, 0): "stop"})
    assert (result["state"], result["steps"]) == ("stopped", 0)


def test_resume_opens_an_attempt_and_cuts_nothing(make_run):
    paths = make_run({"train": {"max_steps": 8}})
    train(paths, {(3, 0): "pause"})
    before = paths.metrics.read_bytes()
    train(paths)
    after = paths.metrics.read_bytes()
    assert after.startswith(before)
    assert records(paths, "resume")[0]["from_step"] == 3
    second = [r for kind in ("phase", "device") for r in records(paths, kind) if r["attempt"] == 2]
    assert second and min(r["step"] for r in second) == 3  # loading too: a chart goes on, not back
    assert {r["attempt"] for r in read_records(paths.metrics).records} == {1, 2}
    assert [r["step"] for r in records(paths, "eval")].count(0) == 1  # none at step 0 on resume
    assert json.loads((paths.root / "exit-1.json").read_text())["state"] == "paused"
    assert json.loads(paths.process_json.read_text())["attempt"] == 2
    tokens = [r["tokens_total"] for r in records(paths, "step")]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 8


def test_two_valid_checkpoints_are_kept(make_run):
    paths = make_run({"train": {"max_steps": 9, "save_steps": 2}})
    train(paths)
    assert steps_on_disk(paths) == [6, 8]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("adapter_model.safetensors", "flipped"),
        ("optimizer.pt", "truncated"),
        ("rng_state.pth", "missing"),
        ("MANIFEST.json", "empty"),
    ],
)
def test_damaged_checkpoint_is_passed_over_with_a_warning(make_run, name, how):
    paths = make_run({"train": {"max_steps": 8, "save_steps": 2}})
    train(paths, {(5, 0): "pause"})
    assert steps_on_disk(paths) == [4, 5]
    damage(paths.checkpoints / "step-5" / name, how)
    assert train(paths)["state"] == "done"
    warning = records(paths, "warning")[0]["text"]
    assert "step-5" in warning
    assert name in warning
    assert records(paths, "resume")[0]["from_step"] == 4
    assert list(losses(paths)) == list(range(1, 9))


def test_with_no_valid_checkpoint_it_starts_again(make_run):
    paths = make_run({"train": {"max_steps": 4}})
    train(paths, {(3, 0): "pause"})
    shutil.rmtree(paths.checkpoints)
    assert train(paths)["state"] == "done"
    assert records(paths, "resume")[0]["from_step"] == 0
    assert list(losses(paths)) == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["settings", "data set", "base model"])
def test_a_changed_run_is_not_resumed_in_silence(make_run, tmp_path, model_folder, what):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    paths = make_run({"train": {"max_steps": 8}}, model=folder)
    train(paths, {(3, 0): "pause"})
    run = json.loads(paths.run_json.read_text())
    if what == "settings":
        run["resolved"]["train"]["learning_rate"] = 1e-3
    elif what == "data set":
        run["dataset"]["fingerprint"] = "0" * 64
    else:
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)
    paths.run_json.write_text(json.dumps(run))
    result = train(paths)
    assert result["state"] == "failed"
    assert what in result["error"]["text"]
    assert "cannot be resumed" in result["error"]["text"]
    assert steps_on_disk(paths)[-1] == 3


def test_a_full_disk_at_a_save_does_not_end_the_run(make_run, monkeypatch):
    from studio.backend import checkpoints

    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 0)
    paths = make_run({"train": {"max_steps": 9, "save_steps": 2}})
    result = train(paths)
    assert result["state"] == "done"
    assert steps_on_disk(paths) == [2]
    assert "Not enough space" in records(paths, "warning")[0]["text"]
