"""A power cut at any moment leaves a valid checkpoint and every synced metric."""

import os

import pytest

from studio.backend import checkpoints, journal
from tests.faults import disk_model, power_loss


@pytest.mark.parametrize("scene", list(power_loss.SCENES))
def test_every_state_after_a_cut_is_good(scene):
    result = power_loss.run((scene,))
    assert result.is_met, result.failures[:3]
    assert result.facts["distinct states opened"] > 100


@pytest.mark.parametrize(
    ("module", "name"),
    [(journal, "sync_file"), (journal, "sync_folder"), (checkpoints, "sync_tree"),
     (checkpoints, "sync_folder")],
)  # fmt: skip
def test_a_sync_left_out_is_found(monkeypatch, module, name):
    """The simulator can fail: without any one of our syncs a promise breaks in some state."""
    monkeypatch.setattr(module, name, lambda *_: None)
    assert power_loss.run(("first save",)).failures


def test_unsynced_writes_may_be_whole_torn_or_absent(tmp_path):
    with disk_model.recording(tmp_path) as log:
        descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"abcd")
        os.close(descriptor)
    states = {
        repr(disk_model.replay(log.base, log.log, choice))
        for choice in disk_model.crash_choices(log.log, None)[1]
    }
    assert states == {repr(t) for t in ({}, {"a": b""}, {"a": b"ab\0\0"}, {"a": b"abcd"})}


def test_a_write_past_the_recording_is_noticed(tmp_path):
    with pytest.raises(RuntimeError, match="past the recording"), disk_model.recording(tmp_path):
        (tmp_path / "a").write_text("unseen")
