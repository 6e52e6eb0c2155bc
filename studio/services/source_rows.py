"""Opens a data file of any kind as one stream of rows.

Owns: deciding the kind by content with the file's extension as a hint. The readers themselves are
json_rows, table_rows and parquet_rows. Runs in the import child.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from studio.services import json_documents, json_rows, table_rows
from studio.services.archive_rows import Archive
from studio.services.json_rows import NumberedRow, Opener
from studio.services.parquet_rows import ParquetTable
from studio.services.read_options import DETECT
from studio.services.source_bytes import (
    PARQUET_MAGIC,
    ZIP_MAGICS,
    Source,
    TextCoding,
    file_error,
    refuse_foreign,
)
from studio.services.source_coding import text_coding

_SUFFIXES = (
    ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".text",
    ".markdown",
)  # fmt: skip
_JSON_ARRAY = re.compile(r'\[\s*(["{\[\]]|-?\d|null|true|false|$)')
_JSON_OBJECT = re.compile(r'\{\s*("|\}|$)')
MIN_TABLE_LINES = 3


@dataclass
class Rows:
    """A file as rows.

    Attributes:
        kind: csv, tsv, json, jsonl, parquet, txt or zip.
        columns: names where the file itself declares them, else None.
        notes: what was guessed or chosen, for the user.
        open: starts the stream of rows.
        total: number of rows where the file tells it.
        files: of an archive: name and first row of each member, complete once it is read.
        whole_lines: JSON lines in plain, valid UTF-8, which may be read in ranges.
    """

    kind: str
    open: Callable[[], Iterator[NumberedRow]]
    columns: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    total: int | None = None
    whole_lines: bool = False
    files: list[dict[str, Any]] = field(default_factory=list)


def open_rows(source: Source) -> Rows:
    """Recognise the file.

    Raises:
        DatasetError: it is empty, or of a kind that is no data.
    """
    head = source.head()
    name = source.name
    if not head.strip():
        raise file_error(name, "the file is empty", remedy="Choose a file with rows")
    if head.startswith(ZIP_MAGICS) and not source.is_gzip and not source.is_member:
        archive = Archive(source)
        return Rows("zip", lambda: archive.rows(open_rows), notes=archive.notes,
                    files=archive.files)  # fmt: skip
    if head.startswith(PARQUET_MAGIC):
        return _without_splits(source, _parquet_rows(source))
    refuse_foreign(name, head)
    coding = text_coding(source)
    notes = [] if coding.note is None else [coding.note]
    start = _first_text(source, coding)
    if not start:
        raise file_error(name, "the file is empty", remedy="Choose a file with rows")
    suffix = _suffix(name)
    rows = _json_rows(source, coding, start, suffix)
    if rows is None:
        rows = _without_splits(source, _flat_rows(source, coding, suffix))
    rows.notes[:0] = notes
    return rows


def _without_splits(source: Source, rows: Rows) -> Rows:
    """The rows of a file of a kind that has no splits, unless one was asked for."""
    if source.options.split is not None:
        raise file_error(
            source.name, "the file has no splits", value=source.options.split,
            remedy="Leave the split empty, or choose a file that has this one",
        )  # fmt: skip
    return rows


def _parquet_rows(source: Source) -> Rows:
    if source.is_gzip:
        raise file_error(
            source.name, "this is a Parquet file inside gzip", remedy="Unpack it with gunzip"
        )
    if source.options.encoding != DETECT:
        raise file_error(
            source.name, "a Parquet file has no encoding to be chosen",
            value=source.options.encoding, remedy="Leave the encoding to be detected",
        )  # fmt: skip
    table = ParquetTable(source)
    return Rows("parquet", table.rows, columns=table.columns, total=table.num_rows)


def _suffix(name: str) -> str:
    path = PurePath(name.lower())
    if path.suffix in (".gz", ".gzip"):
        path = PurePath(path.stem)
    return path.suffix if path.suffix in _SUFFIXES else ""


def _first_text(source: Source, coding: TextCoding) -> str:
    """The first characters that are no blanks."""
    with source.open_text(coding) as stream:
        while chunk := stream.read(4096):
            if text := chunk.lstrip(" \t\r\n\ufeff"):
                return text
    return ""


def _json_rows(source: Source, coding: TextCoding, start: str, suffix: str) -> Rows | None:
    """JSON in any of its shapes, or None where the text is none."""

    def opener():
        return source.open_text(coding)

    by_lines = suffix in (".jsonl", ".ndjson")
    lines = Rows(
        "jsonl", lambda: json_rows.read_json_lines(opener),
        whole_lines=not source.is_gzip and coding.is_valid_utf8,
    )  # fmt: skip
    if _JSON_OBJECT.match(start) and (by_lines or json_rows.is_json_lines(opener)):
        return _without_splits(source, lines)
    if _JSON_ARRAY.match(start) and by_lines and _is_lines_of_lists(opener):
        return _without_splits(source, lines)
    if _JSON_OBJECT.match(start) or (_JSON_ARRAY.match(start) and suffix != ".md"):
        shape = json_documents.find_shape(opener, source.name, split=source.options.split)
        notes = [] if shape.note is None else [shape.note]
        return Rows(
            "json", lambda: json_documents.read_json(opener, source.name, shape), notes=notes
        )
    if by_lines or suffix == ".json":
        if by_lines and json_rows.is_json_lines(opener):  # only the first lines are broken
            return _without_splits(source, lines)
        raise file_error(
            source.name, "the file is called JSON but does not begin like JSON", line=1,
            value=start[:40], remedy="Export it again, or rename it to .csv or .txt",
        )  # fmt: skip
    return None


def _is_lines_of_lists(opener: Opener) -> bool:
    """Whether JSON lines hold one list of turns each, instead of one array over all lines."""
    with opener() as stream:
        first, second = (stream.readline(json_rows.MAX_ROW_CHARS).strip() for _ in range(2))
    if not first.endswith("]") or len(first) <= 2:
        return False
    return bool(second) or json_documents.is_list_of_turns(first)


def _flat_rows(source: Source, coding: TextCoding, suffix: str) -> Rows:
    """A delimited table or plain text."""

    def table_opener():
        return source.open_text(coding, newline="")

    def text_opener():
        return source.open_text(coding)

    hint = {".csv": ".csv", ".tsv": ".tsv", ".tab": ".tsv"}.get(suffix)
    unit = source.options.text_unit
    if hint is None and (
        unit != DETECT or not _looks_like_table(text_opener, plain=suffix != "")
    ):  # fmt: skip
        return _text_rows(text_opener, unit)
    dialect = table_rows.find_dialect(table_opener, source.name, hint=hint)
    return Rows(
        "tsv" if dialect.delimiter == "\t" else "csv",
        lambda: table_rows.read_table(table_opener, source.name, dialect),
        columns=dialect.columns,
        notes=list(dialect.notes),
    )


def _text_rows(opener: Opener, unit: str) -> Rows:
    """Plain text by lines, by paragraphs or as one document."""
    if unit == "document":
        return Rows(
            "txt", lambda: table_rows.read_document(opener), columns=["text"],
            notes=["the whole file is one row"],
        )  # fmt: skip
    by_lines = unit == "line"
    note = "each line is a row" if by_lines else "each paragraph is a row"
    if unit == DETECT and not table_rows.has_blank_line(opener):
        by_lines, note = True, "no blank lines: each line is a row"
    return Rows(
        "txt", lambda: table_rows.read_paragraphs(opener, by_lines), columns=["text"], notes=[note]
    )


def _looks_like_table(opener: Opener, *, plain: bool) -> bool:
    """Whether text without a table's extension is one all the same.

    Args:
        plain: the name says text (.txt); then only tabs in every line convince.
    """
    with opener() as stream:
        lines = [line for _ in range(50) if (line := stream.readline(64 * 1024)).strip()]
    if len(lines) < MIN_TABLE_LINES:
        return False
    tabs = {line.count("\t") for line in lines}
    if len(tabs) == 1 and tabs != {0}:
        return True
    return not plain and table_rows.delimiter_of(lines) is not None
