"""Holding an adapter still while it is checked and read.

A run that is resumed meanwhile replaces its adapter and removes checkpoints. The files are linked
into a folder of their own first: what was checked is what is loaded, and all of it is of one step.
Knows nothing of models; who may be read at all is the caller's to say.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from studio.core.errors import BusyError, StoreError
from studio.hardware.platforms import make_folder, store_error

TRIES = 20
_PAUSE_S = 0.02


@contextlib.contextmanager
def held_adapter(find: Callable[[], tuple[Path, str]], tmp: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the adapter that `find` names, and its source; gone afterwards.

    Raises:
        BusyError: it is replaced faster than it can be taken.
        StudioError: of `find`; StoreError: the disk refuses.
    """
    make_folder(tmp)
    held = Path(tempfile.mkdtemp(prefix="adapter-", dir=tmp))
    try:
        yield held, _take(find, held)
    finally:
        shutil.rmtree(held, ignore_errors=True)


def _take(find: Callable[[], tuple[Path, str]], held: Path) -> str:
    missing: StoreError | None = None
    for _ in range(TRIES):
        try:
            folder, source = find()
        except StoreError as error:  # for a moment it has no name while it is replaced
            missing = error
        else:
            missing = None
            if _link_all(folder, held):
                return source
        threading.Event().wait(_PAUSE_S)
    if missing is not None:
        raise missing
    raise BusyError("The run's adapter is being replaced", remedy="Try again in a moment")


def _link_all(folder: Path, held: Path) -> bool:
    """Whether all files were taken while the folder stayed the same one."""
    for old in held.iterdir():
        old.unlink()
    try:
        before = _identity(folder)
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.is_symlink():
                _link(file, held / file.name)
        return _identity(folder) == before
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(folder, error) from error


def _identity(folder: Path) -> tuple[int, int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _link(source: Path, target: Path) -> None:
    """Finished files are never changed in place, so a link is as good as a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without links
        shutil.copyfile(source, target)
