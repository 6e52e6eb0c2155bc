"""The trainer process: `python -m studio.backend.trainer RUN_DIR`.

Owns the process: the lock that shows it lives, its identity, signals, and that exit.json is the
last thing it writes, whatever happens. The training itself is `backend.training`. Until the
libraries are loaded only light modules are imported: the page sees the run start at once.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from studio.backend.failures import error_record, paused_by, translate
from studio.backend.inbox import DISK_REFUSED, Inbox
from studio.backend.journal import Journal, finite_values
from studio.backend.outcome import summarise
from studio.backend.telemetry import Telemetry
from studio.backend.training import Attempt, run_attempt
from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import StoreError, StudioError
from studio.core.runs import DONE, FAILED, INTERRUPTED, PAUSED, STOPPED, RunPaths, read_json
from studio.hardware.machine import memory_limit
from studio.hardware.platforms import (
    ProcessIdentity,
    held_lock,
    is_disk_refusal,
    make_folder,
    oom_kills,
    own_cgroup,
    store_error,
    write_json,
)

LOCK_TIMEOUT_S = 10.0
END_PATIENCE_S = 5.0  # for each of the last files, where the disk refuses
_RETRY_S = 0.5
_GOOD_ENDS = (DONE, STOPPED, PAUSED)
_OOM_SCORE = "800"  # where the host runs out of memory, the trainer goes before the page
log = logging.getLogger("studio.trainer")


def main(arguments: list[str]) -> int:
    """Train the run in arguments[0]. Returns the exit code: 0 done, stopped or paused, 1 failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(arguments) != 1:
        log.error("usage: python -m studio.backend.trainer RUN_DIR")
        return 2
    # Whoever started us: nothing is fetched and nothing is reported while a run trains.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    paths = RunPaths(Path(arguments[0]).resolve())
    inbox = Inbox(paths)
    inbox.listen()
    try:
        with held_lock(paths.lock, timeout_s=LOCK_TIMEOUT_S) as got:
            if not got:
                log.error("run %s is already being trained by another process", paths.id)
                return 1
            try:
                attempt = begin(paths, inbox)
            except StoreError as error:
                return _end_unbegun(paths, error)
            return 0 if conduct(attempt) in _GOOD_ENDS else 1
    except StudioError as error:
        log.error("%s", error)
        return 1


def _end_unbegun(paths: RunPaths, error: StoreError) -> int:
    """The disk refused before the attempt had its files: exit.json says so if it can be written."""
    log.error("%s", error)
    state = PAUSED if is_disk_refusal(error) else FAILED
    told = paused_by(error, None) if state == PAUSED else error
    number = (read_json(paths.process_json) or {}).get("attempt", 1)
    record = {"state": state, "attempt": number, "cause": told.what, "steps": _last_step(paths),
              "error": error_record(told, "start"), "verdict": str(told)}  # fmt: skip
    return 0 if _write_exit(paths, record) and state == PAUSED else 1


def begin(paths: RunPaths, inbox: Inbox) -> Attempt:
    """Open a new attempt: identity and state first, so that everybody sees the run start."""
    began = time.monotonic() - _process_age_s()
    previous = read_json(paths.process_json) or {}
    number = int(previous.get("attempt", 0)) + 1
    ended = read_json(paths.exit_json)
    if paths.exit_json.exists():
        earlier = (ended or {}).get("attempt", number - 1)
        try:
            os.replace(paths.exit_json, paths.root / f"exit-{earlier}.json")
        except OSError as error:
            raise store_error(paths.exit_json, error) from error
    identity = ProcessIdentity.of(os.getpid())
    if identity is None:
        raise StoreError("This process cannot be identified", remedy="Check that /proc is mounted")
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    make_folder(paths.commands)
    cgroup = own_cgroup()
    write_json(paths.process_json, {
        "attempt": number, **asdict(identity), "started": started, "cgroup": cgroup,
        "oom_kills": asdict(oom_kills(cgroup)), "memory_limit_bytes": memory_limit(),
    })  # fmt: skip
    journal = Journal(paths, number, began=began)
    journal.step = _last_step(paths)  # its figures while it loads belong there, not at step 0
    journal.update(now=True, message="Starting", step=journal.step)
    try:
        paths.resume_json.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s", store_error(paths.resume_json, error))
    record = read_json(paths.run_json) or {}
    config = _config(record)
    device = config.runtime.device if config else "cpu"
    telemetry = Telemetry(journal, device)
    return Attempt(paths, record, config or RunConfig(), journal, inbox, telemetry)


def _last_step(paths: RunPaths) -> int:
    """Where the attempt before this one was, 0 if there was none."""
    step = (read_json(paths.state_json) or {}).get("step")
    return max(0, step) if isinstance(step, int) else 0


def _config(record: dict[str, Any]) -> RunConfig | None:
    """The resolved config, None where run.json is damaged (`conduct` says so)."""
    try:
        return build_config(record["resolved"])
    except (KeyError, TypeError, StudioError):
        return None


def conduct(attempt: Attempt) -> str:
    """Run the attempt and write exit.json. Returns the end state; INTERRUPTED where exit.json
    cannot be written, for that is what the run is then."""
    attempt.telemetry.start()
    error: StudioError | None = None
    phase = ""
    try:
        _prefer_to_be_killed()
        build_config(attempt.record.get("resolved") or {"run.json": "damaged or missing"})
        state = run_attempt(attempt)
        error = _refusal(attempt)
    except Exception as raised:  # the edge of the job: whatever it was, the run's record says so
        phase = attempt.journal.failed_phase or attempt.journal.phase
        log.exception("run %s failed in phase %s", attempt.paths.id, phase)
        error = translate(
            raised, phase, attempt.config, attempt.paths.root, step=attempt.journal.step,
            untouched_bytes=attempt.telemetry.paging.untouched_bytes,
        )  # fmt: skip
        state = FAILED
        if is_disk_refusal(error):  # mend the disk and go on: nothing is wrong with the run
            error, state = paused_by(error, _last_saved(attempt)), PAUSED
    attempt.telemetry.close()
    record = summarise(attempt, state, error=error, phase=phase)
    attempt.journal.record("phase", name="done", status="end", duration_s=record["run_s"])
    attempt.journal.update(
        now=True, state=state, phase="done", message=record["verdict"], step=record["steps"],
        eta_s=0.0,
    )  # fmt: skip
    _close(attempt.journal)
    log.info("run %s: %s. %s", attempt.paths.id, state, record["verdict"])
    return state if _write_exit(attempt.paths, record) else INTERRUPTED


def _refusal(attempt: Attempt) -> StudioError | None:
    """What the disk refused on the way to an orderly end."""
    refused = attempt.inbox.refusal
    if refused is not None and attempt.inbox.cause == DISK_REFUSED:
        return paused_by(refused, _last_saved(attempt))
    return refused


def _last_saved(attempt: Attempt) -> int | None:
    """Step of the newest checkpoint, 0 without one, None before that is known."""
    return None if attempt.callback is None else attempt.callback.last_saved or 0


def _close(journal: Journal) -> None:
    """Close the records. What the disk still refuses is lost; exit.json's warnings say so."""
    until = time.monotonic() + END_PATIENCE_S
    while journal.standing_fault() and time.monotonic() < until:
        time.sleep(_RETRY_S)
        journal.beat()
    try:
        journal.close()
    except StoreError as error:
        log.error("the last records are lost: %s", error)
        journal.warnings.append(f"The last records of this attempt are lost. {error}")


def _write_exit(paths: RunPaths, record: dict[str, Any]) -> bool:
    """Write exit.json, for a while against a disk that refuses. Without it a run is interrupted."""
    until = time.monotonic() + END_PATIENCE_S
    while True:
        try:
            write_json(paths.exit_json, finite_values(record))
            return True
        except StoreError as error:
            if time.monotonic() >= until:
                log.error("the end of the run cannot be noted, so it is interrupted: %s", error)
                return paths.exit_json.exists()
        time.sleep(_RETRY_S)


def _prefer_to_be_killed() -> None:
    """Linux: where the host runs out of memory, it ends the trainer and not the page."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        try:
            score.write_text(_OOM_SCORE)
        except OSError as error:
            log.info("oom_score_adj stays as it is: %s", error)


def _process_age_s() -> float:
    return max(0.0, time.time() - psutil.Process().create_time())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
