"""Writes data.jsonl and, with it, what has to be known about its rows.

Owns the bookkeeping that an import and an edit share: the bytes on disk, their sha256 (the
fingerprint of the data set), where each n-th row begins, and the checks (services.findings). Runs
in the short-lived children alone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from studio.core.examples import SYSTEM, Example, RowProblem
from studio.services.findings import Findings

OFFSET_EVERY = 1000
COPY_BYTES = 1 << 20


def _line_offsets(file: BinaryIO, behind: int, part: dict[str, Any], shift: int) -> list[int]:
    """Where each OFFSET_EVERY-th row of a part begins, from row `behind`, in the whole file.

    The part has marked its own: from each the wanted row is `behind` lines further.
    """
    found = []
    for number, mark in enumerate(part["offsets"]):
        if number * OFFSET_EVERY + behind >= part["used"]:
            break
        file.seek(mark)
        for _ in range(behind):
            mark += len(file.readline())
        found.append(shift + mark)
    return found


class ExampleFile:
    """data.jsonl while it is written; used as a context.

    Attributes:
        used: rows written. data_bytes: their size.
    """

    def __init__(self, folder: Path) -> None:
        self.used = 0
        self.data_bytes = 0
        self._file = (folder / "data.jsonl").open("wb")
        self._digest = hashlib.sha256()
        self._offsets: list[int] = []
        self._with_system = 0
        self._findings = Findings(folder)

    def add(self, example: Example, line: bytes | None = None, *, harmless: bool = False) -> None:
        """Write one row; `line` is its stored form where the caller has it already.

        Args:
            harmless: as in core.checks.inspect_row.
        """
        data = example.to_json().encode("utf-8") + b"\n" if line is None else line
        if self.used % OFFSET_EVERY == 0:
            self._offsets.append(self.data_bytes)
        self._file.write(data)
        self._digest.update(data)
        self.used += 1
        self.data_bytes += len(data)
        self._with_system += bool(example.messages) and example.messages[0]["role"] == SYSTEM
        self._findings.row(example, harmless=harmless)

    def add_clean(self, lines: list[bytes], places: list[int], hashes: bytes) -> None:
        """Write rows that pass every check of a single row, as in Findings.clean_rows."""
        marked = -self.used % OFFSET_EVERY
        while marked < len(lines):
            self._offsets.append(self.data_bytes + sum(map(len, lines[:marked])))
            marked += OFFSET_EVERY
        data = b"".join(lines)
        self._file.write(data)
        self._digest.update(data)
        self.used += len(lines)
        self.data_bytes += len(data)
        self._findings.clean_rows(places, hashes)

    def left_out(self, i: int, line: int | None, problem: RowProblem, row: Any = None) -> None:
        """Note a row of the source that cannot train, with what could be read of it."""
        self._findings.left_out(i, line, problem, row)

    def finish(self) -> dict[str, Any]:
        """Make the file durable, run the checks over the whole set; their facts for dataset.json:
        fingerprint, data_bytes, offsets, system_prompt_share, checks."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {
            "fingerprint": self._digest.hexdigest(),
            "data_bytes": self.data_bytes,
            "offsets": {"every": OFFSET_EVERY, "bytes": self._offsets},
            "system_prompt_share": self._with_system / max(1, self.used),
            "checks": self._findings.finish(),
        }

    def finish_part(self) -> dict[str, Any]:
        """Leave the rows for another file's `append_part`, which takes what is returned."""
        self._file.flush()
        return {
            "data_bytes": self.data_bytes, "used": self.used, "offsets": self._offsets,
            "with_system": self._with_system, "findings": self._findings.finish_part(),
        }  # fmt: skip

    def append_part(self, folder: Path, part: dict[str, Any]) -> None:
        """Take over the rows that a file in another folder has been given, behind the own ones."""
        behind = -self.used % OFFSET_EVERY  # the place there of the next row that is marked
        with (folder / "data.jsonl").open("rb") as file:
            if behind < part["used"]:
                self._offsets += _line_offsets(file, behind, part, self.data_bytes)
            file.seek(0)
            while chunk := file.read(COPY_BYTES):
                self._file.write(chunk)
                self._digest.update(chunk)
        self.used += part["used"]
        self.data_bytes += part["data_bytes"]
        self._with_system += part["with_system"]
        self._findings.append_part(folder, part["findings"])

    def __enter__(self) -> ExampleFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()
        self._findings.close()
