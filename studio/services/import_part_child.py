"""The second process of an import: reads the second range of a file of JSON lines.

    python -m studio.services.import_part_child REQUEST.json

Started by services.import_parts with the import child's request and limits. Owns what it leaves in
its folder: data.jsonl and the arrays and lists of services.findings, progress.json, and result.json
with what was counted or an error. Ends when its parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.services.example_file import ExampleFile
from studio.services.import_child import run
from studio.services.import_parts import LineReader
from studio.services.import_rows import PROGRESS_EVERY_S, Outcome, RowWriter
from studio.services.line_blocks import Range, blocks, count_rows
from studio.services.source_bytes import Source


def read_part(request: dict[str, Any]) -> dict[str, Any]:
    """Write the second range into the request's folder and return what was counted."""
    folder = Path(request["folder"])
    source = Source(
        Path(request["source"]), request["name"], max_bytes=request["limits"]["decoded_bytes"]
    )
    before, part = (Range(*ends) for ends in request["parts"])
    format, mapping = request["shape"]
    lines, rows = count_rows(source.path, before)
    outcome, tell = Outcome(rows=rows), _teller(folder, request["parent"])
    with ExampleFile(folder) as target:
        writer = RowWriter(target, (format, mapping), outcome, source.max_bytes, source.too_big)
        reader = LineReader(writer, (format, mapping), lines)
        for block in blocks(source.path, part):
            reader.take(block.data)
            tell(block.end - part.start, outcome.rows - rows)
        return {
            "target": target.finish_part(), "rows": outcome.rows - rows,
            "problems": outcome.problems, "reasons": outcome.reasons,
        }  # fmt: skip


def _teller(folder: Path, parent: int) -> Callable[[int, int], None]:
    """Writes how far this process is, and ends it once nobody waits for it any more."""
    path, due = folder / "progress.json", [0.0]

    def tell(done_bytes: int, rows: int) -> None:
        now = time.monotonic()
        if now < due[0]:
            return
        due[0] = now + PROGRESS_EVERY_S
        if os.name != "nt" and os.getppid() != parent:
            raise SystemExit("the import's first process is gone")
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps({"bytes": done_bytes, "rows": rows}))
        staged.replace(path)

    return tell


def main(argv: list[str]) -> int:
    """Read the request, leave result.json."""
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    result = run(request, read_part)
    target = Path(request["folder"]) / "result.json"
    target.write_bytes(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
