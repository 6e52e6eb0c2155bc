"""Reads one row of a data file again, as it stands there, in a process with limits.

    python -m studio.services.source_row_child REQUEST.json

The import keeps a row that it cannot use only by its number and its first characters; to be
corrected in the page it is read whole. Leaves result.json and progress.json in the request's
folder.

REQUEST.json: {source, name, folder, options, i, line (or null), limits}. The facts: {"row" (or
null), "line", and where no row could be made of it "raw", the text of its line, "reason", "check"}.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from studio.core.checks import left_out_check
from studio.core.errors import DatasetError
from studio.core.examples import RowProblem
from studio.services.job_child import run_child
from studio.services.json_rows import JsonParser, NumberedRow, parse_line
from studio.services.progress_file import ProgressFile
from studio.services.read_options import ReadOptions
from studio.services.source_bytes import MAX_ROW_CHARS, Source
from studio.services.source_coding import text_coding
from studio.services.source_rows import Rows, open_rows

MAX_EDIT_CHARS = 1_000_000
TOLD_EVERY = 10_000  # rows
_BY_LINES = {"jsonl": None, "csv": "", "tsv": ""}  # kinds whose rows begin at a line; its newline


def read_row(request: dict[str, Any]) -> dict[str, Any]:
    """The facts of the requested row."""
    source = Source(
        Path(request["source"]), request["name"], max_bytes=request["limits"]["decoded_bytes"],
        options=ReadOptions.of(request.get("options")),
    )  # fmt: skip
    rows = open_rows(source)
    told = ProgressFile(Path(request["folder"]))
    line, raw = request.get("line"), None
    if rows.kind == "jsonl" and line is not None:
        raw = _line(source, line, None, told)
        row: Any = parse_line(raw, JsonParser())
    else:
        line, row = _numbered(rows, request["i"], told)
        if isinstance(row, RowProblem) and rows.kind in _BY_LINES and line is not None:
            raw = _line(source, line, _BY_LINES[rows.kind], told)
    facts: dict[str, Any] = {"row": row, "raw": None, "line": line, "reason": None, "check": None}
    if isinstance(row, RowProblem):
        facts.update(row=None, raw=raw, reason=row.reason, check=left_out_check(row))
    if len(json.dumps(facts, ensure_ascii=False, default=str)) > MAX_EDIT_CHARS:
        raise DatasetError(
            "The row is too long to be edited here", allowed=f"{MAX_EDIT_CHARS:,} characters",
            remedy="Edit it in the file and import that again",
        )  # fmt: skip
    return json.loads(json.dumps(facts, default=str))


def _numbered(rows: Rows, wanted: int, told: ProgressFile) -> NumberedRow:
    """The row of this number and its line."""
    for number, found in enumerate(rows.open(), 1):
        if number % TOLD_EVERY == 0:
            told.tell(min(1.0, number / wanted), f"{number:,} rows read")
        if number == wanted:
            return found
    return None, None


def _line(source: Source, number: int, newline: str | None, told: ProgressFile) -> str:
    """One line of a text file, by its number from 1."""
    with source.open_text(text_coding(source), newline=newline) as stream:
        for passed in range(1, number):
            if passed % TOLD_EVERY == 0:
                told.tell(passed / number, f"{passed:,} lines read")
            while (piece := stream.readline(MAX_ROW_CHARS)) and piece[-1] not in "\r\n":
                pass
        return "".join(islice(stream, 1)).rstrip("\r\n")


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, read_row))
