"""Stalled and ending: what the clock says of a live run, and that only the right ones are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from studio.core.config_io import build_config
from studio.core.runs import RunPaths
from studio.hardware.platforms import ProcessIdentity, create_exclusive, write_json
from studio.services import liveness
from studio.services.commands import write_command
from studio.services.launcher import recorded_process
from studio.services.liveness import find_ending, find_stall, stall_limit_s
from studio.services.runs import create_run
from studio.services.summary import to_row
from tests.fakes.parts import build_parts
from tests.waiting import wait_until

NOW = datetime(2026, 11, 22, 3, 0, 0, tzinfo=UTC)
FAKE_TRAINER = Path(__file__).parents[1] / "fakes" / "trainer.py"


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def record(phase: str, moved_s: float, beat_s: float = 0.5, state: str = "running") -> dict:
    return {"state": state, "phase": phase, "progress_time": ago(moved_s), "time": ago(beat_s)}


@pytest.mark.parametrize(
    ("values", "step_s", "expected"),
    [
        (record("training", 59), 1.0, False),
        (record("training", 61), 1.0, True),
        (record("training", 61), None, True),
        (record("training", 199), 10.0, False),  # 20 steps of 10 s
        (record("training", 201), 10.0, True),
        (record("loading", 61), 1.0, True),  # running: the gap after an evaluation
        (record("loading", 900, state="starting"), None, False),
        (record("loading", 61, beat_s=61, state="starting"), None, True),  # no heartbeat
        (record("eval", 900), 1.0, False),
        (record("eval", 1801), 1.0, True),
        (record("saving", 300), 1.0, False),
        (record("saving", 300, beat_s=61), 1.0, True),
        (record("first_step", 600), None, False),
        (record("first_step", 600, beat_s=90), None, True),
        ({"state": "running", "phase": "training"}, 1.0, False),
        ({"state": "running", "phase": "training", "progress_time": 7, "time": []}, 1.0, False),
    ],
)
def test_stalled_is_told_from_slow(values, step_s, expected):
    assert bool(find_stall("running", values, step_s, NOW)) is expected
    assert find_stall("done", values, step_s, NOW) is None


def test_stall_names_the_time_the_seconds_and_what_to_do():
    found = find_stall("running", record("training", 83), 1.0, NOW)
    clock = (NOW - timedelta(seconds=83)).astimezone().strftime("%H:%M:%S")
    assert found.text == f"Stalled since {clock} (83 s without a step)."
    assert "Stop now" in found.remedy and "log.txt" in found.remedy
    assert stall_limit_s(None) == stall_limit_s(1.0) == 60.0 and stall_limit_s(30.0) == 600.0


def begin(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "r1")
    paths.commands.mkdir(parents=True)
    write_json(paths.process_json, {"attempt": 1})
    return paths


def later(paths: RunPaths, seconds: float) -> datetime:
    file = next(paths.commands.glob("*.json"))
    return datetime.fromtimestamp(file.stat().st_mtime, UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("acknowledged", [False, True])
def test_stop_is_counted_down_until_its_grace_is_over(tmp_path, acknowledged):
    paths = begin(tmp_path)
    write_command(paths, "stop")
    if acknowledged:
        create_exclusive(next(paths.commands.glob("*.json")).with_suffix(".ack"), b"{}")
    ending = find_ending(paths, 15.0, later(paths, 3))
    assert (ending.verb, ending.grace_s, ending.left_s) == ("stop", 15, 12)
    assert "after the current step" in ending.text and "at most 12 s more" in ending.text
    over = find_ending(paths, 15.0, later(paths, 16))
    assert over.left_s == 0 and "did not end within 15 s. Stop now ends it" in over.text
    write_command(paths, "stop_now")
    assert find_ending(paths, 100.0, later(paths, 1)).verb == "stop_now"


def test_order_to_an_earlier_attempt_is_not_counted(tmp_path):
    paths = begin(tmp_path)
    write_command(paths, "stop")
    file = next(paths.commands.glob("*.json"))
    create_exclusive(file.with_suffix(".ack"), b'{"superseded": true}')
    os.utime(file, (1, 1))
    assert find_ending(paths, 15.0, NOW) is None
    assert find_ending(RunPaths(tmp_path / "gone"), 15.0, NOW) is None


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A trainer of endless steps in a process of its own, and the store that looks at it."""
    parts = build_parts(tmp_path / "w")
    paths = create_run(parts, build_config({"data": {"path": "tiny.jsonl"}}))
    env = {**os.environ, "FAKE_STEPS": "100000"}
    process = subprocess.Popen([sys.executable, str(FAKE_TRAINER), str(paths.root)], env=env)
    wait_until(lambda: parts.runs.get(paths.id).step > 3, what="steps")
    yield parts.runs, paths
    if identity := ProcessIdentity.of(process.pid):
        identity.kill()
    process.wait(timeout=20)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGSTOP")
def test_frozen_trainer_is_stalled_until_it_goes_on(training, monkeypatch):
    runs, paths = training
    monkeypatch.setattr(liveness, "STALLED_S", 3.0)
    assert runs.get(paths.id).stalled is None
    process = recorded_process(paths)
    os.kill(process.pid, signal.SIGSTOP)
    run = wait_until(lambda: (r := runs.get(paths.id)).stalled and r, what="stalled")
    assert (run.state, run.shown_state) == ("running", "stalled")
    assert to_row(run)["stalled"]["silent_s"] >= 3
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: runs.get(paths.id).stalled is None, what="it to go on")
