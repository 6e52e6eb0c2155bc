"""Reads one row of a data file again, as it stands there, in a process with limits.

    python -m studio.services.source_row_child REQUEST.json

The import keeps a row that it cannot use only by its number and its first characters; to be
corrected in the page it is read whole. Leaves result.json and progress.json in the request's
folder.

REQUEST.json: {source, name, folder, options, i, line (or null), limits}. The facts: {"row" (or
null), "line", where no row could be made of it "raw", the text of its line, "reason" and "check",
and "guessed", whether characters of it were broken in the file}.
"""

from __future__ import annotations

import json
import re
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

LOST = "\ufffd"
# Bytes that the decoder of UTF-8 has kept (surrogateescape), and other halves of a pair, with the
# mark that stands for what is broken in UTF-16 (source_coding).
_BROKEN = re.compile("(?P<bytes>[\udc80-\udcfe]+)|[\ud800-\udfff]")
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
    reader = BrokenText()
    facts: dict[str, Any] = {"row": None, "raw": None, "line": line, "reason": None, "check": None}
    if isinstance(row, RowProblem):
        facts.update(raw=reader.mended(raw), reason=row.reason, check=left_out_check(row))
    else:
        facts.update(row=reader.mended(row))
    facts["guessed"] = reader.guessed
    if len(json.dumps(facts, ensure_ascii=False, default=str)) > MAX_EDIT_CHARS:
        raise DatasetError(
            "The row is too long to be edited here", allowed=f"{MAX_EDIT_CHARS:,} characters",
            remedy="Edit it in the file and import that again",
        )  # fmt: skip
    return json.loads(json.dumps(facts, default=str))


class BrokenText:
    """Makes characters that no file can hold readable: bytes that are no UTF-8 are read as
    Windows-1252, what is still lost becomes U+FFFD.

    Attributes:
        guessed: whether there were any.
    """

    def __init__(self) -> None:
        self.guessed = False

    def mended(self, value: Any) -> Any:
        """The value with all of its texts made readable."""
        if isinstance(value, str):
            return _BROKEN.sub(self._read, value)
        if isinstance(value, dict):
            return {self.mended(key): self.mended(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.mended(inner) for inner in value]
        return value

    def _read(self, found: re.Match[str]) -> str:
        self.guessed = True
        as_bytes = found.group().encode("utf-8", "surrogateescape") if found["bytes"] else b""
        return as_bytes.decode("cp1252", "replace") or LOST * len(found.group())


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
