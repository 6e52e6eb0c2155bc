"""Writes data.jsonl and, with it, what has to be known about its rows.

Owns the bookkeeping that an import and an edit share: the bytes on disk, their sha256 (the
fingerprint of the data set), where each n-th row begins, and the checks (services.findings). Runs
in the short-lived children alone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from studio.core.examples import SYSTEM, Example, RowProblem
from studio.services.findings import Findings

OFFSET_EVERY = 1000
COPY_BYTES = 1 << 20
FOLLOW_EVERY_S = 0.02
DATA = "data.jsonl"
SIZES = "sizes.npy"  # of a part only: the bytes of each row


class ExampleFile:
    """data.jsonl while it is written; used as a context.

    Args:
        is_part: the rows are for another file's `append_part`, which makes the fingerprint.

    Attributes:
        used: rows written. data_bytes: their size.
    """

    def __init__(self, folder: Path, *, is_part: bool = False) -> None:
        self.used = 0
        self.data_bytes = 0
        self._folder = folder
        self._file = (folder / DATA).open("wb")
        self._is_part = is_part
        self._digest = hashlib.sha256()
        self._sizes = array("Q")
        # Copying, hashing and syncing go on beside the checks of the whole set.
        self._beside = ThreadPoolExecutor(1, "data.jsonl")
        self._part_ended = threading.Event()
        self._with_system = 0
        self._findings = Findings(folder)

    def add(self, example: Example, line: bytes | None = None, *, harmless: bool = False) -> None:
        """Write one row; `line` is its stored form where the caller has it already.

        Args:
            harmless: as in core.checks.inspect_row.
        """
        data = example.to_json().encode("utf-8") + b"\n" if line is None else line
        self._write(data)
        self._sizes.append(len(data))
        self.used += 1
        self._with_system += bool(example.messages) and example.messages[0]["role"] == SYSTEM
        self._findings.row(example, harmless=harmless)

    def add_clean(self, lines: list[bytes], places: list[int], hashes: bytes) -> None:
        """Write rows that pass every check of a single row, as in Findings.clean_rows."""
        self._write(b"".join(lines))
        self._sizes.extend(map(len, lines))
        self.used += len(lines)
        self._findings.clean_rows(places, hashes)

    def left_out(self, i: int, line: int | None, problem: RowProblem, row: Any = None) -> None:
        """Note a row of the source that cannot train, with what could be read of it."""
        self._findings.left_out(i, line, problem, row)

    def finish(self) -> dict[str, Any]:
        """Make the file durable, run the checks over the whole set; their facts for dataset.json:
        fingerprint, data_bytes, offsets, system_prompt_share, checks."""
        durable = self._beside.submit(self._make_durable)
        checks = self._findings.finish()
        sizes = np.asarray(self._sizes)
        begins = np.cumsum(sizes) - sizes
        durable.result()
        return {
            "fingerprint": self._digest.hexdigest(),
            "data_bytes": self.data_bytes,
            "offsets": {"every": OFFSET_EVERY, "bytes": begins[::OFFSET_EVERY].tolist()},
            "system_prompt_share": self._with_system / max(1, self.used),
            "checks": checks,
        }

    def finish_part(self) -> dict[str, Any]:
        """Leave the rows for another file's `append_part`, which takes what is returned."""
        self._file.flush()
        np.save(self._folder / SIZES, np.asarray(self._sizes), allow_pickle=False)
        return {
            "used": self.used, "with_system": self._with_system,
            "findings": self._findings.finish_part(),
        }  # fmt: skip

    def follow(self, folder: Path) -> None:
        """Begin to take over the rows of a part that may still be written, behind the own ones,
        of which there are no more."""
        (folder / DATA).touch()
        self._copied = self._beside.submit(self._copy, folder / DATA)

    def append_part(self, folder: Path, part: dict[str, Any]) -> None:
        """Take over what is known of a part that was followed and is complete."""
        self._part_ended.set()
        self._sizes.frombytes(np.load(folder / SIZES, allow_pickle=False).tobytes())
        self.used += part["used"]
        self._with_system += part["with_system"]
        self._findings.append_part(folder, part["findings"])
        self._copied.result()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.data_bytes += len(data)
        if not self._is_part:
            self._digest.update(data)

    def _copy(self, path: Path) -> None:
        """Copy a file that grows until `_part_ended`."""
        with path.open("rb", buffering=0) as file:
            while True:
                ended = self._part_ended.is_set()
                while chunk := file.read(COPY_BYTES):
                    self._write(chunk)
                if ended:
                    return
                self._part_ended.wait(FOLLOW_EVERY_S)

    def _make_durable(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> ExampleFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._part_ended.set()
        self._beside.shutdown()
        self._file.close()
        self._findings.close()
