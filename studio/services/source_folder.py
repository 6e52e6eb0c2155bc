"""A folder of data files as one file: a zip without compression, made for the import.

Owns: which files of a folder are taken and the limits on them. The zip is the same for the same
files, so a folder imported twice is one data set. What is inside is read by archive_rows.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from studio.core.errors import DatasetError
from studio.core.examples import shown
from studio.hardware.platforms import store_error
from studio.services.archive_rows import KINDS, MAX_MEMBERS, NESTED

MAX_BYTES = 16 * 2**30
COPY_BYTES = 1 << 20
Told = Callable[[int, int], None]
_SINCE = (1980, 1, 1, 0, 0, 0)  # no time of its own: the same files are the same bytes


def pack_folder(folder: Path, target: Path, name: str, told: Told | None = None) -> tuple[str, int]:
    """Write the zip; its sha256 and size. The folder is only read.

    Args:
        told: called with the bytes packed and those of the folder, also while its files are
            listed and the zip is hashed; what it raises ends the packing.

    Raises:
        DatasetError: the folder holds no data files, too many, or links and archives.
        StoreError: the workspace cannot hold it.
    """
    packed = _Packed(told)
    files = sorted(_files(folder, name, packed))
    if not files:
        raise DatasetError(
            f"{name}: the folder holds no data file", value=str(folder),
            allowed=", ".join(KINDS), remedy="Choose a folder of data files or of texts",
        )  # fmt: skip
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for inner, path in files:
                _add(archive, inner, path, packed)
        return _sha256(target, packed), target.stat().st_size
    except PermissionError as error:
        raise DatasetError(
            f"{name}: a file of the folder cannot be read", value=str(error.filename or ""),
            remedy="Check its permissions",
        ) from error  # fmt: skip
    except OSError as error:
        raise store_error(target, error) from error


class _Packed:
    """How far the packing is."""

    def __init__(self, told: Told | None) -> None:
        self._told = told
        self.done_bytes = self.size_bytes = 0

    def more(self, done_bytes: int = 0) -> None:
        self.done_bytes += done_bytes
        if self._told is not None:
            self._told(min(self.done_bytes, self.size_bytes), self.size_bytes)


def _sha256(target: Path, packed: _Packed) -> str:
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            digest.update(chunk)
            packed.more()
    return digest.hexdigest()


def _add(archive: zipfile.ZipFile, inner: str, path: Path, packed: _Packed) -> None:
    entry = zipfile.ZipInfo(inner, _SINCE)
    entry.external_attr = 0o644 << 16
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
        while chunk := source.read(COPY_BYTES):
            sink.write(chunk)
            packed.more(len(chunk))


def _files(folder: Path, name: str, packed: _Packed) -> Iterator[tuple[str, Path]]:
    """(name inside the zip, path) of each data file; hidden ones are no data."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [found for found in folders if not found.startswith(".")]
        for found in names:
            path = Path(place, found)
            inner = path.relative_to(folder).as_posix()
            if found.startswith(".") or path.suffix.lower() not in (*KINDS, *NESTED):
                continue
            if path.suffix.lower() in NESTED or path.is_symlink() or not path.is_file():
                raise DatasetError(
                    f"{name}: the folder holds a link or an archive", value=shown(inner)[:200],
                    remedy="Unpack archives, and put the files themselves into the folder",
                )  # fmt: skip
            count += 1
            packed.size_bytes += path.stat().st_size
            packed.more()
            if count > MAX_MEMBERS or packed.size_bytes > MAX_BYTES:
                raise DatasetError(
                    f"{name}: the folder holds too much", value=f"{count:,} files or more",
                    allowed=f"{MAX_MEMBERS:,} files, {MAX_BYTES >> 30} GiB",
                    remedy="Choose a folder with less in it",
                )  # fmt: skip
            yield inner, path
