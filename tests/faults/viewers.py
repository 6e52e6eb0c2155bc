"""Twenty-five viewers, each asking once a second, during a real training on the CPU.

    python -m tests.faults.viewers --trials 6

A trial is a pair of windows of one run, with and without the viewers; the order alternates. The
slowdown is the median over all pairs of (median step with viewers / without). The viewers are
a niced process of their own on the same cores: what they cost there counts against the studio.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.core.config_io import build_config
from studio.services.runs import create_run
from studio.services.settings import PROJECT_ROOT, Settings
from studio.services.studio import build_parts
from studio.tokens import TokenStore
from tests.faults.result import Result, run_from_command_line
from tests.waiting import wait_until

VIEWERS = 25
WINDOW_S = 10.0
MAX_SLOWDOWN = 1.05
MAX_P95_S = 0.5
WARM_STEPS = 20
WANTED = f"{VIEWERS} viewers at 1 Hz: 0 errors, p95 < 500 ms, no point missed or seen twice, " \
         "training slowed by at most 5 %"  # fmt: skip
RECIPE = {
    "data": {"path": "sample:harbor-style"},
    "train": {
        "max_steps": 100_000, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "max_length": 128, "eval_steps": 100_000, "save_steps": 100_000,
    },
}  # fmt: skip


@contextmanager
def studio_process(workspace: Path) -> Iterator[int]:
    """`app.py --listen` on loopback: its port."""
    output = workspace.parent / "output"
    command = [sys.executable, str(PROJECT_ROOT / "app.py"), "--no-browser", "--listen",
               "--host", "127.0.0.1", "--workspace", str(workspace)]  # fmt: skip
    with output.open("wb") as sink:
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=sink, stderr=sink)
    try:
        found = wait_until(
            lambda: re.search(r"runs at http://127.0.0.1:(\d+)", output.read_text()),
            timeout_s=120, what="the studio",
        )  # fmt: skip
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def steps_of(metrics: Path) -> list[tuple[int, float]]:
    """Step and its instant on the trainer's clock, of all whole lines."""
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    records = [json.loads(line) for line in lines if b'"step"' in line]
    return [(one["step"], one["t_s"]) for one in records if one.get("kind") == "step"]


class Training:
    """A run that trains until it is told to stop."""

    def __init__(self, workspace: Path) -> None:
        parts = build_parts(Settings(workspace=workspace))
        self._runs = parts.runs
        self.paths = create_run(parts, build_config(RECIPE), name="watched")

    def begin(self) -> None:
        """Wait until it trains evenly."""

        def trains() -> bool:
            if self.paths.exit_json.exists():
                raise AssertionError(f"the training ended: {self.paths.exit_json.read_text()}")
            return len(steps_of(self.paths.metrics)) >= WARM_STEPS

        wait_until(trains, timeout_s=180, what="the training")

    def window(self) -> float:
        """The median step of the next seconds, in seconds."""
        before = len(steps_of(self.paths.metrics))
        time.sleep(WINDOW_S)
        times = [t_s for _, t_s in steps_of(self.paths.metrics)[before:]]
        return statistics.median(b - a for a, b in zip(times, times[1:], strict=False))

    def end(self) -> None:
        """Stop it and wait."""
        from studio.services.commands import send_command

        send_command(self.paths, "stop", "running")
        wait_until(self.paths.exit_json.exists, timeout_s=120, what="the training to stop")


@contextmanager
def polling(port: int, run_id: str, cookies: list[str]) -> Iterator[tuple[Any, list[Any]]]:
    """The viewers' process and, afterwards, what they saw."""
    command = [sys.executable, "-m", "tests.faults.polling", "127.0.0.1", str(port), run_id]
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen: list[Any] = []

    def say(word: str) -> None:
        process.stdin.write(word + "\n")
        process.stdin.flush()

    try:
        say(json.dumps(cookies))
        yield say, seen
        out, _ = process.communicate("end\n", timeout=60)
        seen += json.loads(out)
    finally:
        process.kill()
        process.wait()


def run(trials: int = 6, seed: int = 0) -> Result:
    """Measure `trials` pairs of windows."""
    result = Result("viewers of a live run", WANTED)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        with studio_process(workspace) as port:
            store = TokenStore(workspace)
            name = f"lora_studio_{port}"
            cookies = [f"{name}={store.new_viewer(f'Viewer {n}')}" for n in range(VIEWERS - 1)]
            cookies.append(f"{name}={store.owner_token()}")  # the owner's page asks the same
            training = Training(workspace)
            try:
                training.begin()
                with polling(port, training.paths.id, cookies) as (say, seen):
                    ratios = [pair(training, say, (seed + n) % 2 == 0) for n in range(trials)]
                    training.end()
                    say("on")
                    time.sleep(2.5)  # everybody asks once more and has it all
                judge(result, seen, [step for step, _ in steps_of(training.paths.metrics)])
            finally:
                if not training.paths.exit_json.exists():
                    training.end()
    result.trials = trials
    slowdown = statistics.median(ratios)
    result.facts["permille slower"] = round(1000 * (slowdown - 1))
    result.check(slowdown <= MAX_SLOWDOWN, f"slower by {100 * (slowdown - 1):.1f} %: {ratios}")
    return result


def pair(training: Training, say: Any, first_with: bool) -> float:
    """Median step with viewers over that without, of two windows next to each other."""
    found = {}
    for is_with in (first_with, not first_with):
        say("on" if is_with else "off")
        time.sleep(1.0)
        found[is_with] = training.window()
    return found[True] / found[False]


def judge(result: Result, seen: list[Any], steps: list[int]) -> None:
    """Errors, waiting times and points."""
    latencies = sorted(value for one in seen for value in one["latencies_s"])
    p95_s = latencies[int(len(latencies) * 0.95)]
    result.facts["requests"] = len(latencies)
    result.facts["ms p50"] = round(1000 * latencies[len(latencies) // 2])
    result.facts["ms p95"] = round(1000 * p95_s)
    result.facts["points each"] = len(steps)
    result.check(p95_s < MAX_P95_S, f"p95 is {1000 * p95_s:.0f} ms")
    for number, one in enumerate(seen):
        for error in one["errors"][:2]:
            result.check(False, f"viewer {number}: {error}")
        missed = len(set(steps) - set(one["steps"]))
        twice = len(one["steps"]) - len(set(one["steps"]))
        result.check(
            one["steps"] == steps, f"viewer {number}: {missed} points missed, {twice} seen twice"
        )


def main() -> int:
    return run_from_command_line(run, __doc__, trials=6)


if __name__ == "__main__":
    raise SystemExit(main())
