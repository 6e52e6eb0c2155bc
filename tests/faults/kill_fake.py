"""SIGKILL of a trainer without torch at random instants: is its end told, is what it wrote there?

    python -m tests.faults.kill_fake --trials 1000

tests/fakes/trainer.py, forked from this process; it takes the lock, writes state, metrics and exit
as the real one does. After each kill the run must be interrupted, its lock free, each line that was
whole still there, none twice, and the next attempt must begin. Cheap, so that a thousand fit; the
real trainer is kill_trainer.py's.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from studio.core.events import read_records
from studio.core.runs import RunPaths
from studio.hardware.platforms import is_locked, write_json
from studio.services.store import RunStore
from tests.fakes import trainer
from tests.faults.result import Result, run_from_command_line

TRIAL_LIMIT_S = 60.0
KILLS_A_RUN = 20


def make_run(store: RunStore, number: int) -> RunPaths:
    paths = RunPaths(store.root / f"20260101-000000-{number:04x}")
    paths.commands.mkdir(parents=True)
    write_json(paths.run_json, {"id": paths.id, "config": {"lora": {"r": 4}}})
    return paths


def start(paths: RunPaths) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        trainer.STEPS, trainer.STEP_S = 10**6, 0.001
        sys.argv = ["trainer", str(paths.root)]
        trainer.main()
    finally:
        os._exit(9)


def kill_after(pid: int, paths: RunPaths, draw: random.Random) -> str | None:
    """Wait for a few lines, then a moment; kill and reap. Returns what went wrong."""
    began, before = time.monotonic(), lines_of(paths)
    wanted = before + draw.randint(0, 8)
    while lines_of(paths) < wanted:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return "it ended by itself"
        if time.monotonic() - began > TRIAL_LIMIT_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"nothing written within {TRIAL_LIMIT_S:g} s"
        time.sleep(0.0005)
    time.sleep(draw.uniform(0.0, 0.01))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else f"it ended by itself with status {status}"


def lines_of(paths: RunPaths) -> int:
    return paths.metrics.read_bytes().count(b"\n") if paths.metrics.exists() else 0


def problems(store: RunStore, paths: RunPaths, before: bytes) -> list[str]:
    """What is wrong with the run after a kill."""
    found = []
    data = paths.metrics.read_bytes() if paths.metrics.exists() else b""
    if not data.startswith(before):
        found.append("metrics of before are gone or changed")
    steps = [(r["attempt"], r["step"]) for r in read_records(paths.metrics).records
             if r["kind"] == "step"]  # fmt: skip
    if len(set(steps)) != len(steps):
        found.append("a metric is there twice")
    if is_locked(paths.lock):
        found.append("its lock is held")
    shown = store.get(paths.id).state
    wanted = "interrupted" if paths.process_json.exists() else "queued"
    if shown != wanted:
        found.append(f"shown as {shown}, is {wanted}")
    return found


def run(trials: int, *, seed: int = 0) -> Result:
    """Kill `trials` of them."""
    result = Result("kill -9 of a trainer without torch", "0 metrics lost or twice, the status "
                    "true, the next attempt begins")  # fmt: skip
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        for trial in range(trials):
            if trial % KILLS_A_RUN == 0:
                paths = make_run(store, trial // KILLS_A_RUN)
            before = paths.metrics.read_bytes() if paths.metrics.exists() else b""
            problem = kill_after(start(paths), paths, draw)
            found = [problem] if problem else []
            found += problems(store, paths, before)
            result.trials += 1
            result.check(not found, f"seed {seed}, trial {trial}: {'; '.join(found)}")
        result.count("metrics written", sum(lines_of(RunPaths(p)) for p in store.root.iterdir()))
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=1000)


if __name__ == "__main__":
    raise SystemExit(main())
