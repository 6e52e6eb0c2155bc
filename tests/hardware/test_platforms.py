"""What a refusing disk is called: path, cause, free bytes, and the remedy that fits the cause."""

import errno
import os

import pytest

from studio.core.errors import StoreError
from studio.hardware.platforms import free_text, is_disk_refusal, remove_staged, store_error


@pytest.mark.parametrize(
    ("code", "words", "remedy"),
    [
        (errno.ENOSPC, "No space left on the disk", "Free some space"),
        (errno.EDQUOT, "No space left on the disk", "Free some space"),
        (errno.EIO, "reports an error", "Check the disk"),
        (errno.EROFS, "is read-only", "Make it writable"),
        (errno.EACCES, "no permission", "Give your user"),
        (errno.EPERM, "no permission", "Give your user"),
    ],
)
def test_each_cause_has_its_words_its_remedy_the_path_and_what_is_free(
    tmp_path, code, words, remedy
):
    file = tmp_path / "state.json"
    error = store_error(file, OSError(code, os.strerror(code)))
    assert words in str(error)
    assert remedy in str(error)
    assert str(file) in str(error)
    assert " free" in str(error)
    assert ("permission" in str(error)) == (code in (errno.EACCES, errno.EPERM))


def test_a_deleted_folder_is_not_a_missing_file(tmp_path):
    gone = tmp_path / "run" / "state.json"
    error = store_error(gone, FileNotFoundError(errno.ENOENT, "No such file"))
    assert "its folder is gone" in str(error)
    assert str(gone) in str(error) and " free" in str(error)
    missing = store_error(tmp_path / "a", FileNotFoundError(errno.ENOENT, "No such file"))
    assert "folder is gone" not in str(missing)


@pytest.mark.parametrize(
    ("free", "text"),
    [(0, "0 bytes free"), (999, "999 bytes free"), (12 << 10, "12 KiB free"),
     (1536, "1.5 KiB free"), (300 << 20, "300 MiB free"), (7 << 30, "7.0 GiB free"),
     (5000 << 40, "5000 TiB free")],
)  # fmt: skip
def test_free_bytes_have_a_human_unit(free, text):
    assert free_text(free) == text


def chain(outer, inner):
    outer.__cause__ = inner
    return outer


def test_only_what_a_disk_refused_counts_as_a_refusal():
    full = OSError(errno.ENOSPC, "full")
    assert is_disk_refusal(full)
    assert is_disk_refusal(chain(RuntimeError("write failed"), full))
    assert is_disk_refusal(chain(StoreError("x"), OSError(errno.ENOENT, "gone")))
    assert not is_disk_refusal(FileNotFoundError(errno.ENOENT, "no model there"))
    assert not is_disk_refusal(StoreError("run.json is damaged"))
    assert not is_disk_refusal(ValueError("x"))
    assert not is_disk_refusal(None)


def test_what_a_killed_write_left_is_removed(tmp_path):
    """That of a living writer, and files that only look alike, stay."""
    dead, living = (
        tmp_path / f".state.json.{2**22 - 3}.tmp",
        tmp_path / f".a.json.{os.getpid()}.tmp",
    )
    other = tmp_path / ".notes.tmp"
    for file in (dead, living, other):
        file.write_text("half")
    remove_staged(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, other])
    remove_staged(tmp_path / "absent")
