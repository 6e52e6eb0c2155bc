"""A short sample of the cycles; `make faults` runs a thousand. And what is left is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]


def cycles(count, tmp_path, before=""):
    """In a process of its own: it forks and adopts, and pytest has threads and children."""
    code = f"from tests.faults import hygiene\n{before}\n" \
           f"print(hygiene.run({count}, seed=3).to_json())"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "TMPDIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Result.from_json(done.stdout.splitlines()[-1])


def test_cycles_leave_nothing_behind(tmp_path):
    result = cycles(24, tmp_path)
    assert result.is_met, result.failures[:3]
    assert result.trials == 24 and len(result.facts) == 6
    assert list(tmp_path.iterdir()) == []


# What somebody may break, and how the cycles tell.
PLANTED = {
    "a trainer nobody reaps": (
        "kept = []\n"
        "def poll(self, handle):\n"
        "    kept.append(handle)\n"
        "    return 0 if hygiene.psutil.Process(handle.pid).status() == 'zombie' else None\n"
        "hygiene.LocalLauncher.poll = poll",
        "zombie",
    ),
    "a descriptor kept open": (
        "real = hygiene.LocalLauncher.start\n"
        "def start(self, paths):\n"
        "    hygiene.os.open(paths.run_json, 0)\n"
        "    return real(self, paths)\n"
        "hygiene.LocalLauncher.start = start",
        "descriptors are open",
    ),
    "a child that is left": (
        "hygiene.ChildServer.stop = lambda self, grace_s=5.0: None",
        "is left",
    ),
    "a file left half-written": (
        "real = hygiene.one_cycle\n"
        "def one_cycle(page, way, draw):\n"
        "    (page.root / 'tmp' / 'half').write_text('')\n"
        "    return real(page, way, draw)\n"
        "hygiene.one_cycle = one_cycle",
        "in the workspace",
    ),
    "a status that lies": (
        "from studio.services import summary\n"
        "real = summary.derive_state\n"
        "def lie(paths, alive):\n"
        "    state = real(paths, alive=alive)\n"
        "    return 'done' if state == 'interrupted' else state\n"
        "summary.derive_state = lie",
        "is interrupted",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found(name, tmp_path):
    before, told = PLANTED[name]
    if name == "a child that is left":
        before += "\nhygiene.CYCLE_LIMIT_S = 20\nhygiene.ADOPT_LIMIT_S = 2"
    result = cycles(10, tmp_path, f"hygiene.CYCLE_LIMIT_S = 5\n{before}")
    assert any(told in failure for failure in result.failures), result.failures[:3]
