"""The trainer as a process, and what it says when something breaks."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from studio.backend import callbacks, data, loading, training
from studio.backend.inbox import Inbox
from studio.backend.lease import device_lease
from studio.backend.trainer import begin, main
from studio.core.runs import derive_state
from studio.hardware.platforms import ProcessIdentity, held_lock, is_locked
from studio.services.launcher import trainer_environment
from tests.backend.tiny import losses, make_rows, records, train
from tests.waiting import wait_until


def test_process_holds_the_lock_obeys_sigterm_and_resumes(make_run):
    """One real process: the page sees it start, a signal saves and ends it, it can go on."""
    paths = make_run({"train": {"max_steps": 3000, "eval_steps": 5000, "save_steps": 5000}})
    with paths.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "studio.backend.trainer", str(paths.root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=trainer_environment(paths),
        )  # fmt: skip
    try:
        wait_until(lambda: paths.process_json.exists(), timeout_s=60)
        identity = json.loads(paths.process_json.read_text())
        assert identity["pid"] == process.pid
        assert ProcessIdentity(process.pid, identity["start_time"], identity["boot_id"]).is_alive()
        assert is_locked(paths.lock)
        assert derive_state(paths, alive=True) == "starting"
        wait_until(lambda: len(losses(paths)) >= 3, timeout_s=120)
        assert derive_state(paths, alive=True) == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    result = json.loads(paths.exit_json.read_text())
    assert (result["state"], result["cause"]) == ("stopped", "asked to end by a signal")
    assert not is_locked(paths.lock)
    steps = result["steps"]
    assert (paths.checkpoints / f"step-{steps}" / "MANIFEST.json").exists()
    text = paths.log.read_text()
    assert "Warning" not in text, text
    assert "it/s" not in text, text
    assert train(paths, {(steps + 2, 0): "stop"})["steps"] == steps + 2


def test_a_second_trainer_of_the_same_run_is_refused(make_run, monkeypatch):
    paths = make_run()
    monkeypatch.setattr("studio.backend.trainer.LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(Inbox, "listen", lambda self: None)
    with held_lock(paths.lock):
        assert main([str(paths.root)]) == 1
    assert not paths.process_json.exists()
    assert main([]) == 2


def test_the_run_is_seen_before_the_libraries_load(make_run):
    code = (
        "import sys; from pathlib import Path; from studio.core.runs import RunPaths;"
        "from studio.backend.inbox import Inbox; from studio.backend.trainer import begin;"
        f"p = RunPaths(Path({str(make_run().root)!r})); begin(p, Inbox(p));"
        "assert p.state_json.exists() and p.process_json.exists();"
        "print([m for m in ('torch', 'transformers', 'peft', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=os.getcwd(), check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_new_attempt_keeps_the_old_record_and_takes_the_request(make_run):
    paths = make_run()
    paths.exit_json.write_text('{"state": "failed", "attempt": 1}')
    paths.process_json.write_text('{"attempt": 1}')
    paths.resume_json.write_text("{}")
    attempt = begin(paths, Inbox(paths))
    assert attempt.journal.attempt == 2
    assert not paths.exit_json.exists()
    assert not paths.resume_json.exists()
    assert json.loads((paths.root / "exit-1.json").read_text())["state"] == "failed"
    attempt.journal.close()


@pytest.mark.parametrize(
    ("where", "phase", "words"),
    [
        ((loading, "load_model"), "loading", "while loading the model"),
        ((callbacks, "mean_loss"), "eval", "in an evaluation"),
        ((callbacks.checkpoints, "save"), "saving", "while saving"),
        ((callbacks.StudioTrainer, "training_step"), "first_step", "in the first step"),
    ],
)
def test_out_of_memory_names_the_phase_and_three_knobs(make_run, monkeypatch, where, phase, words):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(*where, full)
    paths = make_run({"train": {"save_steps": 2}})
    result = train(paths)
    assert result["state"] == "failed"
    assert result["error"]["type"] == "OutOfMemoryError"
    assert result["error"]["phase"] == phase
    assert words in result["error"]["text"]
    assert result["error"]["remedy"].count(";") == 2
    assert derive_state(paths, alive=False) == "failed"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "The GPU ran out of GPU memory"),
        (MemoryError(), "The computer ran out of main memory (RAM)"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate "
                      "memory: you tried to allocate 1 bytes."), "The computer ran out of main"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_between_steps_is_in_training(make_run, monkeypatch, error, words):
    real = callbacks.StudioTrainer.training_step

    def full(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.StudioTrainer, "training_step", full)
    told = train(make_run())["error"]
    assert (told["type"], told["phase"]) == ("OutOfMemoryError", "training")
    assert words in told["text"]
    assert "in training" in told["text"]


def test_an_unknown_error_is_a_sentence_and_its_traceback_is_in_the_log(
    make_run, monkeypatch, caplog
):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(data, "prepare", broken)
    result = train(make_run())
    assert "ZeroDivisionError: surprise" in result["error"]["text"]
    assert "Traceback" not in result["error"]["text"]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "no resolved config", "rows", "model"])
def test_a_broken_run_folder_ends_as_failed_with_a_sentence(make_run, tmp_path, damage):
    paths = make_run()
    run = json.loads(paths.run_json.read_text())
    if damage == "missing":
        paths.run_json.unlink()
    elif damage == "no resolved config":
        paths.run_json.write_text("{}")
    elif damage == "rows":
        run["dataset"]["path"] = "../gone"
        paths.run_json.write_text(json.dumps(run))
    else:
        run["model"]["path"] = str(tmp_path / "gone")
        paths.run_json.write_text(json.dumps(run))
    result = train(paths)
    assert result["state"] == "failed"
    assert result["error"]["remedy"] or result["error"]["what"]
    assert json.loads(paths.state_json.read_text())["state"] == "failed"


def test_a_taken_device_is_told_with_its_holder(make_run, monkeypatch):
    def impatient(device, holder, **options):
        return device_lease(device, holder, timeout_s=0.1, **options)

    monkeypatch.setattr(training, "device_lease", impatient)
    with device_lease("cpu", "run X"):
        result = train(make_run())
    assert result["state"] == "failed"
    assert result["error"]["type"] == "BusyError"
    assert "run X" in result["error"]["text"]


@pytest.mark.parametrize(("verb", "state"), [("stop", "stopped"), ("pause", "paused")])
def test_a_run_that_waits_for_the_device_obeys(make_run, verb, state):
    paths = make_run()
    paths.commands.mkdir(exist_ok=True)
    (paths.commands / f"0001-{verb}.json").write_text(json.dumps({"verb": verb}))
    with device_lease("cpu", "run X"):
        result = train(paths)
    assert result["state"] == state
    assert result["error"] is None


def test_an_unmatched_module_fails_with_the_real_names(make_run):
    result = train(make_run({"lora": {"target_modules": ["query_key_value"]}}))
    assert result["error"]["type"] == "TargetModulesError"
    assert "q_proj" in result["error"]["text"]


def test_first_evaluation_is_made_before_any_weight_changes(make_run):
    paths = make_run(rows=make_rows(30))
    train(paths)
    both = [*records(paths, "eval"), *records(paths, "step")]
    order = [(r["kind"], r["step"]) for r in sorted(both, key=lambda r: r["t_s"])]
    assert order[0] == ("eval", 0)
    assert order[1] == ("step", 1)
    assert order[-1] == ("eval", 6)
