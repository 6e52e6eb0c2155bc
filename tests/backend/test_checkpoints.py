"""A checkpoint is whole or not there, whatever is damaged and wherever the save breaks."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from studio.backend import checkpoints
from studio.core.errors import DivergedError, StoreError

FACTS = {"config_sha256": "c", "attempt": 1}


def fill(folder, value=1.0):
    save_file({"w": torch.full((4,), value)}, folder / "adapter_model.safetensors")
    (folder / "optimizer.pt").write_bytes(b"state")


def save(folder, step, **options):
    return checkpoints.save(folder, step, options.get("fill", fill), FACTS)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_manifest_lists_every_file_with_size_and_hash(tmp_path):
    saved = save(tmp_path, 3)
    manifest = json.loads((saved.path / "MANIFEST.json").read_text())
    assert manifest["files"].keys() == {"adapter_model.safetensors", "optimizer.pt"}
    assert manifest["files"]["optimizer.pt"]["bytes"] == 5
    assert len(manifest["files"]["optimizer.pt"]["sha256"]) == 64
    assert (manifest["step"], manifest["config_sha256"]) == (3, "c")
    assert names(tmp_path) == ["step-3"]
    assert checkpoints.find_newest(tmp_path).checkpoint == saved


def test_older_ones_go_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-10", "step-2"]

    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "rename", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        save(tmp_path, 11)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-10", "step-2"]


def test_a_damaged_one_does_not_count_as_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-2" / "optimizer.pt").write_bytes(b"other")
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step-3", "step-4"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    save(tmp_path, 1)
    with pytest.raises(DivergedError, match="no longer finite"):
        save(tmp_path, 2, fill=lambda folder: fill(folder, value))
    assert names(tmp_path) == ["step-1"]


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos"), OSError(errno.EIO, "I/O error")])
def test_a_save_that_fails_leaves_nothing(tmp_path, error):
    def broken(folder):
        fill(folder)
        raise error

    with pytest.raises(StoreError):
        save(tmp_path, 1, fill=broken)
    assert names(tmp_path) == []


def test_every_failing_call_of_a_save_leaves_the_older_one_valid(tmp_path, monkeypatch):
    """The k-th fsync or rename fails, for every k: never a false checkpoint, never none."""
    save(tmp_path, 1)
    real_fsync, real_rename = os.fsync, os.rename
    counter = {"calls": 0, "fail_at": 0}

    def count():
        counter["calls"] += 1
        if counter["calls"] == counter["fail_at"]:
            raise OSError(errno.EIO, "Input/output error")

    def fsync(descriptor):
        count()
        real_fsync(descriptor)

    def rename(*args):
        count()
        real_rename(*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    for fail_at in range(1, 50):
        counter.update(calls=0, fail_at=fail_at)
        try:
            save(tmp_path, 100 + fail_at)
        except StoreError:
            assert checkpoints.find_newest(tmp_path).checkpoint is not None
            continue
        break
    assert 5 < fail_at < 49
    assert checkpoints.find_newest(tmp_path).checkpoint.step == 100 + fail_at


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "MANIFEST.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "flipped", "longer"])
def test_any_damage_is_seen_and_named(tmp_path, name, how):
    save(tmp_path, 1)
    file = save(tmp_path, 2).path / name
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "flipped":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    else:
        file.write_bytes(data + b"x")
    found = checkpoints.find_newest(tmp_path)
    assert found.checkpoint.step == 1
    [skipped] = found.skipped
    assert skipped.startswith("step-2: ")
    assert name in skipped


def test_what_a_crash_left_is_cleaned_and_never_taken(tmp_path):
    save(tmp_path, 1)
    staging = tmp_path / ".staging-step-2"
    staging.mkdir()
    fill(staging)
    (tmp_path / "step-3").mkdir()
    assert checkpoints.find_newest(tmp_path).checkpoint.step == 1
    checkpoints.clean(tmp_path)
    assert names(tmp_path) == ["step-1", "step-3"]


def test_saving_a_step_again_supersedes_it(tmp_path):
    save(tmp_path, 2)
    again = save(tmp_path, 2, fill=lambda folder: fill(folder, 9.0))
    assert checkpoints.verify(again.path) is None
    assert names(tmp_path) == ["step-2"]


def test_too_little_space_is_said_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 10)
    with pytest.raises(StoreError, match="Not enough space"):
        save(tmp_path, 2)


@pytest.mark.parametrize("crash_after", [0, 1, 2])
def test_replacing_the_adapter_survives_a_crash_anywhere(tmp_path, monkeypatch, crash_after):
    target, staged = tmp_path / "adapter", tmp_path / ".staging-adapter"
    for folder, text in ((target, "old"), (staged, "new")):
        folder.mkdir()
        (folder / "a").write_text(text)
    real, calls = os.rename, []

    def rename(*args):
        if len(calls) == crash_after:
            raise KeyboardInterrupt
        calls.append(args)
        real(*args)

    monkeypatch.setattr(checkpoints.os, "rename", rename)
    if crash_after < 2:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.replace_folder(staged, target)
    else:
        checkpoints.replace_folder(staged, target)
    monkeypatch.undo()
    checkpoints.restore_folder(target)
    assert (target / "a").read_text() == ("new" if crash_after == 2 else "old")
    assert not (tmp_path / ".old-adapter").exists()


def test_hash_does_not_depend_on_the_order_of_keys():
    hashed = checkpoints.hash_values
    assert hashed({"a": 1, "b": [2]}) == hashed({"b": [2], "a": 1})
    assert hashed({"a": 1}) != hashed({"a": 2})
