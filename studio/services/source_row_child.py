"""Reads one row of a data file again, as it stands there, in a process with limits.

    python -m studio.services.source_row_child REQUEST.json

The import keeps a row that it cannot use only by its number and its first characters; to be
corrected in the page it is read whole. Leaves result.json and progress.json in the request's
folder.

REQUEST.json: {source, name, folder, options, i, line, limits}. The facts: {"row": the row or null,
"raw": the text of its line where no row could be made of it, else null}.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import RowProblem
from studio.services.job_child import run_child
from studio.services.json_rows import JsonParser, parse_line
from studio.services.progress_file import ProgressFile
from studio.services.read_options import ReadOptions
from studio.services.source_bytes import MAX_ROW_CHARS, Source
from studio.services.source_coding import text_coding
from studio.services.source_rows import open_rows

MAX_EDIT_CHARS = 1_000_000
TOLD_EVERY = 10_000  # rows


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
        row = parse_line(raw, JsonParser())
    else:
        row = None
        for number, (_, found) in enumerate(rows.open(), 1):
            if number % TOLD_EVERY == 0:
                told.tell(min(1.0, number / request["i"]), f"{number:,} rows read")
            if number == request["i"]:
                row = found
                break
        if isinstance(row, RowProblem) and rows.kind in ("csv", "tsv") and line is not None:
            raw = _line(source, line, "", told)
    if isinstance(row, RowProblem):
        row = None
    facts = {"row": row, "raw": raw if row is None else None}
    if len(json.dumps(facts, ensure_ascii=False, default=str)) > MAX_EDIT_CHARS:
        raise DatasetError(
            "The row is too long to be edited here", allowed=f"{MAX_EDIT_CHARS:,} characters",
            remedy="Edit it in the file and import that again",
        )  # fmt: skip
    return json.loads(json.dumps(facts, default=str))


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
