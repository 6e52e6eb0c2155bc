"""Rows from Parquet, batch by batch, within a budget of decoded bytes.

A small Parquet file can unpack to any size (a dictionary with one long value, repeated). What
counts is therefore what comes out, not what the file's own figures say; dictionaries, which stay
packed in a batch, are counted by the import when their values are written; and a row counts even
where it holds nothing, for nothing can stand there billions of times. Imports pyarrow lazily:
only the import child pays for it, and only for such files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from studio.core.examples import RowProblem, shown
from studio.services.json_rows import NumberedRow
from studio.services.source_bytes import CHUNK_BYTES, Source, file_error

BATCH_ROWS = 256
ROW_BYTES = 256  # what a row counts at least


class ParquetTable:
    """One Parquet file."""

    def __init__(self, source: Source) -> None:
        import pyarrow  # noqa: PLC0415 - heavy; only for Parquet
        import pyarrow.parquet  # noqa: PLC0415

        self._errors = (pyarrow.ArrowException, OSError, ValueError)
        self._source = source
        try:
            # Read in blocks: a mapped file would count as memory in use.
            self._file = pyarrow.parquet.ParquetFile(
                source.path, buffer_size=CHUNK_BYTES, page_checksum_verification=True
            )
            self.columns: list[str] = list(self._file.schema_arrow.names)
            self.num_rows: int = self._file.metadata.num_rows
        except MemoryError:  # an ArrowException too, but it says nothing about the file
            raise
        except self._errors as error:
            raise self._damaged(error) from error
        twice = next((c for c, count in Counter(self.columns).items() if count > 1), None)
        if twice is not None:
            raise file_error(
                source.name, "two columns have the same name", value=twice,
                remedy="Give each column a name of its own",
            )  # fmt: skip

    def rows(self) -> Iterator[NumberedRow]:
        """All rows; Parquet has no lines."""
        decoded_bytes = 0
        for batch in self._batches():
            decoded_bytes += max(batch.nbytes, ROW_BYTES * batch.num_rows)
            if decoded_bytes > self._source.max_bytes:
                raise self._source.too_big()
            yield from ((None, row) for row in _to_rows(batch))

    def _batches(self) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
        except MemoryError:
            raise
        except self._errors as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Exception:
        """What the library says is about its own classes; only what it lacks is worth telling."""
        reason = "the Parquet data cannot be read: it is damaged or incomplete"
        if isinstance(error, NotImplementedError):
            said = shown(str(error).partition("\n")[0])[:160]
            reason = f"the Parquet data cannot be read: {said}"
        return file_error(self._source.name, reason, remedy="Export the file again")


def _to_rows(batch: Any) -> list[Any]:
    """A batch as rows; values that Python cannot hold (broken text, far dates) cost their row."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
        return [_to_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _to_row(slice: Any) -> dict[str, Any] | RowProblem:
    try:
        return slice.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return RowProblem(
            f"a value cannot be read: {str(error).partition(chr(10))[0][:80]}",
            "Correct the value or leave its column out",
        )
