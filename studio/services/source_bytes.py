"""What a data file is made of: its kind by content, its bytes within a budget.

Owns: refusing files that are not data (archives, pictures, pickles, web pages) with one sentence
each, and opening gzip transparently. Knows nothing of rows; encodings are told in source_coding.
Runs in the import child only; nothing here executes or unpickles what it reads.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from studio.core.errors import DatasetError
from studio.services.read_options import ReadOptions

HEAD_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20

# Longest text of one row or cell; what is longer is a broken quote or no row at all.
MAX_ROW_CHARS = 16 * 1024 * 1024

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
PARQUET_MAGIC, GZIP_MAGIC = b"PAR1", b"\x1f\x8b"
_AS_TABLE = "Save it as CSV, JSONL or Parquet"
_UNPACK = "Unpack it and choose a ZIP, CSV, JSON, JSONL, Parquet or TXT file"
NOT_DATA = "Choose a CSV, JSON, JSONL, Parquet or TXT file"
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "Save the sheet as CSV"),
    (b"\x89PNG", "a PNG picture", NOT_DATA),
    (b"\xff\xd8\xff", "a JPEG picture", NOT_DATA),
    (b"GIF8", "a GIF picture", NOT_DATA),
    (b"RIFF", "a sound, video or WebP file", NOT_DATA),
    (b"%PDF", "a PDF document", "Copy its text into a TXT file"),
    (b"{\\rtf", "an RTF document", "Save it as plain text"),
    (b"\x7fELF", "a program", NOT_DATA),
    (b"MZ", "a Windows program", NOT_DATA),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", _AS_TABLE),
    (b"\x89HDF", "an HDF5 file", _AS_TABLE),
    (b"ARROW1", "an Arrow or Feather file", "Save it as Parquet"),
    (b"Obj\x01", "an Avro file", _AS_TABLE),
    (b"ORC", "an ORC file", "Save it as Parquet"),
    (b"GGUF", "a GGUF model", "Choose a data file; models belong into the Train tab"),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"PARE", "an encrypted Parquet file", "Export it without encryption"),
    (GZIP_MAGIC, "a gzip file inside a gzip file", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95}\]cX(\x8a\x8c]")
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html[\s>]|<head[\s>])", re.IGNORECASE)
_LFS = b"version https://git-lfs.github.com/spec/"


def file_error(name: str, reason: str, *, line: int | None = None, **parts: Any) -> DatasetError:
    """A DatasetError that begins with the file and, where known, the line."""
    place = name if line is None else f"{name}, line {line}"
    return DatasetError(f"{place}: {reason}", **parts)


@dataclass(frozen=True)
class TextCoding:
    """How bytes become text. `note` is set where that was a guess."""

    encoding: str
    errors: str = "strict"
    note: str | None = None

    @property
    def is_valid_utf8(self) -> bool:
        """Whether every byte was found to be UTF-8."""
        return self.encoding in ("utf-8", "utf-8-sig") and self.errors == "strict"


class Source:
    """One data file, opened as often as needed, each time within the byte budget.

    Args:
        path: the file.
        name: what the user calls it; begins every error.
        max_bytes: decoded bytes that may be read in one pass; more is refused.
        options: how it is read where its content leaves a choice.

    Attributes:
        done_bytes: how far it has been read by readers that do not read from its start.
        is_member: whether it is part of an archive.
    """

    is_member = False

    def __init__(
        self, path: Path, name: str, *, max_bytes: int, options: ReadOptions | None = None
    ) -> None:
        self.path = path
        self.name = name
        self.max_bytes = max_bytes
        self.options = options or ReadOptions()
        self.done_bytes = 0
        self.size_bytes = path.stat().st_size
        self._raw: BinaryIO | None = None
        with path.open("rb") as file:
            self.is_gzip = file.read(2) == GZIP_MAGIC

    def open(self) -> io.BufferedReader:
        """Decoded bytes from the start."""
        self._raw = raw = self.path.open("rb")
        inner = gzip.GzipFile(fileobj=raw) if self.is_gzip else raw
        return io.BufferedReader(_Budgeted(inner, raw, self), CHUNK_BYTES)

    def open_text(self, coding: TextCoding, *, newline: str | None = None) -> TextIO:
        """Decoded text from the start."""
        return io.TextIOWrapper(
            self.open(), encoding=coding.encoding, errors=coding.errors, newline=newline
        )

    def read_bytes(self) -> int:
        """How far the file itself has been read, for progress."""
        read = 0 if self._raw is None or self._raw.closed else self._raw.tell()
        return max(read, self.done_bytes)

    def too_big(self) -> DatasetError:
        """The error of a file that unpacks to more than the budget."""
        return file_error(
            self.name, f"it unpacks to more than {self.max_bytes / 2**20:.0f} MiB",
            remedy="Split the file into smaller ones",
        )  # fmt: skip

    def head(self) -> bytes:
        """The first bytes."""
        with self.open() as stream:
            return stream.read(HEAD_BYTES)


class _Budgeted(io.RawIOBase):
    """Counts what comes out of a stream and refuses to go past the budget."""

    def __init__(self, inner: Any, raw: BinaryIO, source: Source) -> None:
        self._inner = inner
        self._raw = raw  # a GzipFile leaves the file below it open
        self._source = source
        self._count = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        name = self._source.name
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise file_error(
                name, "the gzip data is damaged or incomplete", remedy="Get the file again"
            ) from error
        self._count += len(data)
        if self._count > self._source.max_bytes:
            raise self._source.too_big()
        buffer[: len(data)] = data
        return len(data)


def refuse_foreign(name: str, head: bytes) -> None:
    """Raise DatasetError for what is certainly not a data file."""
    if head.startswith(ZIP_MAGICS):
        raise _zip_error(name, head)
    for magic, kind, remedy in _MAGICS:
        if head.startswith(magic):
            raise file_error(name, f"this is {kind}, not a data file", remedy=remedy)
    if _PICKLE.match(head):
        raise file_error(
            name,
            "this is a Python pickle, which can run code when it is read, so it never is",
            remedy=_AS_TABLE,
        )
    if head[257:262] == b"ustar":
        raise file_error(name, "this is a tar archive, not a data file", remedy=_UNPACK)
    if _WEB_PAGE.match(head):
        raise file_error(
            name, "this is a web page, not a data file",
            remedy="Download the raw file instead of the page that shows it",
        )  # fmt: skip
    if head.startswith(_LFS):
        raise file_error(
            name, "this is only a Git LFS pointer; the data itself was not downloaded",
            remedy="Run git lfs pull",
        )  # fmt: skip
    if head[8:10] == b'{"' and (b'"__metadata__"' in head[8:64] or b'"data_offsets"' in head):
        raise file_error(name, "this is a safetensors model, not a data file", remedy=NOT_DATA)


def _zip_error(name: str, head: bytes) -> DatasetError:
    for mark, kind, remedy in (
        (b"xl/", "an Excel file", "Save the sheet as CSV"),
        (b"word/", "a Word document", "Save it as plain text"),
        (b"ppt/", "a PowerPoint file", "Copy its text into a TXT file"),
        (b"content.xml", "an OpenDocument file", "Save the sheet as CSV or the text as TXT"),
        (b"mimetypeapplication/vnd.oasis", "an OpenDocument file",
         "Save the sheet as CSV or the text as TXT"),
        (b"data.pkl", "a PyTorch file", NOT_DATA),
    ):  # fmt: skip
        if mark in head:
            return file_error(name, f"this is {kind}, not a data file", remedy=remedy)
    office = b"[Content_Types].xml" in head
    if office:
        return file_error(
            name, "this is an Office file, not a data file", remedy="Save the sheet as CSV"
        )
    return file_error(name, "this is a zip archive, not a data file", remedy=_UNPACK)
