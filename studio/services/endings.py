"""How an attempt ended: what the folder tells, and the record for one that never began.

A trainer writes its own `exit.json`. Where it died before it could take its lock, whoever launched
it writes one in its place, so that the run does not stay queued for ever. Where it vanished in the
middle, the supervisor writes `vanished.json` beside what is there: why, as far as can be told. The
system's counts are worth something only then, so they are read once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.core.endings import OUT_OF_MEMORY, Evidence, OomKills, explain
from studio.core.errors import StoreError, StudioError
from studio.core.events import read_records
from studio.core.out_of_memory import HOST, MemoryFault
from studio.core.runs import FAILED, RunPaths, read_json
from studio.hardware.platforms import boot_id, held_lock, oom_kills, store_error, write_json
from studio.services.commands import asks_stop_now

VANISHED_JSON = "vanished.json"
_LOG_TAIL_BYTES = 4096
_METRICS_TAIL_BYTES = 1 << 16


def file_stamp(file: Path) -> int | None:
    """Time of the last change, None if the file is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def attempt_stamps(paths: RunPaths) -> tuple[Any, ...]:
    """Changes as soon as a trainer begins an attempt."""
    return file_stamp(paths.process_json), file_stamp(paths.exit_json)


def never_began(paths: RunPaths, code: int) -> StudioError:
    """The error of a trainer that ended with `code` before it wrote anything."""
    return StudioError(
        f"The trainer ended before it could begin (exit code {code}). "
        f"Last lines of its log: {log_tail(paths) or 'none'}",
        remedy="Look at log.txt in the run's folder",
    )


def fail_run(paths: RunPaths, error: StudioError) -> None:
    """Write the end of a run whose trainer never began. Does nothing while a trainer lives.

    Raises StoreError where the folder takes no file: then the reason is the caller's to keep.
    """
    try:
        with held_lock(paths.lock) as got:
            if got:  # else another process trains it after all
                _write_failure(paths, error)
    except StoreError:
        # A lock that cannot be opened is held by nobody: no trainer of ours could open it either.
        _write_failure(paths, error)


def _write_failure(paths: RunPaths, error: StudioError) -> None:
    previous = read_json(paths.exit_json) or {}
    record = {"state": FAILED, "cause": str(error)}
    record["error"] = {**error.to_dict(), "phase": "start"}
    write_json(paths.exit_json, {**previous, **record})
    try:
        paths.resume_json.unlink(missing_ok=True)
    except OSError as reason:
        raise store_error(paths.resume_json, reason) from reason


def explain_vanished(paths: RunPaths, exit_code: int | None = None) -> None:
    """Write why the trainer of an interrupted run is gone. Once an attempt.

    Raises StoreError where the folder takes no file.
    """
    process, state = read_json(paths.process_json) or {}, read_json(paths.state_json) or {}
    attempt = process.get("attempt")
    if paths.exit_json.exists() or vanished(paths) is not None:
        return
    cgroup, phase, step = process.get("cgroup"), state.get("phase"), state.get("step")
    device = _last_device_record(paths)
    limit = _number(process.get("memory_limit_bytes"))
    found = explain(Evidence(
        phase=phase if isinstance(phase, str) else "", step=step if isinstance(step, int) else 0,
        exit_code=exit_code, boot_then=str(process.get("boot_id") or "") or None,
        boot_now=boot_id(), kills_before=OomKills.from_dict(process.get("oom_kills")),
        kills_after=oom_kills(cgroup if isinstance(cgroup, str) else None),
        rss_bytes=_number(device.get("rss_bytes")),
        available_bytes=_number(device.get("host_available_bytes")),
        total_bytes=_number(device.get("host_total_bytes")), limit_bytes=limit,
        stop_now=asks_stop_now(paths),
    ))  # fmt: skip
    record = {"attempt": attempt, **found.to_dict()}
    if found.kind == OUT_OF_MEMORY:
        record["memory"] = _killed_fault(device, state, limit).to_dict()
    write_json(paths.root / VANISHED_JSON, record)


def _killed_fault(
    device: dict[str, Any], state: dict[str, Any], limit: float | None
) -> MemoryFault:
    """What was known of main memory a moment before the system killed the trainer: what it held
    and what was left is what it could have had."""
    rss, free = _number(device.get("rss_bytes")), _number(device.get("host_available_bytes"))
    total = _number(device.get("host_total_bytes"))
    budget = None if rss is None or free is None else int(rss + free)
    if limit is not None:
        budget = int(limit) if budget is None else min(budget, int(limit))
        free = None if rss is None else max(0.0, limit - rss)
    phase, step = state.get("phase"), state.get("step")
    return MemoryFault(
        HOST, phase if isinstance(phase, str) else "", step if isinstance(step, int) else 0,
        free_bytes=None if free is None else int(free),
        total_bytes=None if total is None else int(total),
        used_bytes=None if rss is None else int(rss), budget_bytes=budget,
        limit_bytes=None if limit is None else int(limit),
    )  # fmt: skip


def vanished(paths: RunPaths) -> dict[str, Any] | None:
    """What was written of the end of the current attempt, if it vanished."""
    found = read_json(paths.root / VANISHED_JSON)
    attempt = (read_json(paths.process_json) or {}).get("attempt")
    return found if found and found.get("text") and found.get("attempt") == attempt else None


def _last_device_record(paths: RunPaths) -> dict[str, Any]:
    """The last reading of the machine's memory, {} without one."""
    try:
        size = paths.metrics.stat().st_size
    except OSError:
        return {}
    start = max(0, size - _METRICS_TAIL_BYTES)
    records = read_records(paths.metrics, str(start)).records
    return next((r for r in reversed(records) if r["kind"] == "device"), {})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def log_tail(paths: RunPaths, lines: int = 3) -> str:
    """The last lines of the run's log, on one line."""
    try:
        with paths.log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
