"""Records of `metrics.jsonl`: kinds, fields, and a reader with an opaque cursor.

One JSON object a line, appended by the trainer alone and never cut back. Every record has
`kind`, `attempt`, `time` (UTC ISO 8601), `t_s` (monotonic seconds within the attempt), `step`.

    step     loss, learning_rate, grad_norm, tokens_total, tokens_per_s     non-finite = null
    eval     eval_loss, eval_rows, eval_s
    device   device_used_bytes, device_total_bytes, process_bytes, allocated_bytes,
             reserved_bytes, rss_bytes, host_available_bytes, host_total_bytes, utilisation_pct,
             temperature_c, power_w  (absent = unknown)
    phase    name (loading | data | first_step | training | eval | sampling | saving | done),
             status (begin | end), duration_s
    warning  text
    resume   from_step: starts an attempt and supersedes later steps of earlier attempts

A reader stops at a torn last line; a damaged line in the middle is counted, not fatal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("step", "eval", "device", "phase", "warning", "resume")
_MAX_READ_BYTES = 64 << 20


@dataclass
class Batch:
    """Records read in one go. `cursor` is where the next read starts; hand it back as it is."""

    cursor: str
    records: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0
    reset: bool = False


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no word for it (NaN, infinity)."""
    return value if value is not None and math.isfinite(value) else None


def read_records(path: Path, since: str = "") -> Batch:
    """Complete records behind `since`. A cursor beyond the file (another run) restarts at 0."""
    offset = int(since) if since.isdecimal() else 0
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            reset = offset > size
            offset = 0 if reset else offset
            file.seek(offset)
            data = file.read(_MAX_READ_BYTES)
    except FileNotFoundError:
        return Batch(cursor="0", reset=offset > 0)
    except OSError:  # no permission, a bad disk, a folder: one run's trouble, not the whole list's
        return Batch(cursor=str(offset), damaged=1)
    end = data.rfind(b"\n") + 1  # a torn last line is left for the next read
    batch = Batch(cursor=str(offset + end), reset=reset)
    for line in data[:end].splitlines():
        record = _parse(line)
        if record is None:
            batch.damaged += 1
        else:
            batch.records.append(record)
    return batch


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("kind") in KINDS else None


def current(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without those that a later `resume` superseded (steps beyond its `from_step`)."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if record["kind"] == "resume":
            edge = record.get("from_step", 0)
            kept = [r for r in kept if r["kind"] not in ("step", "eval") or r["step"] <= edge]
        kept.append(record)
    return kept


def iter_kind(records: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """The records of one kind, in order."""
    return (record for record in records if record["kind"] == kind)


def columns(records: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Records as columns by kind, the form that goes over the wire: {kind: {field: [..]}}.

    A field missing in a record is null in its column. `kind`, `attempt` and `time` are left out.
    """
    result: dict[str, dict[str, list[Any]]] = {}
    for kind in KINDS:
        rows = list(iter_kind(records, kind))
        names = {name for row in rows for name in row} - {"kind", "attempt", "time"}
        if rows:
            result[kind] = {name: [row.get(name) for row in rows] for name in sorted(names)}
    return result
