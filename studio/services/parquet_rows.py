"""Rows from Parquet, batch by batch, within a budget of decoded bytes.

A small Parquet file can unpack to any size (a dictionary with one long value, repeated). What
counts is therefore what comes out, not what the file's own figures say; dictionaries, which stay
packed in a batch, are counted by the import when their values are written. Imports pyarrow lazily:
only the import child pays for it, and only for such files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studio.services.json_rows import NumberedRow
from studio.services.source_bytes import Source, file_error

BATCH_ROWS = 256


class ParquetTable:
    """One Parquet file."""

    def __init__(self, source: Source) -> None:
        import pyarrow  # noqa: PLC0415 - heavy; only for Parquet
        import pyarrow.parquet  # noqa: PLC0415

        self._errors = (pyarrow.ArrowException, OSError)
        self._source = source
        try:
            self._file = pyarrow.parquet.ParquetFile(source.path, memory_map=True)
        except self._errors as error:
            raise self._damaged(error) from error
        self.columns: list[str] = list(self._file.schema_arrow.names)
        self.num_rows: int = self._file.metadata.num_rows

    def rows(self) -> Iterator[NumberedRow]:
        """All rows; Parquet has no lines."""
        decoded_bytes = 0
        for batch in self._batches():
            decoded_bytes += batch.nbytes
            if decoded_bytes > self._source.max_bytes:
                raise self._source.too_big()
            yield from ((None, row) for row in batch.to_pylist())

    def _batches(self) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
        except self._errors as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Exception:
        return file_error(
            self._source.name,
            f"the Parquet data cannot be read: {str(error).splitlines()[0][:160]}",
            remedy="Export the file again",
        )
