"""The file a user names, from a path to a copy of our own: checked, copied, hashed.

Owns: refusing what is no plain local file (addresses, pipes, devices), noticing a file
that changes while it is copied, and how a file is called. A data path is never fetched
from a network, and nothing is opened that could wait for ever. Knows nothing of what is inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import BinaryIO

from studio.core.errors import DatasetError, StoreError
from studio.core.examples import shown
from studio.hardware.platforms import free_bytes, store_error, sync_file
from studio.services.source_folder import pack_folder

COPY_BYTES = 1 << 20
Told = Callable[[int, int], None]
SPARE_BYTES = 64 * 2**20  # must stay free beside a copy of the file and its rows
MAX_NAME_CHARS = 255
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)+/|\\\\")
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


def shown_name(path: PurePath) -> str:
    """A file's name as the user reads it."""
    return shown(path.name)[:MAX_NAME_CHARS] or "data"


def is_address(reference: str) -> bool:
    """Whether a reference points to another machine: http://, s3://, hf://, \\\\server\\share."""
    return _ADDRESS.match(reference.strip()) is not None


def local_path(reference: Path | str) -> Path:
    """The path that a reference means.

    Raises:
        DatasetError: it is an address, or no path at all.
    """
    text = str(reference)
    if is_address(text):
        raise DatasetError(
            "A data file is never fetched from an address", value=text,
            allowed="a file on this machine, or hf:<owner/name> for a Hugging Face data set",
            remedy="Download the file and choose it",
        )  # fmt: skip
    if not text.strip() or "\0" in text:
        raise DatasetError(
            "This is no path of a file", value=text, remedy="Choose a CSV, JSON, JSONL, Parquet or "
            "TXT file",
        )  # fmt: skip
    with contextlib.suppress(RuntimeError):  # no such user: then ~ is a name like any other
        return Path(text).expanduser()
    return Path(text)


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """The file, open for reading and certain to be a plain one with something in it."""
    try:
        _require_plain(path.stat(), path, name)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise DatasetError(
            "There is no such file, data set or sample", value=str(path),
            allowed="a file or folder (CSV, TSV, JSON, JSONL, Parquet, TXT, ZIP), a data set of "
            "the workspace, a sample or hf:<id>",
            remedy="Check the path",
        ) from error  # fmt: skip
    except OSError as error:
        raise DatasetError(
            f"{name} cannot be opened: {error.strerror or error}", remedy="Check its permissions"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        # Again, for what is open now: the path may have been given to something else meanwhile.
        _require_plain(os.fstat(file.fileno()), path, name)
        yield file


def _require_plain(facts: os.stat_result, path: Path, name: str) -> None:
    """Raise DatasetError unless this is a regular file with something in it."""
    if stat.S_ISDIR(facts.st_mode):
        raise DatasetError(f"{name} is a folder", value=str(path), remedy="Choose a file inside it")
    for is_kind, kind in _KINDS:
        if is_kind(facts.st_mode):
            raise DatasetError(
                f"{name} is {kind}, not a file", value=str(path),
                remedy="Write the data into a file and choose that",
            )  # fmt: skip
    if facts.st_size == 0:
        raise DatasetError(f"{name}: the file is empty", remedy="Choose a file with rows")


def take(path: Path, target: Path, name: str, told: Told | None = None) -> tuple[str, int]:
    """A copy of the file, or of a folder's data files as a zip; its sha256 and size.

    Args:
        told: called with the bytes copied and those of the file; what it raises ends the copy.
    """
    if os.path.isdir(path):  # says no where the path is none, too
        return pack_folder(path, target, name, told)
    with opened(path, name) as file:
        return copy_into(target, file, name, told)


def copy_into(target: Path, file: BinaryIO, name: str, told: Told | None = None) -> tuple[str, int]:
    """Copy an open file; its sha256 and size. The original is only read.

    Raises:
        DatasetError: it cannot be read, or changed meanwhile (a growing file has no end).
        StoreError: the workspace cannot hold it.
    """
    before = os.fstat(file.fileno())
    _require_space(target, before.st_size)
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("wb") as copy, ThreadPoolExecutor(1, "sha256") as beside:
            hashed: Future[None] | None = None
            while size <= before.st_size and (chunk := _read(file, name)):
                if hashed is not None:
                    hashed.result()
                hashed = beside.submit(digest.update, chunk)
                copy.write(chunk)
                size += len(chunk)
                if told is not None:
                    told(size, before.st_size)
            copy.flush()
            sync_file(copy.fileno())
    except OSError as error:
        raise store_error(target, error) from error
    after = os.fstat(file.fileno())
    if (size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DatasetError(
            f"{name}: the file was changed while it was copied",
            remedy="Wait until it is written to its end and import it again",
        )
    return digest.hexdigest(), size


def _read(file: BinaryIO, name: str) -> bytes:
    try:
        return file.read(COPY_BYTES)
    except OSError as error:
        raise DatasetError(
            f"{name}: it cannot be read: {error.strerror or error}",
            remedy="Check the disk or the connection it lies on",
        ) from error


def _require_space(target: Path, size_bytes: int) -> None:
    needed = 2 * size_bytes + SPARE_BYTES
    free = free_bytes(target.parent)
    if free is not None and free < needed:
        raise StoreError(
            "No space to import the file",
            value=f"{free / 2**20:.0f} MiB free, about {needed / 2**20:.0f} MiB needed",
            remedy="Free some space or choose another --workspace",
        )
