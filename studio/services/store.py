"""The runs of a workspace: listed from their folders, renamed, trashed, brought back.

The folders are the truth; there is no index to lose. A run whose files did not change since the
last listing is not read again, so a thousand runs stay quick. Starting and stopping belong to the
supervisor, zips to `services.archive`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.errors import BusyError, StoreError, StudioError
from studio.core.runs import END_STATES, FAILED, QUEUED, RunPaths, is_run_id, read_json
from studio.core.split import split, split_chosen
from studio.hardware.platforms import (
    held_lock,
    is_locked,
    make_folder,
    store_error,
    sync_folder,
    write_json,
)
from studio.services import archive
from studio.services.endings import VANISHED_JSON
from studio.services.launcher import recorded_process
from studio.services.summary import (
    MetricsTail,
    RunSummary,
    at_this_moment,
    mapping,
    summarise,
)

log = logging.getLogger(__name__)

MAX_NAME_CHARS, MAX_NOTES_CHARS = 120, 10_000
_SETTLED_NS = 2_000_000_000
_WATCHED = (
    "run.json", "meta.json", "state.json", "exit.json", "process.json", "metrics.jsonl",
    "commands", "resume.json", "imported.json", VANISHED_JSON,
)  # fmt: skip


@dataclass
class _Entry:
    """What is known of one run since the last look."""

    stamps: tuple[Any, ...] = ()
    folder_stamp: tuple[int, int] | None = None  # set while it alone tells that nothing changed
    ended: bool = False
    alive: bool = False
    summary: RunSummary | None = None
    tail: MetricsTail = field(default_factory=MetricsTail)


class RunStore:
    """Runs of one workspace. Safe to call from several threads.

    Args:
        create: make the folders that are missing; False for one that is only looked at.
    """

    def __init__(self, workspace: Path, *, create: bool = True) -> None:
        self.workspace = workspace
        self.root, self.trash = workspace / "runs", workspace / "trash"
        if create:
            make_folder(self.root)
            make_folder(self.trash)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._problems: dict[str, StudioError] = {}

    def note_problem(self, run_id: str, error: StudioError) -> None:
        """Why a queued run cannot be started, where its folder cannot hold the sentence.

        Forgotten with this process: the next one tries again.
        """
        with self._lock:
            self._problems[run_id] = error

    def forget_problem(self, run_id: str) -> None:
        """It is tried again."""
        with self._lock:
            self._problems.pop(run_id, None)

    def paths(self, run_id: str) -> RunPaths:
        """Paths of an existing run. Raises StoreError for an unknown or malformed id."""
        root = self.root / run_id if is_run_id(run_id) else None
        if root is None or root.is_symlink() or not root.is_dir():
            raise StoreError(
                "There is no such run", value=run_id, remedy="See the Runs tab or `runs list`"
            )
        return RunPaths(root)

    def ids(self) -> list[str]:
        """Ids of all run folders, newest first."""
        try:
            with os.scandir(self.root) as entries:
                names = [
                    e.name for e in entries if is_run_id(e.name) and e.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error(self.root, error) from error
        return sorted(names, reverse=True)

    def list(self) -> list[RunSummary]:
        """All runs, newest first. A damaged one is listed as failed, with the reason."""
        ids = self.ids()
        with self._lock:
            for gone in self._entries.keys() - set(ids):
                del self._entries[gone]
            summaries = [self._summary(RunPaths(self.root / run_id)) for run_id in ids]
        return sorted(summaries, key=lambda run: (run.created, run.id), reverse=True)

    def get(self, run_id: str) -> RunSummary:
        """One run. Raises StoreError if there is none of that id."""
        paths = self.paths(run_id)
        with self._lock:
            return self._summary(paths)

    def find_request(self, request_id: str) -> str | None:
        """Id of the run that was made for this request, if any: a second click finds the first."""
        matches = (r.id for r in self.list() if r.run_record.get("request_id") == request_id)
        return next(matches, None)

    def _summary(self, paths: RunPaths) -> RunSummary:
        run = at_this_moment(self._read(paths), paths)
        problem = self._problems.get(run.id)
        if problem is None or run.state != QUEUED:
            self._problems.pop(run.id, None)
            return run
        return dataclasses.replace(run, state=FAILED, verdict=problem.what, error=problem.to_dict())

    def _read(self, paths: RunPaths) -> RunSummary:
        entry = self._entries.setdefault(paths.id, _Entry())
        folder = _stamp(paths.root)
        if entry.summary is not None and folder is not None and entry.folder_stamp == folder:
            return entry.summary
        stamps = tuple(_stamp(paths.root / name) for name in _WATCHED)
        changed = entry.summary is None or entry.stamps != stamps
        if changed:
            entry.ended = (read_json(paths.exit_json) or {}).get("state") in END_STATES
        # A run that has ended is not probed: the trainer may be starting its next attempt, and a
        # probe holds the lock for a moment.
        alive = not entry.ended and _lives(paths)
        if changed or alive != entry.alive:
            entry.summary = summarise(paths, alive=alive, tail=entry.tail)
            entry.stamps, entry.alive = stamps, alive
        # All files of an ended run are replaced by rename, which touches the folder; its time is
        # coarse, so it is trusted only once it is older than a tick of the file system's clock.
        settled = folder is not None and time.time_ns() - folder[0] > _SETTLED_NS
        entry.folder_stamp = folder if entry.ended and settled else None
        return entry.summary

    # -- changes -------------------------------------------------------------------------------

    def rename(self, run_id: str, name: str) -> None:
        """Give the run another name; its id and folder stay."""
        name = " ".join(name.split())
        if not name or len(name) > MAX_NAME_CHARS:
            raise StoreError(
                "A run's name cannot be that", value=name[:40],
                allowed=f"1 to {MAX_NAME_CHARS} characters",
            )  # fmt: skip
        self._change_meta(run_id, name=name)

    def set_notes(self, run_id: str, notes: str) -> None:
        """Replace the run's notes."""
        if len(notes) > MAX_NOTES_CHARS:
            raise StoreError(
                "The notes are too long", value=f"{len(notes)} characters",
                allowed=f"{MAX_NOTES_CHARS} characters",
            )  # fmt: skip
        self._change_meta(run_id, notes=notes)

    def _change_meta(self, run_id: str, **changes: str) -> None:
        paths = self.paths(run_id)
        with self._lock:
            write_json(paths.meta_json, {**(read_json(paths.meta_json) or {}), **changes})

    def delete(self, run_id: str) -> str:
        """Move the run to the trash. Returns the token that brings it back."""
        paths = self.paths(run_id)
        token = f"{run_id}.{secrets.token_hex(4)}"
        with held_lock(paths.lock) as got:
            if not got:
                raise BusyError("The run is in progress", value=run_id, remedy="Stop it first")
            self._move(paths.root, self.trash / token)
        return token

    def undo_delete(self, token: str) -> str:
        """Bring a deleted run back. Returns its id."""
        run_id, dot, _ = token.partition(".")
        trashed = self.trash / token
        if not (dot and is_run_id(run_id) and is_run_id(token.replace(".", "-"))):
            raise StoreError("That is not a deleted run", value=token[:80])
        if not trashed.is_dir():
            raise StoreError("The deleted run is no longer in the trash", value=run_id)
        if (self.root / run_id).exists():
            raise StoreError("A run of that id exists again", value=run_id)
        self._move(trashed, self.root / run_id)
        return run_id

    def _move(self, source: Path, target: Path) -> None:
        """Between runs and trash. Durable once it returns."""
        try:
            os.rename(source, target)
            sync_folder(self.root)
            sync_folder(self.trash)
        except OSError as error:
            raise store_error(source, error) from error

    # -- what a run holds ----------------------------------------------------------------------

    def samples(self, run_id: str) -> list[dict[str, Any]]:
        """The answers that the run gave to its held-out prompts, in the order written."""
        return read_lines(self.paths(run_id).samples)

    def heldout_prompts(self, run_id: str, limit: int = 20) -> list[dict[str, Any]]:
        """Prompts kept away from training, as {"messages", "reference"}; first those sampled."""
        prompts = {
            json.dumps(row["messages"]): {
                "messages": row["messages"], "reference": str(row.get("reference") or ""),
            }
            for row in self.samples(run_id)
            if isinstance(row.get("messages"), list) and row["messages"]
        }  # fmt: skip
        for prompt in self._prompts_of_dataset(run_id):
            prompts.setdefault(json.dumps(prompt["messages"]), prompt)
        return list(prompts.values())[:limit]

    def _prompts_of_dataset(self, run_id: str) -> list[dict[str, Any]]:
        run = self.get(run_id)
        # By id inside this workspace, never by the recorded path: an imported run may name any.
        dataset_id = str(mapping(run.run_record.get("dataset")).get("id") or "")
        if not is_run_id(dataset_id):
            return []
        folder = self.workspace / "datasets" / dataset_id
        rows = read_lines(folder / "data.jsonl")
        chosen = mapping((read_json(folder / "dataset.json") or {}).get("held_out")).get("rows")
        val_frac = mapping(run.config.get("data")).get("val_frac", 0.0)
        seed = mapping(run.config.get("train")).get("seed", 0)
        if chosen is None:
            held_out = split(len(rows), float(val_frac), int(seed))[1]
        else:
            held_out = split_chosen(len(rows), chosen)[1]
        prompts = []
        for index in held_out:
            messages = rows[index].get("messages") or []
            if len(messages) > 1 and messages[-1].get("role") == "assistant":
                reference = str(messages[-1].get("content") or "")
                prompts.append({"messages": messages[:-1], "reference": reference})
        return prompts

    def zip_run(self, run_id: str) -> Path:
        """The run as a zip (without checkpoints), staged in the workspace's tmp folder."""
        check_usable(self.get(run_id))
        return archive.zip_run(self.paths(run_id), self.workspace / "tmp")

    def zip_adapter(self, run_id: str) -> Path:
        """The run's adapter as a zip. Raises StoreError if it has none yet."""
        check_usable(self.get(run_id))
        return archive.zip_adapter(self.paths(run_id), self.workspace / "tmp")

    def open_zip(self, path: Path | str) -> str:
        """Import a run that somebody sent, read-only. Returns its id here."""
        return archive.open_zip(Path(path), self.root, self.workspace / "tmp")


def _lives(paths: RunPaths) -> bool:
    """Whether a trainer holds the run's lock; where we may not try the lock, whether it lives."""
    if os.access(paths.lock, os.W_OK) or not paths.lock.exists():
        return is_locked(paths.lock)
    process = recorded_process(paths)
    return process is not None and process.is_alive()


def check_usable(run: RunSummary) -> None:
    """Raise StoreError where run.json cannot be read: then nothing can be made of the run."""
    if not run.is_usable:
        raise StoreError(run.damaged)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; a torn or damaged line is left out, a missing file is empty."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    rows = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
