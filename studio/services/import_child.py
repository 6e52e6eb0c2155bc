"""Reads one data file, row by row, in a process of its own with limits.

    python -m studio.services.import_child REQUEST.json

Owns: the limits it sets on itself, detection, normalising, counting problems, and the files it
leaves in the request's folder: data.jsonl (examples), the files of services.findings,
result.json (facts or an error), progress.json while it works. A file that eats memory, time or
disk ends this child and nothing else. Imports neither torch nor gradio; pyarrow only for Parquet.

A big file of JSON lines is read by two processes (services.import_parts).

REQUEST.json: {source, name, folder, format, mapping, workers, limits: {memory_bytes, cpu_s,
file_bytes, decoded_bytes}}.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError, StudioError
from studio.core.examples import RowProblem
from studio.core.format_notes import notes_of
from studio.core.formats import check_mapping
from studio.core.sniff import SAMPLE_ROWS, UnknownFormatError, columns_of, mapping_for, sniff
from studio.services.example_file import ExampleFile
from studio.services.import_parts import PartError, write_lines
from studio.services.import_rows import Outcome, Progress, RowWriter
from studio.services.json_rows import NumberedRow
from studio.services.read_options import ReadOptions
from studio.services.source_bytes import Source, file_error
from studio.services.source_rows import Rows, open_rows

PREVIEW_ROWS, PREVIEW_CHARS = 20, 400
SAMPLE_CHARS = 32 * 1024 * 1024
ADDRESS_ROOM_BYTES = 2 * 2**30
MAX_COLUMNS, MAX_COLUMN_CHARS = 2000, 500
PREVIEW_COLUMNS = 50


def set_limits(limits: dict[str, int]) -> None:
    """Limit this process. Windows has no such limits: there the parent alone watches.

    Memory is limited by what is allocated (RLIMIT_DATA); the address space gets room on top for
    libraries and thread stacks, which reserve far more than they use.
    """
    if os.name == "nt":
        return
    import resource  # noqa: PLC0415 - POSIX only

    for kind, amount in (
        (resource.RLIMIT_DATA, limits["memory_bytes"]),
        (resource.RLIMIT_AS, limits["memory_bytes"] + ADDRESS_ROOM_BYTES),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        soft = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS; parent watches
            resource.setrlimit(kind, (soft, hard))


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

    def share(outcome: Outcome) -> tuple[float, int]:
        if rows.total:
            return outcome.rows / rows.total, outcome.rows
        return source.read_bytes() / max(1, source.size_bytes), outcome.rows

    folder = Path(request["folder"])
    progress = Progress(folder / "progress.json", share)
    with ExampleFile(folder) as target:
        writer = RowWriter(target, shape, outcome, source.max_bytes, source.too_big)
        for line, row in stream:
            progress.tell(outcome)
            writer.take(line, row)
        outcome.used = target.used
        return target.finish()


def _preview(row: dict[str, Any]) -> dict[str, str]:
    """A source row as short texts, for the page's first look."""
    first = itertools.islice(row.items(), PREVIEW_COLUMNS)
    return {column: _preview_cell(value) for column, value in first}


def _preview_cell(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(
            value, ensure_ascii=False, default=str
        )  # fmt: skip
    except RecursionError:
        return "(nested too deeply to show)"
    except (TypeError, ValueError):  # keys or numbers that JSON cannot write
        text = str(value)
    return text[:PREVIEW_CHARS].encode("utf-8", "replace").decode()


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


def run(
    request: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]] = read_file
) -> dict[str, Any]:
    """Do the request; every expected failure becomes an `error` in the result."""
    name = request["name"]
    try:
        return {"facts": work(request)}
    except PartError as error:
        return {"error": error.error}
    except StudioError as error:
        return {"error": {**error.to_dict(), "columns": getattr(error, "columns", None)}}
    except MemoryError:
        limit_gib = request["limits"]["memory_bytes"] / 2**30
        failed = file_error(
            name, f"reading it needs more than {limit_gib:.1f} GiB of memory",
            remedy="Split the file or its longest rows",
        )  # fmt: skip
    except UnicodeDecodeError as error:
        failed = file_error(
            name, f"a character is broken near byte {error.start} of a block ({error.encoding})",
            remedy="Save the file as UTF-8",
        )  # fmt: skip
    except RecursionError:
        failed = file_error(name, "it is nested too deeply", remedy="Write flat rows")
    except OSError as error:
        failed = _disk_error(name, error)
    return {"error": failed.to_dict()}


def _disk_error(name: str, error: OSError) -> DatasetError:
    if error.errno == errno.EFBIG:
        return file_error(name, "its rows are too many to store", remedy="Split the file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return file_error(
            name, "no space is left on the workspace's disk",
            remedy="Free some space or choose another --workspace",
        )  # fmt: skip
    return file_error(name, f"it cannot be read: {error.strerror or error}")


def main(argv: list[str]) -> int:
    """Read the request, work within limits, leave result.json."""
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    set_limits(request["limits"])
    result = run(request)
    target = Path(request["folder"]) / "result.json"
    # A name out of the file may hold half a character; nothing of it may end the child here.
    target.write_bytes(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
