"""The second process of an import: reads the second range of a file of JSON lines.

    python -m studio.services.import_part_child REQUEST.json

Started by services.import_parts with the import child's request and limits. Owns what it leaves in
its folder: data.jsonl and the arrays and lists of services.findings, progress.json, and result.json
with what was counted or an error. Ends when its parent is gone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from studio.services.example_file import ExampleFile
from studio.services.import_parts import LineReader
from studio.services.import_rows import Outcome, RowWriter
from studio.services.job_child import run_child
from studio.services.line_blocks import Range, blocks, count_rows
from studio.services.progress_file import ProgressFile
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
    outcome, told, done = Outcome(rows=rows), ProgressFile(folder), [0]

    def progress() -> dict[str, Any]:
        if os.name != "nt" and os.getppid() != request["parent"]:
            raise SystemExit("the import's first process is gone")
        return {"bytes": done[0], "rows": outcome.rows - rows}

    with ExampleFile(folder, is_part=True) as target:
        writer = RowWriter(target, (format, mapping), outcome, source.max_bytes, source.too_big)
        reader = LineReader(writer, (format, mapping), lines)
        for block in blocks(source.path, part):
            reader.take(block.data)
            done[0] = block.end - part.start
            told.tell_facts(progress)
        return {
            "target": target.finish_part(), "rows": outcome.rows - rows,
            "problems": outcome.problems, "reasons": outcome.reasons,
        }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, read_part, limited=False))
