"""What a page that watches a run gets each second: state, progress, new figures, new answers.

The cursor is opaque to the page: byte offsets of the run's two growing files. Reads only. A first
read of a long run is thinned, so that 100,000 steps draw as fast as 2,000.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from studio.core.errors import ConfigError
from studio.core.events import columns, current, read_records
from studio.core.runs import LIVE_STATES, RunPaths
from studio.services.summary import RunSummary

MAX_POINTS = 4000  # of each kind in one answer
_CURSOR = re.compile(r"^(\d{1,15})-(\d{1,15})$")
_SIGNIFICANT_DIGITS = 7


def follow_run(paths: RunPaths, run: RunSummary, since: str) -> dict[str, Any]:
    """State and everything behind `since` ("" = all).

    `reset` tells the page to forget what it has: the cursor was beyond the files.

    Raises:
        ConfigError: `since` is not a cursor.
    """
    match = _CURSOR.match(since)
    if since and not match:
        raise ConfigError("That is not a cursor", value=since[:40], remedy="Send the one you got")
    metrics_at, samples_at = match.groups() if match else ("", "")
    batch = read_records(paths.metrics, metrics_at)
    samples, samples_end = read_new_lines(paths.samples, int(samples_at or 0))
    if batch.reset:
        samples, samples_end = read_new_lines(paths.samples, 0)
    record = run.state_record
    live = run.state in LIVE_STATES
    return {
        "run": run.id,
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "phase": record.get("phase") if live else None,
        "eta_s": record.get("eta_s") if live else None,
        "message": record.get("message") if live else None,
        "stalled": dataclasses.asdict(run.stalled) if run.stalled else None,
        "ending": dataclasses.asdict(run.ending) if run.ending else None,
        "cursor": f"{batch.cursor or 0}-{samples_end}",
        "reset": batch.reset,
        "series": _compact(columns(thin(current(batch.records)))),
        "samples": samples,
    }


def thin(records: list[dict[str, Any]], limit: int = MAX_POINTS) -> list[dict[str, Any]]:
    """At most about `limit` records of each kind: every k-th, and always the last."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record["kind"]] = counts.get(record["kind"], 0) + 1
    strides = {kind: math.ceil(count / limit) for kind, count in counts.items()}
    if max(strides.values(), default=1) == 1:
        return records
    seen: dict[str, int] = dict.fromkeys(counts, 0)
    kept = []
    for record in records:
        kind = record["kind"]
        seen[kind] += 1
        if seen[kind] % strides[kind] == 1 or strides[kind] == 1 or seen[kind] == counts[kind]:
            kept.append(record)
    return kept


def read_new_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole JSON lines behind `offset`, and where they end. A torn last line waits."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset if offset <= size else 0)
            start = file.tell()
            data = file.read()
    except OSError:
        return [], 0
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows, start + end


def _compact(series: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
    """Columns without those that are unknown throughout; numbers as short as a chart needs."""
    return {
        kind: {
            name: [_short(value) for value in values]
            for name, values in fields.items()
            if any(value is not None for value in values) or name in ("step", "loss", "eval_loss")
        }
        for kind, fields in series.items()
    }


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
