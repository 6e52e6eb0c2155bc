"""How an attempt ended: what the folder tells, and the record for one that never began.

A trainer writes its own `exit.json`. Where it died before it could take its lock, whoever launched
it writes one in its place, so that the run does not stay queued for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.core.errors import StoreError, StudioError
from studio.core.runs import FAILED, RunPaths, read_json
from studio.hardware.platforms import held_lock, store_error, write_json

_LOG_TAIL_BYTES = 4096


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


def log_tail(paths: RunPaths, lines: int = 3) -> str:
    """The last lines of the run's log, on one line."""
    try:
        with paths.log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
