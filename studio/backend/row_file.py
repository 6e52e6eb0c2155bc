"""The examples of a data set as they lie in `data.jsonl`: counted, hashed and read one at a time.

Owns: where each line begins, the file's fingerprint, and what a damaged file means. Rows are never
all in memory. Knows nothing of what a row holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy

from studio.core.errors import DatasetError

_BLOCK_BYTES = 1 << 20


class RowFile(Sequence[dict[str, Any]]):
    """The rows of a `data.jsonl`. Raises DatasetError wherever a row cannot be read.

    Attributes:
        fingerprint: sha256 of the file as it is now: what tokenized rows are kept under.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self.fingerprint, self._starts, self._size = _scan(file)
        except OSError as error:
            raise self._damaged(error) from error
        if not len(self._starts):
            raise DatasetError("The data set is empty", value=str(file),
                               remedy="Choose another file")  # fmt: skip
        self._read(0)  # a file that is something else is told before anything is loaded

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._read(row) for row in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with self._file.open("rb") as lines:
                for line in lines:
                    if line.strip():
                        yield self._parse(line)
        except OSError as error:
            raise self._damaged(error) from error

    def _read(self, row: int) -> dict[str, Any]:
        start = int(self._starts[row])
        try:
            with self._file.open("rb") as file:
                file.seek(start)
                return self._parse(file.readline())
        except OSError as error:
            raise self._damaged(error) from error

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DatasetError:
        return DatasetError(
            "The data set cannot be read", value=str(self._file),
            remedy=f"Import the file again ({error})",
        )  # fmt: skip


def _scan(file: Path) -> tuple[str, numpy.ndarray, int]:
    """Fingerprint, where each line that is not blank begins, and size."""
    digest, ends, size = hashlib.sha256(), [], 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            places = numpy.flatnonzero(numpy.frombuffer(block, numpy.uint8) == 0x0A)
            ends.append(places + (size + 1))
            size += len(block)
    found = numpy.concatenate([numpy.zeros(1, numpy.int64), *ends])
    lengths = numpy.diff(found, append=size)
    return digest.hexdigest(), found[lengths > 1], size  # one byte is the line end alone
