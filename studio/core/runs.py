"""Run folders: their paths, their states, and the state derived from what lies in the folder.

Pure: reads files, writes none, asks nobody whether a process lives (`alive` is handed in).

    runs/<id>/
      run.json       written once by the creator: config, auto (reasons), dataset, model, versions
      meta.json      name and notes; written by the page or the command line only
      process.json   trainer: attempt, pid, start_time, boot_id, started, cgroup, oom_kills (how
                     often the kernel had killed for want of memory as the attempt began),
                     memory_limit_bytes (of its control group)
      state.json     trainer: state, phase, step, total_steps, attempt, heartbeat, micro_batch_s and
                     last_save_s (core.endings.stop_grace_s)
      metrics.jsonl  trainer, append-only (see core.events)
      memory.json    trainer, while it runs: memory predicted and measured (core.run_memory); at
                     the end the same stands in exit.json
      samples.jsonl  trainer: answers to the fixed held-out prompts
      log.txt        trainer's stdout and stderr
      commands/      one exclusively created file a command, `<n>-<verb>.json`; the trainer
                     answers with `<n>-<verb>.ack`
      checkpoints/   step-<N>/ with MANIFEST.json
      adapter/       the adapter that was kept (best or last), in plain peft layout
      warm_start/    the creator: weights of another run that this one begins with, if it does;
                     run.json's warm_start {run, step, manifest_sha256, ...} says where from
      exit.json      trainer, last thing it writes in an attempt: state, cause, figures
      trainer.lock   held by the trainer while it lives: the sign of life
      resume.json    page: asks the supervisor to start the next attempt; removed once it runs
      imported.json  page: the run came as a zip from elsewhere; it is shown, never started
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

QUEUED, STARTING, RUNNING, PAUSING, PAUSED = "queued", "starting", "running", "pausing", "paused"
STOPPING, STOPPED, DONE, FAILED, INTERRUPTED = (
    "stopping", "stopped", "done", "failed", "interrupted",
)  # fmt: skip
STATES = (
    QUEUED, STARTING, RUNNING, PAUSING, PAUSED, STOPPING, STOPPED, DONE, FAILED, INTERRUPTED,
)  # fmt: skip
LIVE_STATES = (STARTING, RUNNING, PAUSING, STOPPING)
ACTIVE_STATES = (QUEUED, *LIVE_STATES)
END_STATES = (PAUSED, STOPPED, DONE, FAILED, INTERRUPTED)
RESUMABLE_STATES = (PAUSED, STOPPED, FAILED, INTERRUPTED)
CHATTABLE_STATES = (PAUSED, STOPPED, DONE)

COMMANDS = ("stop", "pause", "save", "stop_now")

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


def new_run_id(now: datetime | None = None) -> str:
    """`20261122-010203-4f2a`: sorts by time, safe as a folder name on every system."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{secrets.token_hex(2)}"


def is_run_id(text: Any) -> bool:
    """Whether text may name a run folder: no separators, no dots, at most 80 characters."""
    return isinstance(text, str) and bool(_RUN_ID.fullmatch(text))


@dataclass(frozen=True)
class RunPaths:
    """Paths inside one run folder. Creates nothing."""

    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def meta_json(self) -> Path:
        return self.root / "meta.json"

    @property
    def process_json(self) -> Path:
        return self.root / "process.json"

    @property
    def state_json(self) -> Path:
        return self.root / "state.json"

    @property
    def exit_json(self) -> Path:
        return self.root / "exit.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def memory_json(self) -> Path:
        return self.root / "memory.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def commands(self) -> Path:
        return self.root / "commands"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def warm_start(self) -> Path:
        return self.root / "warm_start"

    @property
    def lock(self) -> Path:
        return self.root / "trainer.lock"

    @property
    def resume_json(self) -> Path:
        return self.root / "resume.json"

    @property
    def imported_json(self) -> Path:
        return self.root / "imported.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent or damaged (a damaged file is the caller's
    to report; a listing of many runs must not fail because of one)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def pending_commands(paths: RunPaths) -> list[tuple[Path, str]]:
    """Commands without an acknowledgement, oldest first, as (file, verb)."""
    if not paths.commands.is_dir():
        return []
    found = []
    for file in sorted(paths.commands.glob("*.json")):
        verb = file.stem.partition("-")[2]
        if verb in COMMANDS and not file.with_suffix(".ack").exists():
            found.append((file, verb))
    return found


def derive_state(paths: RunPaths, *, alive: bool) -> str:
    """The run's state from its folder.

    Args:
        alive: whether `trainer.lock` is held now.

    A lock that is free while `exit.json` of the current attempt is missing means interrupted,
    never done. A run that never started is queued, or stopped if a stop command waits; one with
    `resume.json` is queued again. An imported run is never queued.
    """
    verbs = {verb for _, verb in pending_commands(paths)}
    if alive:
        state = (read_json(paths.state_json) or {}).get("state", STARTING)
        if state in (STARTING, RUNNING):
            if verbs & {"stop", "stop_now"}:
                return STOPPING
            if "pause" in verbs:
                return PAUSING
        return state if state in LIVE_STATES else STARTING
    imported = paths.imported_json.exists()
    if paths.resume_json.exists() and not imported:
        return QUEUED
    exit_record = read_json(paths.exit_json)
    if exit_record and exit_record.get("state") in END_STATES:
        return str(exit_record["state"])
    if imported or paths.process_json.exists():
        return INTERRUPTED
    return STOPPED if verbs & {"stop", "stop_now"} else QUEUED
