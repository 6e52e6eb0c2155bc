"""Reads one data file, row by row, in a process of its own with limits.

    python -m studio.services.import_child REQUEST.json

Owns: detection, normalising, counting problems, and the files it leaves in the request's folder:
data.jsonl (examples), the files of services.findings, progress.json while it works. Imports neither
torch nor gradio; pyarrow only for Parquet.

A big file of JSON lines is read by two processes (services.import_parts).

REQUEST.json: {source, name, folder, format, mapping, workers, limits: {memory_bytes, cpu_s,
file_bytes, decoded_bytes}}.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import RowProblem
from studio.core.format_notes import notes_of
from studio.core.formats import check_mapping
from studio.core.sniff import SAMPLE_ROWS, UnknownFormatError, columns_of, mapping_for, sniff
from studio.services.example_file import ExampleFile
from studio.services.findings import clipped
from studio.services.import_parts import write_lines
from studio.services.import_rows import Outcome, RowWriter
from studio.services.job_child import run_child
from studio.services.json_rows import NumberedRow
from studio.services.progress_file import ProgressFile
from studio.services.read_options import ReadOptions
from studio.services.source_bytes import Source, file_error
from studio.services.source_rows import Rows, open_rows

PREVIEW_ROWS = 20
SAMPLE_CHARS = 32 * 1024 * 1024
MAX_COLUMNS, MAX_COLUMN_CHARS = 2000, 500
PREVIEW_COLUMNS = 50


def read_file(request: dict[str, Any]) -> dict[str, Any]:
    """Import the requested file and return the facts for dataset.json."""
    name = request["name"]
    source = Source(
        Path(request["source"]), name, max_bytes=request["limits"]["decoded_bytes"],
        options=ReadOptions.of(request.get("options")),
    )  # fmt: skip
    rows = open_rows(source)
    stream = rows.open()
    sample = list(_take_sample(stream))
    good = [row for _, row in sample if not isinstance(row, RowProblem)]
    if not good:
        raise _nothing_usable(name, sample)
    columns = _columns(rows, good, name)
    format, mapping, reasons = _settle(request, good, columns, name)
    preview = [_preview(row) for row in good[:PREVIEW_ROWS]]
    rows.notes += notes_of(format, mapping, good)
    del good
    outcome, shape = Outcome(), (format, mapping)
    if rows.whole_lines:
        del sample, stream
        facts = write_lines(request, source, shape, outcome)
    else:
        stream = _chain(sample, stream)
        facts = _write_examples(rows, stream, request, source, shape, outcome)
    if outcome.used == 0:
        raise _no_examples(name, outcome, columns)
    return {
        "kind": rows.kind, "notes": rows.notes, "columns": columns, "format": format,
        "mapping": mapping, "reasons": reasons, "preview": preview,
        "counts": {"rows": outcome.rows, "used": outcome.used,
                   "left_out": outcome.rows - outcome.used},
        "problems": [{**p, "count": outcome.reasons[p["reason"]]} for p in outcome.problems],
        "problem_reasons": dict(outcome.reasons.most_common()), "files": rows.files,
        **facts,
    }  # fmt: skip


def _take_sample(stream: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    """The rows that detection looks at: few in number and in size."""
    chars = 0
    for count, (line, row) in enumerate(stream, 1):
        yield line, row
        chars += 0 if isinstance(row, RowProblem) else _size_chars(row)
        if count >= SAMPLE_ROWS or chars >= SAMPLE_CHARS:
            return


def _size_chars(row: dict[str, Any]) -> int:
    """About how long a row is. One nested as deep as can be parsed is too deep to be printed."""
    try:
        return sum(len(v) if isinstance(v, str) else len(str(v)) for v in row.values())
    except RecursionError:
        return SAMPLE_CHARS // SAMPLE_ROWS


def _chain(sample: list[NumberedRow], rest: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    """The sample again, then the rest; the sample's memory goes as it is used."""
    sample.reverse()
    while sample:
        yield sample.pop()
    yield from rest


def _columns(rows: Rows, good: list[dict[str, Any]], name: str) -> list[str]:
    columns = rows.columns if rows.columns is not None else columns_of(good)
    if len(columns) > MAX_COLUMNS:
        raise file_error(
            name, f"its first rows have {len(columns):,} columns",
            allowed=f"{MAX_COLUMNS:,} columns", remedy="Keep the columns that are to be learned",
        )  # fmt: skip
    longest = max(columns, key=len, default="")
    if len(longest) > MAX_COLUMN_CHARS:
        raise file_error(
            name, "a column has a very long name", value=longest[:60],
            allowed=f"{MAX_COLUMN_CHARS} characters", remedy="Give the column a short name",
        )  # fmt: skip
    return columns


def _settle(
    request: dict[str, Any], good: list[dict[str, Any]], columns: list[str], name: str
) -> tuple[str, dict[str, str], list[str]]:
    """Format and mapping: those asked for, completed by detection."""
    format, mapping = request["format"], dict(request["mapping"] or {})
    try:
        if format == "auto":
            found = sniff(good, columns)
            format, mapping = found.format, {**found.mapping, **mapping}
            reasons = found.reasons
        else:
            mapping = mapping or _asked_mapping(format, good, columns)
            reasons = ["chosen by hand"]
        check_mapping(format, mapping, columns)
    except UnknownFormatError as error:
        parts = {"value": error.value, "allowed": error.allowed, "remedy": error.remedy}
        raise UnknownFormatError(f"{name}: {error.what}", columns=columns, **parts) from error
    except DatasetError as error:
        parts = {"value": error.value, "allowed": error.allowed, "remedy": error.remedy}
        raise DatasetError(f"{name}: {error.what}", **parts) from error
    return format, mapping, reasons


def _asked_mapping(format: str, good: list[dict[str, Any]], columns: list[str]) -> dict[str, str]:
    """The mapping for a format chosen by hand: what detection finds if it agrees, else by name."""
    try:
        found = sniff(good, columns)
    except UnknownFormatError:
        return mapping_for(format, columns)
    return found.mapping if found.format == format else mapping_for(format, columns)


def _write_examples(
    rows: Rows, stream: Iterator[NumberedRow], request: dict[str, Any], source: Source,
    shape: tuple[str, dict[str, str]], outcome: Outcome,
) -> dict[str, Any]:  # fmt: skip
    """Write and check the examples; counts and problems go to `outcome`, the rest is returned."""

    def progress() -> dict[str, Any]:
        done, whole = outcome.rows, rows.total
        if not whole:
            done, whole = source.read_bytes(), max(1, source.size_bytes)
        return {"frac": min(1.0, done / whole), "rows": outcome.rows}

    folder = Path(request["folder"])
    told = ProgressFile(folder)
    with ExampleFile(folder) as target:
        writer = RowWriter(target, shape, outcome, source.max_bytes, source.too_big)
        for line, row in stream:
            told.tell_facts(progress)
            writer.take(line, row)
        outcome.used = target.used
        return target.finish()


def _preview(row: dict[str, Any]) -> dict[str, str]:
    """A source row as short texts, for the page's first look."""
    first = itertools.islice(row.items(), PREVIEW_COLUMNS)
    return {column: clipped(value).encode("utf-8", "replace").decode() for column, value in first}


def _nothing_usable(name: str, sample: list[NumberedRow]) -> DatasetError:
    """The error of a file whose first rows are all unreadable, or that has none."""
    problems = [(line, row) for line, row in sample if isinstance(row, RowProblem)]
    if not problems:
        return file_error(name, "the file has no rows", remedy="Choose a file with rows")
    line, first = problems[0]
    return file_error(
        name, f"no usable rows; the first problem: {first.reason}", line=line, remedy=first.remedy
    )


def _no_examples(name: str, outcome: Outcome, columns: list[str]) -> DatasetError:
    first = outcome.problems[0]
    place = f"row {first['row']}: " if first["line"] is None else ""
    return file_error(
        name,
        f"no usable rows, none of {outcome.rows}; the first problem: {place}{first['reason']}",
        line=first["line"],
        allowed=f"columns of the file: {', '.join(columns)}"[:300],
        remedy=first["remedy"],
    )


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, read_file))
