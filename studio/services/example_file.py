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
from typing import Any

from studio.core.examples import SYSTEM, Example, RowProblem
from studio.services.findings import Findings

OFFSET_EVERY = 1000


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

    def add(self, example: Example, line: bytes | None = None) -> None:
        """Write one row; `line` is its stored form where the caller has it already."""
        data = example.to_json().encode("utf-8") + b"\n" if line is None else line
        if self.used % OFFSET_EVERY == 0:
            self._offsets.append(self.data_bytes)
        self._file.write(data)
        self._digest.update(data)
        self.used += 1
        self.data_bytes += len(data)
        self._with_system += bool(example.messages) and example.messages[0]["role"] == SYSTEM
        self._findings.row(example)

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

    def __enter__(self) -> ExampleFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()
        self._findings.close()
