"""A short sample of the kill loops; `make faults` runs them whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]


def kill(module, trials, before=""):
    """In a process of its own: it forks, and pytest has threads."""
    code = f"import sys; from tests.faults import {module}\n{before}\n" \
           f"print({module}.run({trials}, seed=3).to_json())"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Result.from_json(done.stdout.splitlines()[-1])


def test_killed_store_keeps_all_that_was_acknowledged():
    result = kill("kill_loop", 30)
    assert result.is_met, result.failures[:3]
    assert result.trials == 30 and result.facts["metrics acknowledged"] > 30


def test_a_save_without_staging_is_found():
    """The loop can fail: a save that writes into its final name, as stock trainers do, is caught
    by the first checkpoint that holds less than it should."""
    before = (
        "from tests.faults import writer\n"
        "def save(paths, step):\n"
        "    target = paths.checkpoints / f'step-{step}'\n"
        "    target.mkdir(parents=True)\n"
        "    writer.fill(step)(target)\n"
        "writer.save = save"
    )
    result = kill("kill_loop", 6, before)
    assert any("newest valid" in failure for failure in result.failures)


@pytest.mark.slow
def test_killed_trainer_resumes_exactly():
    result = kill("kill_trainer", 4)
    assert result.is_met, result.failures[:3]


# What somebody may break in the trainer, and how its loop tells.
PLANTED = {
    "a resume that logs a step twice": (
        "from studio.backend.journal import Journal\n"
        "real = Journal.record\n"
        "def record(self, kind, **fields):\n"
        "    real(self, kind, **fields)\n"
        "    if kind == 'step' and self.attempt > 1:\n"
        "        real(self, kind, **fields)\n"
        "Journal.record = record",
        "twice",
    ),
    "a resume that forgets the random numbers": (
        "from transformers import Trainer\nTrainer._load_rng_state = lambda self, checkpoint: None",
        "another loss",
    ),
    "metrics that are cut at a resume": (
        "from studio.backend import trainer\n"
        "real = trainer.begin\n"
        "def begin(paths, *rest):\n"
        "    paths.metrics.write_bytes(b'')\n"
        "    return real(paths, *rest)\n"
        "trainer.begin = begin",
        "gone or changed",
    ),
}


SAMPLE = "a resume that forgets the random numbers"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == SAMPLE else pytest.mark.full) for name in PLANTED],
)
def test_a_bug_planted_in_the_trainer_is_found(name):
    before, told = PLANTED[name]
    result = kill("kill_trainer", 6, before)
    assert any(told in failure for failure in result.failures), result.failures[:3]


def test_killed_trainer_without_torch_is_told():
    result = kill("kill_fake", 20)
    assert result.is_met, result.failures[:3]


def test_a_result_survives_its_way_through_json():
    result = Result("a", "b", trials=2, failures=["c"], facts={"d": 3})
    assert json.loads(Result.from_json(result.to_json()).to_json())["facts"] == {"d": 3}
    assert not result.is_met and not Result("a", "b").is_met and Result("a", "b", trials=1).is_met
