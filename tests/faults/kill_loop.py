"""SIGKILL at random instants, then: is everything that was acknowledged still there?

    python -m tests.faults.kill_loop --trials 1000

The writer (tests/faults/writer.py) runs in a forked child: this process imports once, runs no
thread and no torch, and holds no lock. A third of the kills aims into a save, a third into an
append, a third anywhere. After each kill the folder is checked and the next child goes on in it.
A trial that runs into its time limit counts as a failure.
"""

from __future__ import annotations

import os
import random
import select
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from studio.core.runs import RunPaths
from tests.faults import writer
from tests.faults.result import Result, run_from_command_line

TRIAL_LIMIT_S = 60.0
KILLS_A_RUN = 25
_AIMS = ("save", "append", "any")


@dataclass
class Victim:
    """A forked writer and what it has acknowledged."""

    pid: int
    pipe: int
    text: str = ""
    metrics: set[tuple[int, int]] = field(default_factory=set)
    saved_step: int = 0
    began: float = field(default_factory=time.monotonic)

    def listen(self, wait_s: float) -> list[str]:
        """Acknowledgements that came within wait_s, as whole lines."""
        if not select.select([self.pipe], [], [], max(0.0, wait_s))[0]:
            return []
        self.text += os.read(self.pipe, 1 << 16).decode()
        *lines, self.text = self.text.split("\n")
        for line in lines:
            word, *values = line.split()
            if word == "metric":
                self.metrics.add((int(values[0]), int(values[1])))
            elif word == "saved":
                self.saved_step = int(values[0])
        return lines

    def is_late(self) -> bool:
        return time.monotonic() - self.began > TRIAL_LIMIT_S


def spawn(paths: RunPaths) -> Victim:
    """Fork a writer."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return Victim(pid, read_end)
    try:
        os.close(read_end)
        writer.attempt(paths, write_end)
    finally:
        os._exit(9)  # a writer never ends by itself: whatever brought us here is a failure


def kill_at(victim: Victim, aim: str, draw: random.Random) -> str | None:
    """Wait for the instant, kill, reap. Returns what went wrong."""
    if aim == "any":
        moment = victim.began + draw.uniform(0.0, 0.1)
        while time.monotonic() < moment:
            victim.listen(moment - time.monotonic())
    else:
        seen, wanted = 0, draw.randint(1, 4)
        while seen < wanted:
            seen += victim.listen(0.5).count(aim)
            if os.waitpid(victim.pid, os.WNOHANG)[0]:
                return "the writer ended by itself"
            if victim.is_late():
                os.kill(victim.pid, signal.SIGKILL)
                os.waitpid(victim.pid, 0)
                return f"no {aim} within {TRIAL_LIMIT_S:g} s"
        time.sleep(draw.uniform(0.0, 0.02 if aim == "save" else 0.001))
    os.kill(victim.pid, signal.SIGKILL)
    status = os.waitpid(victim.pid, 0)[1]
    while victim.listen(0.0):
        continue  # what was acknowledged before the kill
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return None if killed else f"the writer ended by itself with status {status}"


def run(trials: int, *, seed: int = 0, folder: Path | None = None) -> Result:
    """Kill `trials` writers."""
    result = Result("kill -9 of the store", "0 committed metrics lost or twice, newest valid "
                    "checkpoint at least the last acknowledged")  # fmt: skip
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        metrics: set[tuple[int, int]] = set()
        saved = kills = 0
        for trial in range(trials):
            if trial % KILLS_A_RUN == 0:
                metrics, saved, kills = set(), 0, 0
                paths = RunPaths(Path(root) / f"run-{trial}")
                paths.root.mkdir()
            aim = _AIMS[trial % 3]
            victim = spawn(paths)
            problem = kill_at(victim, aim, draw)
            os.close(victim.pipe)
            kills += 1
            metrics |= victim.metrics
            saved = max(saved, victim.saved_step)
            result.trials += 1
            result.count("metrics acknowledged", len(victim.metrics))
            found = [problem] if problem else []
            found += writer.problems(paths, metrics, saved, kills)
            where = f"seed {seed}, trial {trial}, {aim}"
            result.check(not found, f"{where}: {'; '.join(found)}")
            if problem:
                break
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=1000)


if __name__ == "__main__":
    raise SystemExit(main())
