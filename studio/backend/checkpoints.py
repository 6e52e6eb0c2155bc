"""Checkpoints that are either whole and checked, or not there.

A checkpoint is staged beside its final name, its weights are checked to be finite, it gets a
MANIFEST.json with the size and SHA-256 of each file, everything is made durable, and one rename
makes it visible. Only then are older ones removed; two valid ones stay. Knows nothing of how a
trainer fills the folder, and nothing of training.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from studio.backend.failures import is_out_of_memory
from studio.core.errors import DivergedError, StoreError
from studio.core.runs import read_json
from studio.hardware.platforms import (
    free_bytes,
    free_text,
    make_folder,
    store_error,
    sync_file,
    sync_folder,
    write_json,
)

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
WEIGHTS = "adapter_model.safetensors"
KEEP_VALID = 2
_NAME = re.compile(r"^step-(\d+)$")
_STAGING = ".staging-"
_TRASH = ".trash-"
_OS_CODE = re.compile(r"os error (\d+)")  # as safetensors writes it
_SPACE_FACTOR = 2.2  # a save may take more than the last one, and the file system wants room


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified. `manifest` is its MANIFEST.json."""

    path: Path
    step: int
    manifest: Mapping[str, Any]


@dataclass
class Found:
    """The newest valid checkpoint, and what was passed over with the reason."""

    checkpoint: Checkpoint | None = None
    skipped: list[str] = field(default_factory=list)


def save(
    folder: Path, step: int, fill: Callable[[Path], None], facts: Mapping[str, Any]
) -> Checkpoint:
    """Write checkpoint `step`. When this returns it survives a power cut.

    Args:
        folder: the run's `checkpoints`.
        fill: writes the files into the empty folder it is given.
        facts: goes into the manifest: what this checkpoint belongs to.

    Raises:
        DivergedError: a weight is not finite; nothing was kept.
        StoreError: the disk refused; nothing was kept, older checkpoints are as they were.
    """
    is_new = not folder.is_dir()
    refuse_without(folder.parent)
    make_folder(folder)
    target = folder / f"step-{step}"
    staging = folder / f"{_STAGING}{target.name}"
    with naming(f"The checkpoint of step {step}", staging, target):
        manifest = _write(staging, target, step, fill, facts, is_new)
    try:
        remove_old(folder, keep=target)
    except OSError as error:  # this one is saved all the same
        log.warning("an older checkpoint could not be removed: %s", store_error(folder, error))
    return Checkpoint(target, step, manifest)


def _write(
    staging: Path, target: Path, step: int, fill: Callable[[Path], None],
    facts: Mapping[str, Any], is_new: bool,
) -> dict[str, Any]:  # fmt: skip
    """Stage, check, make durable and show a checkpoint. Returns its manifest."""
    folder = target.parent
    try:
        _check_space(folder)
        if is_new:  # a power cut must not take the folder away with all that is in it
            sync_folder(folder.parent)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700)
        with disk_refusals(staging):
            fill(staging)
        check_finite(staging / WEIGHTS, step)
        files = {file.relative_to(staging).as_posix(): _entry(file) for file in _files(staging)}
        manifest = {"step": step, **facts, "files": files}
        write_json(staging / MANIFEST, manifest)
        sync_tree(staging)
        if target.exists():  # an earlier attempt was here: this one supersedes it
            _discard(target)
        os.rename(staging, target)
        sync_folder(folder)
    except OSError as error:
        raise store_error(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


@contextlib.contextmanager
def naming(what: str, staged: Path, target: Path) -> Iterator[None]:
    """Around code that writes `what`: a refusal of the disk says that it was not saved, and knows
    nothing of the staging area."""
    try:
        yield
    except StoreError as error:
        reason = error.what.replace(str(staged), str(target))
        named = StoreError(
            f"{what} was not saved. {reason}", value=error.value, allowed=error.allowed,
            remedy=error.remedy,
        )  # fmt: skip
        raise named from error.__cause__ or error


def refuse_without(run_folder: Path) -> None:
    """Raise StoreError where the run's folder was deleted: nothing shall bring it back as a ruin
    of one checkpoint."""
    if not run_folder.is_dir():
        error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise store_error(run_folder / "checkpoints", error) from error


@contextlib.contextmanager
def disk_refusals(folder: Path) -> Iterator[None]:
    """Around code that fills `folder`: what torch and safetensors raise where the disk refuses
    becomes a StoreError. They hide the system's code in a text or a chain."""
    try:
        yield
    except OSError as error:
        raise store_error(folder, error) from error
    except (SafetensorError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise store_error(folder, cause) from cause
        if named := _OS_CODE.search(str(error)):
            cause = OSError(int(named.group(1)), os.strerror(int(named.group(1))))
            raise store_error(folder, cause) from cause
        free = free_bytes(folder)
        raise StoreError(
            f"Files could not be written to {folder}",
            value=None if free is None else free_text(free),
            remedy=f"Check the disk ({str(error)[:200]})",
        ) from error


def find_newest(folder: Path) -> Found:
    """The newest checkpoint whose every file is as its manifest says."""
    found = Found()
    for path in _steps(folder):
        problem = verify(path)
        if problem is None:
            manifest = read_json(path / MANIFEST) or {}
            found.checkpoint = Checkpoint(path, int(manifest["step"]), manifest)
            break
        found.skipped.append(f"{path.name}: {problem}")
    return found


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, as a clause; None if it is whole."""
    manifest = read_json(path / MANIFEST)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("step"), int):
        return f"{MANIFEST} is incomplete"
    if WEIGHTS not in files:
        return f"{WEIGHTS} is not listed"
    for name, entry in files.items():
        try:
            problem = _compare(path / name, entry)
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        if problem:
            return f"{name} {problem}"
    return None


def _compare(file: Path, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with one file of a checkpoint."""
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != entry.get("bytes"):
        return f"has {file.stat().st_size} bytes instead of {entry.get('bytes')}"
    return None if _sha256(file) == entry.get("sha256") else "was changed or damaged"


def check_finite(weights: Path, step: int) -> None:
    """Raise DivergedError where a weight is NaN or infinite, StoreError where it is unreadable."""
    import torch  # here alone: what only finds and verifies checkpoints starts without it
    from safetensors.torch import load_file

    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise StoreError(
            "The adapter could not be written whole", value=str(weights), remedy=str(error)
        ) from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DivergedError(
                f"The adapter's weights are no longer finite at step {step}", value=name,
                remedy="Lower train.learning_rate and start again",
            )  # fmt: skip


def clean(folder: Path) -> None:
    """Remove what a crash left half-done. Call before the first save of an attempt."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.name.startswith((_STAGING, _TRASH)):
            shutil.rmtree(path, ignore_errors=True)


def remove_old(folder: Path, *, keep: Path) -> None:
    """Keep the newest valid ones, `keep` among them; damaged ones go once there are enough."""
    valid = [keep]
    for path in _steps(folder):
        if path == keep:
            continue
        if len(valid) < KEEP_VALID and verify(path) is None:
            valid.append(path)
        elif len(valid) >= KEEP_VALID:
            _discard(path)


def sync_tree(root: Path) -> None:
    """Make a folder's files and folders durable."""
    for file in _files(root):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    for inner in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        sync_folder(inner)
    sync_folder(root)


def replace_folder(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of another. Durable once it returns.

    Between the two renames the name is missing for a moment; `restore_folder` mends a crash there.
    """
    old = target.with_name(f".old-{target.name}")
    try:
        sync_tree(staged)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(staged, target)
        sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(StoreError):
            restore_folder(target)  # a disk that refuses this too: the next caller tries again
        raise store_error(target, error) from error
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Undo a `replace_folder` that a crash cut in two."""
    old = target.with_name(f".old-{target.name}")
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                os.rename(old, target)
            except OSError as error:
                raise store_error(target, error) from error


def hash_values(values: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    named = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(named, reverse=True)]


def _files(root: Path) -> Iterable[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _discard(path: Path) -> None:
    """Take a checkpoint's name away first, so that a crash leaves no half-deleted one behind."""
    trash = path.with_name(f"{_TRASH}{path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _check_space(folder: Path) -> None:
    newest = next(iter(_steps(folder)), None)
    last = sum(file.stat().st_size for file in _files(newest)) if newest else 0
    free = free_bytes(folder)
    if free is not None and free < _SPACE_FACTOR * last:
        raise StoreError(
            f"Not enough space on the disk that holds {folder}: a checkpoint needs about "
            f"{_SPACE_FACTOR * last / 2**20:.0f} MiB",
            value=free_text(free),
            remedy="Free some space; the run goes on and tries again at the next save",
        )
