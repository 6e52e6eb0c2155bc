"""The one thread that owns the queue: launches trainers, reaps them, ends those that must end.

The queue is the run folders: a run that never started, or that asks to be resumed, waits; the
oldest goes first; one trains at a time. A restarted page has nothing to restore, for the same
folders say the same. Trainers outlive this thread on purpose.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import BusyError, StoreError, StudioError
from studio.core.runs import (
    INTERRUPTED,
    LIVE_STATES,
    QUEUED,
    RESUMABLE_STATES,
    STARTING,
    RunPaths,
    pending_commands,
    read_json,
)
from studio.hardware.platforms import (
    ProcessIdentity,
    create_exclusive,
    remove_staged,
)
from studio.services.commands import asks_stop_now, retire_commands, send_command
from studio.services.endings import (
    attempt_stamps,
    explain_vanished,
    fail_run,
    file_stamp,
    never_began,
)
from studio.services.launcher import (
    STOP_GRACE_S,
    Launcher,
    LocalLauncher,
    recorded_process,
)
from studio.services.read_only import refusal
from studio.services.runs import RunParts, create_run
from studio.services.store import RunStore
from studio.services.summary import RunSummary, mapping, number

log = logging.getLogger(__name__)

_WAKE_S = 0.5


@dataclass
class _Child:
    """A trainer that this process started, and what its folder told before that."""

    paths: RunPaths
    handle: Any
    before: tuple[Any, ...]
    resume_request: int | None

    def has_begun(self) -> bool:
        """Whether the trainer took its lock and opened its attempt."""
        return attempt_stamps(self.paths) != self.before

    def is_told_to_stop(self) -> bool:
        """Whether a stop waits for a trainer that has not begun."""
        return bool({"stop", "stop_now"} & {verb for _, verb in pending_commands(self.paths)})


class Supervisor:
    """Queue and trainers of one workspace.

    Args:
        free_device: called before a training on the device it is given; makes room there and
            returns a notice, or None where nothing had to go.
        stop_grace_s: seconds between SIGTERM and SIGKILL after "stop now".
        read_only: who holds the workspace; then nothing may be started or commanded.
    """

    def __init__(
        self,
        parts: RunParts,
        *,
        launcher: Launcher | None = None,
        free_device: Callable[[str], str | None] = lambda device: None,
        stop_grace_s: float = STOP_GRACE_S,
        read_only: str | None = None,
    ) -> None:
        self._parts = parts
        self._runs: RunStore = parts.runs
        self._launcher = launcher or LocalLauncher()
        self._free_device = free_device
        self._stop_grace_s = stop_grace_s
        self._read_only = read_only
        self._children: dict[str, _Child] = {}
        self._terminated: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._explained: set[tuple[str, int | None]] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.notice: str | None = None

    # -- from the page ---------------------------------------------------------------------------

    def start(
        self, config: RunConfig, *, name: str | None = None, request_id: str,
        warm_start: str | None = None,
    ) -> str:  # fmt: skip
        """Queue a new run and return its id. The same request twice is one run.

        Args:
            warm_start: "RUN@STEP" whose weights it begins with.

        Raises:
            StudioError: the config cannot work here; nothing was written.
        """
        self._refuse_read_only()
        paths = create_run(
            self._parts, config, name=name, request_id=request_id, warm_start=warm_start
        )
        self._wake.set()
        return paths.id

    def warm_start(self, run_id: str) -> str:
        """Queue a new run with the settings of one that was refused its resume, from its weights.

        The same refusal twice is one run. Returns its id.
        """
        self._refuse_read_only()
        run = self._runs.get(run_id)
        if run.warm_start is None:
            raise BusyError(
                "There is nothing that keeps this run from being resumed", value=run_id,
                remedy="Resume it",
            )  # fmt: skip
        attempt = (run.exit or {}).get("attempt")
        paths = create_run(
            self._parts, build_config(run.config), warm_start=run.warm_start,
            name=f"{run.name}, from step {run.warm_start.partition('@')[2]}",
            request_id=f"warm-{run_id}-{attempt}",
        )  # fmt: skip
        self._wake.set()
        return paths.id

    def resume(self, run_id: str) -> None:
        """Queue the next attempt of a run that was paused, stopped, interrupted or failed."""
        self._refuse_read_only()
        with self._lock:
            check_resumable(self._runs.get(run_id))
            paths = self._runs.paths(run_id)
            retire_commands(paths)
            now = {"time": datetime.now(UTC).isoformat()}
            create_exclusive(paths.resume_json, json.dumps(now).encode())
            # Only now: where the disk refuses, the run keeps the reason why it could not start.
            self._given_up.discard(run_id)
            self._runs.forget_problem(run_id)
        self._wake.set()

    def command(self, run_id: str, verb: str) -> None:
        """Send stop, pause, save or stop_now to a run."""
        self._refuse_read_only()
        with self._lock:
            run = self._runs.get(run_id)
            child = self._children.get(run_id)
            launched = child is not None and not child.has_begun()
            send_command(self._runs.paths(run_id), verb, STARTING if launched else run.state)
        self._wake.set()

    def active(self) -> RunSummary | None:
        """The run that trains now, else the one that starts next, else None."""
        runs = self._runs.list()
        live = next((run for run in runs if run.state in LIVE_STATES), None)
        return live or next(iter(self._queued(runs)), None)

    def _refuse_read_only(self) -> None:
        if self._read_only:
            raise refusal(self._read_only)

    # -- the thread ------------------------------------------------------------------------------

    def run_in_background(self) -> None:
        """Start the thread. Once."""
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; trainings go on. May be called twice."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            if self._thread.is_alive():
                log.error("The supervisor thread did not end within 10 s")

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                self.tick()
            except Exception:  # the job loop: an error in one round must not end the queue
                log.exception("supervisor: this round failed")
            self._wake.wait(_WAKE_S)
            self._wake.clear()

    def tick(self) -> None:
        """One round: reap, end what must end, launch what is next."""
        with self._lock:
            self._reap()
            runs = self._runs.list()
            self._explain_interrupted(runs)
            live = [run for run in runs if run.state in LIVE_STATES]
            for ended in self._terminated.keys() - {run.id for run in live} - self._children.keys():
                del self._terminated[ended]
            for run in live:
                paths = self._runs.paths(run.id)
                paths.resume_json.unlink(missing_ok=True)  # it runs: asked and done
                self._enforce_stop_now(paths)
            if not live and not self._children:
                for run in self._queued(runs)[:1]:
                    self._launch(run)

    def _queued(self, runs: list[RunSummary]) -> list[RunSummary]:
        """Runs that wait for this supervisor, the longest waiting first."""
        waiting = [
            run for run in runs
            if run.state == QUEUED and not run.read_only and run.id not in self._given_up
            and not _is_in_foreground(run)
        ]  # fmt: skip
        return sorted(waiting, key=lambda run: (self._queued_since(run), run.id))

    def _queued_since(self, run: RunSummary) -> str:
        resume = read_json(self._runs.root / run.id / "resume.json") or {}
        return str(resume.get("time") or run.created)

    def _launch(self, run: RunSummary) -> None:
        paths = self._runs.paths(run.id)
        before, request = attempt_stamps(paths), file_stamp(paths.resume_json)
        try:
            self.notice = self._free_device(run.device)
            handle = self._launcher.start(paths)
        except StudioError as error:
            log.error("run %s could not be started: %s", run.id, error)
            self._fail(paths, error)
            return
        log.info("run %s: trainer started", run.id)
        self._children[run.id] = _Child(paths, handle, before, request)

    def _reap(self) -> None:
        for run_id, child in list(self._children.items()):
            code = self._launcher.poll(child.handle)
            if code is None:
                if not child.has_begun() and child.is_told_to_stop():
                    self._end(run_id, child.handle)
                continue
            del self._children[run_id]
            log.info("run %s: trainer ended with %s", run_id, code)
            remove_staged(child.paths.root)  # it may have been killed
            if not (child.has_begun() or child.is_told_to_stop()) and child.paths.root.is_dir():
                self._fail(child.paths, never_began(child.paths, code))
            elif child.has_begun():
                self._explain(child.paths, code)
            # Answered; but a newer request, made since this attempt ended, stays.
            if file_stamp(child.paths.resume_json) == child.resume_request:
                child.paths.resume_json.unlink(missing_ok=True)

    def _explain_interrupted(self, runs: list[RunSummary]) -> None:
        """Runs whose trainer was not ours, or went while there was no page."""
        for run in runs:
            explained = run.error is not None or run.read_only or run.id in self._children
            if run.state == INTERRUPTED and not explained:
                self._explain(self._runs.paths(run.id), None)

    def _explain(self, paths: RunPaths, code: int | None) -> None:
        """Write why a trainer is gone without a word; a trainer that ended by itself said so."""
        attempt = (paths.id, file_stamp(paths.process_json))
        if attempt in self._explained or not paths.root.is_dir():
            return
        self._explained.add(attempt)  # not tried at each round where the disk refuses
        try:
            explain_vanished(paths, code)
        except StoreError as reason:
            log.error("run %s: why it ended could not be written: %s", paths.id, reason)

    def _fail(self, paths: RunPaths, error: StudioError) -> None:
        self._given_up.add(paths.id)  # not tried again even if the disk is too full to say why
        try:
            fail_run(paths, error)
        except StoreError as reason:
            log.error("run %s: the reason could not be written: %s", paths.id, reason)
            self._runs.note_problem(paths.id, error)

    def _enforce_stop_now(self, paths: RunPaths) -> None:
        """SIGTERM for a "stop now", SIGKILL once its grace is over. By identity, never by pid."""
        identity = recorded_process(paths)
        if identity is None or not asks_stop_now(paths):
            return
        if self._is_grace_over(paths.id):
            identity.kill()
        else:
            identity.terminate()

    def _end(self, run_id: str, handle: Any) -> None:
        """End a trainer that hangs before its attempt: it reads no command yet."""
        if self._is_grace_over(run_id):
            self._launcher.kill(handle)
        else:
            self._launcher.terminate(handle)

    def _is_grace_over(self, run_id: str) -> bool:
        since = self._terminated.setdefault(run_id, time.monotonic())
        return time.monotonic() - since > self._stop_grace_s


def check_resumable(run: RunSummary) -> None:
    """Raise BusyError unless the run can have another attempt."""
    if not run.is_usable and run.state not in LIVE_STATES:
        raise BusyError(run.damaged)
    if run.read_only:
        raise BusyError("The run came from elsewhere and is read-only", value=run.id)
    if run.state not in RESUMABLE_STATES:
        raise BusyError(
            f"The run is {run.state}", value=run.id, allowed=", ".join(RESUMABLE_STATES)
        )


def _is_in_foreground(run: RunSummary) -> bool:
    """Whether a command line made this run and lives to launch it itself."""
    record = mapping(run.run_record.get("foreground"))
    pid, start_time = record.get("pid"), number(record.get("start_time"))
    if not isinstance(pid, int) or start_time is None:
        return False
    return ProcessIdentity(pid, start_time, str(record.get("boot_id"))).is_alive()
