"""A disk that refuses: nothing half-written is called saved. `make faults` adds strace's whole."""

import errno

import pytest

from studio.backend import checkpoints
from tests.faults import io_faults


@pytest.mark.parametrize("act", list(io_faults.ACTS))
def test_every_fault_is_told_and_damages_nothing(act):
    result = io_faults.run((act,))
    assert result.is_met, result.failures[:3]


def test_a_swallowed_error_is_found(monkeypatch):
    """The check can fail: a save that hides the disk's answer is caught."""
    real = checkpoints.save

    def silent(*arguments):
        try:
            real(*arguments)
        except checkpoints.StoreError:
            return

    monkeypatch.setattr(checkpoints, "save", silent)
    result = io_faults.run(("save",), (errno.ENOSPC,))
    assert any("called done and is not" in failure for failure in result.failures)


def test_strace_injects_into_the_first_calls():
    if not io_faults.can_inject():
        pytest.skip("strace is not installed or may not trace here")
    result = io_faults.run_strace(limit=1)
    assert result.is_met, result.failures
    assert result.trials == 12


# What somebody may break in a save, and how the runner tells.
PLANTED = {
    "a full disk that is hidden": (
        "real = io_faults.checkpoints.save\n"
        "def save(*arguments):\n"
        "    try:\n"
        "        return real(*arguments)\n"
        "    except io_faults.StoreError:\n"
        "        return None\n"
        "io_faults.checkpoints.save = save"
    ),
    "a sync whose failure is ignored": (
        "import os\n"
        "real = os.fsync\n"
        "def fsync(descriptor):\n"
        "    try:\n"
        "        real(descriptor)\n"
        "    except OSError:\n"
        "        pass\n"
        "os.fsync = fsync"
    ),
    "older checkpoints that go first": (
        "import shutil\n"
        "real = io_faults.checkpoints.save\n"
        "def save(folder, *arguments):\n"
        "    for old in folder.glob('step-*'):\n"
        "        shutil.rmtree(old)\n"
        "    return real(folder, *arguments)\n"
        "io_faults.checkpoints.save = save"
    ),
}


SAMPLE = "older checkpoints that go first"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == SAMPLE else pytest.mark.full) for name in PLANTED],
)
def test_strace_finds_a_planted_bug(name):
    if not io_faults.can_inject():
        pytest.skip("strace is not installed or may not trace here")
    result = io_faults.run_strace(limit=12, planted=PLANTED[name])
    told = "newest valid is 0" if "older" in name else "exit code 0"
    assert any(told in failure for failure in result.failures), result.failures[:5]
