"""Rows from delimited tables and from plain text.

Owns: the delimiter, whether the first line names the columns, and the refusal of ragged rows: a
row with more or fewer cells than the header is a problem of its line, never a row whose values
have moved to the wrong column. Streams.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from studio.core.examples import RowProblem
from studio.core.formats import FORMATS
from studio.services.json_rows import NumberedRow, Opener
from studio.services.source_bytes import MAX_ROW_CHARS, file_error

DELIMITERS = (",", "\t", ";", "|")
# Rarer ones, taken only where every line has the same number of them.
RARE_DELIMITERS = ("\x01", "\x1f", "\xa6", "^", "~")
SAMPLE_LINES = 200
SAMPLE_CHARS = 4 * MAX_ROW_CHARS
MAX_CELLS = 2000
MAX_HEADER_CHARS, MAX_HEADER_WORDS = 40, 4
KNOWN_COLUMNS = {
    alias for shape in FORMATS.values() for role in shape.roles for alias in role.aliases
} | {"id", "idx", "index", "url", "source", "chosen", "rejected"}


@dataclass
class Dialect:
    """How a table is written.

    Attributes:
        columns: names, from the header or made up (column_1, ...).
        has_header: whether the first row is the header.
        skip: lines before it ("sep=;" of spreadsheets).
        quoted: whether double quotes enclose cells.
    """

    delimiter: str
    quoted: bool = True
    skip: int = 0
    has_header: bool = True
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def options(self) -> dict[str, object]:
        return {
            "delimiter": self.delimiter,
            "strict": True,
            "quoting": csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
        }


def find_dialect(open_text: Opener, name: str, *, hint: str | None) -> Dialect:
    """Decide delimiter, quoting and header from the first lines.

    Args:
        hint: ".csv" or ".tsv" where the file's name says so.
    """
    with open_text() as stream:
        lines = _sample_lines(stream, name)
    dialect = _dialect_of(lines, hint)
    rows = _sample_rows(lines[dialect.skip :], dialect)
    if not rows:
        raise file_error(name, "the file is empty", remedy="Choose a file with rows")
    _name_columns(dialect, rows, name)
    return dialect


def delimiter_of(lines: list[str]) -> str | None:
    """The delimiter that gives the same number of cells, above one, in most lines."""
    best, best_score = None, 0.0
    for delimiter in (*DELIMITERS, *RARE_DELIMITERS):
        if best is not None and delimiter in RARE_DELIMITERS:
            break
        counts = [len(row) for row in _sample_rows(lines, Dialect(delimiter))]
        if not counts or counts[0] < 2:
            continue
        share = sum(count == counts[0] for count in counts) / len(counts)
        needed = 0.5 if delimiter in DELIMITERS else 1.0
        if share > best_score and share >= needed and (needed < 1 or len(counts) > 2):
            best, best_score = delimiter, share
    return best


def read_table(open_text: Opener, name: str, dialect: Dialect) -> Iterator[NumberedRow]:
    """One row a record, with the line where it begins."""
    csv.field_size_limit(MAX_ROW_CHARS)
    with open_text() as stream:
        reader = csv.reader(_bounded(stream, name), **dialect.options())  # type: ignore[call-overload]
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise _quote_error(name, line, error) from error
            if cells is None:
                return
            if not cells or line <= dialect.skip:
                continue
            if header is None and dialect.has_header:
                header = cells
            elif cells == header and len(cells) > 1:
                yield line, RowProblem("the column names stand here again", "Remove the line")
            else:
                yield line, _as_row(cells, dialect.columns)


def _as_row(cells: list[str], columns: list[str]) -> dict[str, object] | RowProblem:
    if len(cells) == len(columns):
        return dict(zip(columns, cells, strict=True))
    return RowProblem(
        f"the row has {len(cells)} cells, the header has {len(columns)}",
        "Put quotes around cells that contain the delimiter or a line break",
    )


def _quote_error(name: str, line: int, error: csv.Error) -> Exception:
    text = str(error)
    if "field larger" in text or "unexpected end" in text:
        reason = "a quote is opened here and never closed"
    else:
        reason = "a quote ends in the middle of a cell"
    return file_error(
        name, reason, line=line, remedy='Write a quote inside a quoted cell twice ("")'
    )


def _bounded(stream: TextIO, name: str) -> Iterator[str]:
    """Lines, none of them longer than a row may be."""
    for number in itertools.count(1):
        line = stream.readline(MAX_ROW_CHARS)
        if not line:
            return
        if len(line) >= MAX_ROW_CHARS:
            raise file_error(
                name, "the line is longer than 16 MiB", line=number,
                remedy="Check that the file is a table with one row a line",
            )  # fmt: skip
        yield line


def _sample_lines(stream: TextIO, name: str) -> list[str]:
    """The first lines that are not blank: few in number and in size."""
    lines, chars = [], 0
    for line in _bounded(stream, name):
        if not line.strip("\r\n"):
            continue
        lines.append(line)
        chars += len(line)
        if len(lines) >= SAMPLE_LINES or chars > SAMPLE_CHARS:
            break
    return lines


def _sample_rows(lines: list[str], dialect: Dialect) -> list[list[str]]:
    """Rows of the sample; a record that the sample's end cuts is left away."""
    rows: list[list[str]] = []
    reader = csv.reader(lines, **{**dialect.options(), "strict": False})  # type: ignore[arg-type]
    try:
        for cells in reader:
            rows.append(cells)
    except csv.Error:
        return rows
    return [cells for cells in rows if cells]


def _dialect_of(lines: list[str], hint: str | None) -> Dialect:
    first = lines[0].strip("\r\n").lower() if lines else ""
    if len(first) == 5 and first.startswith("sep=") and first[4] != '"':
        return Dialect(first[4], skip=1)
    delimiter = delimiter_of(lines) or ("\t" if hint == ".tsv" else ",")
    if hint == ".tsv" and delimiter != "\t" and lines and "\t" in lines[0]:
        delimiter = "\t"
    dialect = Dialect(delimiter)
    usual = {".csv": ",", ".tsv": "\t"}.get(hint or "")
    if delimiter not in (usual, *([] if usual else ["\t", ","])) and lines:
        shown = "tab" if delimiter == "\t" else repr(delimiter)
        dialect.notes.append(f"cells are separated by {shown}")
    if delimiter == "\t" and not _quotes_enclose(lines):
        dialect.quoted = False
    return dialect


def _quotes_enclose(lines: list[str]) -> bool:
    """Whether quotes in a tab-separated sample enclose cells; else they are plain characters.

    Many TSV files are written without quoting, where a cell may begin with a quote that no other
    closes and would swallow the rows after it.
    """
    if not any(line.startswith('"') or '\t"' in line for line in lines):
        return True
    try:
        counts = {len(row) for row in csv.reader(lines, delimiter="\t", strict=True) if row}
    except csv.Error:
        return False
    return len(counts) == 1


def _name_columns(dialect: Dialect, rows: list[list[str]], name: str) -> None:
    if len(rows[0]) > MAX_CELLS:
        raise file_error(
            name, f"the row has {len(rows[0]):,} cells", line=1 + dialect.skip,
            allowed=f"{MAX_CELLS:,}", remedy="Keep the columns that are to be learned",
        )  # fmt: skip
    first = [cell.strip().lstrip("\ufeff") for cell in rows[0]]
    dialect.has_header = _is_header(first, rows[1:])
    if not dialect.has_header:
        dialect.columns = [f"column_{number}" for number in range(1, len(first) + 1)]
        dialect.notes.append(
            f"the first line is no header; the columns are called {', '.join(dialect.columns)}"
        )
        return
    dialect.columns = [cell or f"column_{number}" for number, cell in enumerate(first, 1)]
    if any("\udc80" <= character <= "\udcff" for cell in first for character in cell):
        raise file_error(
            name, "a column's name holds broken characters", line=1 + dialect.skip,
            remedy="Save the file again as UTF-8",
        )  # fmt: skip
    twice = next((c for c in dialect.columns if dialect.columns.count(c) > 1), None)
    if twice is not None:
        raise file_error(
            name, "two columns have the same name", line=1 + dialect.skip, value=twice,
            remedy="Give each column a name of its own",
        )  # fmt: skip


def _is_header(first: list[str], others: list[list[str]]) -> bool:
    """Names that formats know decide; else the line must look like names, not like sentences."""
    lowered = [cell.lower().replace(" ", "_") for cell in first]
    if any(cell in KNOWN_COLUMNS for cell in lowered):
        return not others or not _repeats(lowered, others)
    return all(
        cell
        and len(cell) <= MAX_HEADER_CHARS
        and len(cell.split()) <= MAX_HEADER_WORDS
        and not cell.replace(".", "", 1).lstrip("-").isdigit()
        and cell[-1] not in ".?!,;"
        for cell in first
    )


def _repeats(lowered: list[str], others: list[list[str]]) -> bool:
    """Whether a known word of the first line is really a value, as "title" in a label column."""
    others = [row for row in others if [c.strip().lower() for c in row] != lowered]
    known = [index for index, cell in enumerate(lowered) if cell in KNOWN_COLUMNS]
    return len(lowered) > 1 and all(
        any(len(row) > index and row[index].strip().lower() == lowered[index] for row in others)
        for index in known
    )


def read_paragraphs(open_text: Opener, split_lines: bool) -> Iterator[NumberedRow]:
    """Plain text: one row a paragraph, or one a line where no blank line parts paragraphs."""
    start, parts, size = 0, [], 0
    with open_text() as stream:
        for number, line in _lines(stream):
            blank = not line.strip()
            if parts and (blank or split_lines):
                yield _paragraph(start, parts, size)
                parts, size = [], 0
            if blank:
                continue
            start = start if parts else number
            size += len(line)
            parts.append(line if size <= MAX_ROW_CHARS else "")
    if parts:
        yield _paragraph(start, parts, size)


def read_document(open_text: Opener) -> Iterator[NumberedRow]:
    """A whole text as one row."""
    with open_text() as stream:
        text = stream.read(MAX_ROW_CHARS + 1)
    if len(text) > MAX_ROW_CHARS:
        yield 1, RowProblem("the text is longer than 16 MiB", "Read it by paragraphs", code="empty")
    elif not text.strip():
        yield 1, RowProblem("the text is empty", "Leave the file out", code="empty")
    else:
        yield 1, {"text": text.strip()}


def _lines(stream: TextIO) -> Iterator[tuple[int, str]]:
    """Numbered lines; one that is longer than a row may be comes one character too long."""
    for number in itertools.count(1):
        line = stream.readline(MAX_ROW_CHARS + 1)
        if not line:
            return
        rest = line
        while len(rest) > MAX_ROW_CHARS and not rest.endswith("\n"):
            rest = stream.readline(MAX_ROW_CHARS + 1)
        yield number, line


def _paragraph(start: int, parts: list[str], size: int) -> NumberedRow:
    if size > MAX_ROW_CHARS:
        return start, RowProblem("the paragraph is longer than 16 MiB", "Put blank lines between")
    return start, {"text": "".join(parts).strip()}


def has_blank_line(open_text: Opener) -> bool:
    """Whether a blank line stands between two lines of text."""
    seen_text = seen_gap = False
    with open_text() as stream:
        for line in iter(lambda: stream.readline(MAX_ROW_CHARS), ""):
            if line.strip():
                if seen_gap:
                    return True
                seen_text = True
            else:
                seen_gap = seen_text
    return False
