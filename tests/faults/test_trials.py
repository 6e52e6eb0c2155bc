"""A short sample of NaN, disk and stop trials; `make faults` runs them whole."""

import pytest

from tests.faults.test_kill import kill


def test_every_kind_of_nan_is_caught():
    result = kill("nan_trials", 6)
    assert result.is_met, result.failures[:3]
    assert len(result.facts) == 6  # each kind once


def test_a_trainer_that_does_not_look_is_found():
    """The trials can fail: without the check of each step the loss is only seen too late."""
    before = (
        "from transformers import Trainer\n"
        "from studio.backend.sft import StudioTrainer\n"
        "StudioTrainer._clip_grad_norm = Trainer._clip_grad_norm"
    )
    result = kill("nan_trials", 2, before)
    assert result.failures


@pytest.mark.slow
def test_a_disk_that_refuses_the_trainer_ends_no_run():
    result = kill("trainer_disk", 4)
    assert result.is_met, result.failures[:3]


@pytest.mark.slow
def test_a_stopped_trainer_ends_within_its_grace():
    result = kill("stop_trials", 4)
    assert result.is_met, result.failures[:3]
