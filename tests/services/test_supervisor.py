"""Queue, launch, reap, stop and restart, with a trainer that writes files but has no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from studio.core.config_io import build_config
from studio.core.errors import BusyError, ConfigError, StoreError
from studio.core.runs import read_json
from studio.hardware.platforms import write_json
from studio.services.launcher import LocalLauncher, recorded_process, trainer_environment
from studio.services.runs import create_run
from studio.services.supervisor import Supervisor
from tests.fakes.parts import build_parts
from tests.waiting import wait_until

FAKE_TRAINER = Path(__file__).parents[1] / "fakes" / "trainer.py"


@pytest.fixture
def parts(tmp_path):
    return build_parts(tmp_path / "workspace")


@pytest.fixture
def supervise(parts):
    """Starts supervisors; ends them and every trainer at the end."""
    started = []

    def start(**options) -> Supervisor:
        launcher = LocalLauncher((sys.executable, str(FAKE_TRAINER)))
        supervisor = Supervisor(parts, launcher=launcher, **options)
        supervisor.run_in_background()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.close()
    for run in parts.runs.list():
        if identity := recorded_process(parts.runs.paths(run.id)):
            identity.kill()
    for supervisor in started:
        for child in supervisor._children.values():
            child.handle.wait(timeout=20)


def begin(supervisor, parts, **sections) -> str:
    config = build_config({"data": {"path": "tiny.jsonl"}, **sections})
    return supervisor.start(config, request_id=os.urandom(4).hex())


def wait_for(parts, run_id, *states, timeout_s=60):
    def reached():
        run = parts.runs.get(run_id)
        return run if run.state in states else None

    return wait_until(reached, timeout_s=timeout_s, what=f"{run_id} to be {states}")


def wait_for_step(parts, run_id, step=1):
    def there():
        run = parts.runs.get(run_id)
        return run if run.step >= step and run.state == "running" else None

    return wait_until(there, what=f"step {step}")


def test_run_goes_from_queued_to_done_and_leaves_no_zombie(parts, supervise):
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    run = wait_for(parts, run_id, "done")
    assert (run.step, run.total_steps, run.eval_loss, run.verdict) == (5, 5, 1.0, "fake")
    wait_until(lambda: not supervisor._children, what="the child to be reaped")
    zombies = [
        child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE
    ]
    assert zombies == []
    assert "PASSIVE" in trainer_environment(parts.runs.paths(run_id))["OMP_WAIT_POLICY"]


def test_runs_train_one_after_another_in_order(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "3")
    supervisor = supervise()
    ids = [begin(supervisor, parts) for _ in range(3)]
    for run_id in ids:
        wait_for(parts, run_id, "done")
    began = [parts.runs.paths(i).process_json.stat().st_mtime_ns for i in ids]
    ended = [parts.runs.paths(i).exit_json.stat().st_mtime_ns for i in ids]
    assert began == sorted(began)
    assert all(end <= begin for end, begin in zip(ended, began[1:], strict=False))


@pytest.mark.parametrize(("verb", "state"), [("stop", "stopped"), ("pause", "paused")])
def test_command_ends_the_run(parts, supervise, monkeypatch, verb, state):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    wait_for_step(parts, run_id)
    supervisor.command(run_id, verb)
    with contextlib.suppress(BusyError):  # a second click; the run may have ended meanwhile
        supervisor.command(run_id, verb)
    wait_for(parts, run_id, state)
    assert len(list(parts.runs.paths(run_id).commands.glob("*.ack"))) == 1


def test_paused_run_resumes_as_its_next_attempt(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "60")
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    wait_for_step(parts, run_id, 2)
    supervisor.command(run_id, "pause")
    paused = wait_for(parts, run_id, "paused")
    supervisor.resume(run_id)
    with pytest.raises(BusyError):
        supervisor.resume(run_id)
    run = wait_for(parts, run_id, "done")
    paths = parts.runs.paths(run_id)
    assert run.exit["attempt"] == 2 and run.step == 60 and paused.step < 60
    assert (paths.root / "exit-1.json").exists() and not paths.resume_json.exists()


def test_stop_now_ends_a_trainer_that_obeys_nothing(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    monkeypatch.setenv("FAKE_MODE", "deaf")
    supervisor = supervise(stop_grace_s=0.3)
    run_id = begin(supervisor, parts)
    wait_for_step(parts, run_id)
    supervisor.command(run_id, "stop_now")
    assert parts.runs.get(run_id).state in ("stopping", "interrupted")
    wait_for(parts, run_id, "interrupted")
    wait_until(lambda: not supervisor._children, what="the child to be reaped")


@pytest.mark.parametrize("verb", ["stop", "stop_now"])
def test_trainer_that_hangs_before_it_begins_can_be_stopped(parts, supervise, monkeypatch, verb):
    monkeypatch.setenv("FAKE_MODE", "hang")
    supervisor = supervise(stop_grace_s=0.5)
    run_id = begin(supervisor, parts)
    wait_until(lambda: supervisor._children, what="the launch")
    supervisor.command(run_id, verb)
    wait_until(lambda: not supervisor._children, what="the child to be reaped")
    assert parts.runs.get(run_id).state == "stopped"
    monkeypatch.setenv("FAKE_MODE", "")
    supervisor.resume(run_id)
    wait_for(parts, run_id, "done")


def test_killed_trainer_is_interrupted_and_can_be_resumed(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "die")
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    wait_for(parts, run_id, "interrupted")
    told = wait_until(lambda: parts.runs.get(run_id).error, what="why it is gone")
    assert "SIGKILL" in told["text"] and "after step 3" in told["text"]
    assert "Resume" in told["remedy"]
    monkeypatch.setenv("FAKE_MODE", "")
    supervisor.resume(run_id)
    run = wait_for(parts, run_id, "done")
    assert run.exit["attempt"] == 2 and run.error is None


def test_end_of_a_run_that_went_while_there_was_no_page_is_told(parts, supervise, monkeypatch):
    paths = create_run(parts, build_config({"data": {"path": "tiny.jsonl"}}))
    write_json(paths.process_json, {"attempt": 1, "pid": 2**22 - 3, "start_time": 1.0,
                                    "boot_id": "another boot"})  # fmt: skip
    write_json(paths.state_json, {"state": "running", "phase": "eval", "step": 7})
    supervise()
    told = wait_until(lambda: parts.runs.get(paths.id).error, what="why it is gone")
    assert told["text"].startswith("The computer was restarted in an evaluation.")


def test_trainer_that_cannot_begin_fails_with_its_last_words(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "crash")
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    run = wait_for(parts, run_id, "failed")
    assert "exit code 3" in run.error["text"] and "no such module: torch" in run.error["text"]
    monkeypatch.setenv("FAKE_MODE", "")
    second = begin(supervisor, parts)
    wait_for(parts, second, "done")


def test_closed_supervisor_leaves_the_run_going_and_the_next_one_goes_on(
    parts, supervise, monkeypatch
):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    first = supervise()
    run_id = begin(first, parts)
    wait_for_step(parts, run_id)
    monkeypatch.setenv("FAKE_STEPS", "3")
    waiting = begin(first, parts)
    first.close()
    step = parts.runs.get(run_id).step
    wait_for_step(parts, run_id, step + 3)
    second = supervise()
    assert second.active().id == run_id
    second.command(run_id, "stop")
    wait_for(parts, run_id, "stopped")
    wait_for(parts, waiting, "done")


def test_queued_run_stopped_before_its_launch_never_starts(parts, supervise, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    supervisor = supervise()
    running = begin(supervisor, parts)
    wait_for_step(parts, running)
    waiting = begin(supervisor, parts)
    with pytest.raises(BusyError, match="Stop it instead"):
        supervisor.command(waiting, "pause")
    supervisor.command(waiting, "stop")
    assert parts.runs.get(waiting).state == "stopped"
    supervisor.command(running, "stop")
    wait_for(parts, running, "stopped")
    assert not parts.runs.paths(waiting).process_json.exists()
    with pytest.raises(BusyError, match="stopped"):
        supervisor.command(waiting, "stop")
    with pytest.raises(ConfigError, match="no such command"):
        supervisor.command(waiting, "explode")


def test_foreground_run_is_left_to_its_command_line(parts, supervise):
    config = build_config({"data": {"path": "tiny.jsonl"}})
    mine = create_run(parts, config, foreground=True)
    supervisor = supervise()
    other = begin(supervisor, parts)
    wait_for(parts, other, "done")
    assert parts.runs.get(mine.id).state == "queued"
    record = read_json(mine.run_json)
    write_json(mine.run_json, {**record, "foreground": {**record["foreground"], "pid": 2**22 - 3}})
    wait_for(parts, mine.id, "done")  # its command line is gone: the queue takes it over


def test_an_error_in_one_round_does_not_end_the_queue(parts, supervise, monkeypatch, caplog):
    failures = iter([RuntimeError("boom")])
    real_list = type(parts.runs).list

    def fail_once(store):
        for error in failures:
            raise error
        return real_list(store)

    supervisor = supervise()
    monkeypatch.setattr(type(parts.runs), "list", fail_once)
    wait_until(lambda: "boom" in caplog.text, what="the failing round")
    wait_for(parts, begin(supervisor, parts), "done")


def test_room_is_made_on_the_device_before_training(parts, supervise):
    asked = []
    supervisor = supervise(free_device=lambda device: asked.append(device) or "Chat was unloaded")
    wait_for(parts, begin(supervisor, parts), "done")
    assert asked == ["cpu"] and supervisor.notice == "Chat was unloaded"


def test_read_only_supervisor_starts_nothing(parts):
    supervisor = Supervisor(parts, read_only="Another studio holds this workspace.")
    with pytest.raises(BusyError, match="Another studio"):
        begin(supervisor, parts)
    assert parts.runs.ids() == []


def test_no_foreign_process_is_signalled(parts, supervise):
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    wait_for(parts, run_id, "done")
    paths = parts.runs.paths(run_id)
    record = read_json(paths.process_json)
    write_json(paths.process_json, {**record, "pid": os.getpid()})
    identity = recorded_process(paths)
    assert not identity.is_alive() and identity.send(signal.SIGKILL) is False


def test_lock_that_cannot_be_opened_is_said_on_the_run_and_the_queue_goes_on(parts, supervise):
    bad = create_run(parts, build_config({"data": {"path": "tiny.jsonl"}}))
    bad.lock.mkdir()
    supervisor = supervise()
    good = begin(supervisor, parts)
    wait_for(parts, good, "done")
    run = parts.runs.get(bad.id)
    assert run.state == "failed" and "trainer.lock" in run.error["text"]
    assert read_json(bad.exit_json)["state"] == "failed"


def test_reason_is_shown_where_not_even_it_can_be_written(parts, supervise, monkeypatch):
    def refuse(path, value, **_):
        raise StoreError(f"Cannot write or read {path}: Read-only file system")

    monkeypatch.setenv("FAKE_MODE", "crash")
    monkeypatch.setattr("studio.services.endings.write_json", refuse)
    supervisor = supervise()
    run_id = begin(supervisor, parts)
    run = wait_for(parts, run_id, "failed")
    assert "no such module: torch" in run.error["text"]
    assert not parts.runs.paths(run_id).exit_json.exists()
    monkeypatch.undo()
    supervisor.resume(run_id)
    wait_for(parts, run_id, "done")


def test_restarted_supervisor_kills_what_ignores_stop_now(parts, supervise, monkeypatch):
    """The order is in the run's folder: another page carries it out, by identity."""
    monkeypatch.setenv("FAKE_STEPS", "100000")
    monkeypatch.setenv("FAKE_MODE", "deaf")
    first = supervise(stop_grace_s=3600.0)
    run_id = begin(first, parts)
    wait_for_step(parts, run_id)
    first.command(run_id, "stop_now")
    wait_until(lambda: run_id in first._terminated, what="SIGTERM")
    first.close()
    assert parts.runs.get(run_id).state == "stopping"  # deaf: SIGTERM alone does nothing
    supervise(stop_grace_s=0.3)
    wait_for(parts, run_id, "interrupted")


def test_refused_resume_becomes_one_new_run_from_its_weights(parts, supervise, monkeypatch):
    supervisor = supervise()
    old = begin(supervisor, parts)
    wait_for(parts, old, "done")
    paths = parts.runs.paths(old)
    write_json(paths.adapter / "lora_studio.json", {"step": 5})
    refusal = {"text": "The data set changed.", "remedy": f"Start a new run: --warm-start {old}@5"}
    write_json(paths.exit_json, {**read_json(paths.exit_json), "state": "failed", "error": refusal})
    assert parts.runs.get(old).warm_start == f"{old}@5"
    new = supervisor.warm_start(old)
    assert supervisor.warm_start(old) == new != old
    run = wait_for(parts, new, "done")
    assert run.run_record["warm_start"]["run"] == old and run.name.endswith("from step 5")
    with pytest.raises(BusyError, match="Resume it"):
        supervisor.warm_start(new)
