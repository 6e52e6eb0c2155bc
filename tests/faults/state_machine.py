"""Random histories of a workspace: real run store, supervisor and files, a trainer by hand.

`Workspace` is what can be done and what must hold after each step; test_state_machine.py lets
Hypothesis choose. The trainer here is an object that writes what a trainer writes (with the real
journal, inbox and checkpoints) a step at a time: thousands of steps need no process and no clock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.backend import checkpoints
from studio.backend.inbox import Inbox
from studio.backend.journal import Journal
from studio.core.config_io import build_config
from studio.core.errors import BusyError, StoreError
from studio.core.events import read_records
from studio.core.runs import (
    DONE,
    INTERRUPTED,
    LIVE_STATES,
    QUEUED,
    RESUMABLE_STATES,
    STOPPED,
    RunPaths,
    read_json,
)  # fmt: skip
from studio.hardware.platforms import held_lock, write_json
from studio.services.store import RunStore
from studio.services.supervisor import Supervisor
from tests.fakes.parts import build_parts
from tests.faults import writer
from tests.faults.disasters import full_disk

TOTAL_STEPS = 12
NOBODY = {"pid": 2**22 - 3, "start_time": 1.0, "boot_id": "no boot"}  # may never be signalled
DAMAGES = ("run.json", "meta.json", "state.json", "exit.json", "metrics.jsonl", "checkpoint",
           "trainer.lock")  # fmt: skip
HOW = ("empty", "half", "binary", "other", "folder")


class Puppet:
    """One attempt of a trainer, a step at a time."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.code: int | None = None
        self._lock = contextlib.ExitStack()
        self.unsynced: set[tuple[int, int]] = set()
        if not self._lock.enter_context(held_lock(paths.lock)):
            raise AssertionError("two trainers on one run")
        try:
            self._begin()
        except StoreError:
            self._lock.close()
            raise

    def _begin(self) -> None:
        paths = self.paths
        previous = read_json(paths.process_json) or {}
        number = int(previous.get("attempt", 0)) + 1
        if paths.exit_json.exists():
            os.replace(paths.exit_json, paths.root / f"exit-{number - 1}.json")
        write_json(paths.process_json, {"attempt": number, **NOBODY})
        self.journal = Journal(paths, number)
        self.journal.update(now=True, state="running")
        paths.resume_json.unlink(missing_ok=True)
        self.inbox = Inbox(paths)
        checkpoints.clean(paths.checkpoints)
        found = checkpoints.find_newest(paths.checkpoints).checkpoint
        self.journal.step = found.step if found else 0
        if number > 1:
            self.journal.record("resume", from_step=self.journal.step)

    def train_step(self) -> set[tuple[int, int]]:
        """One step; (attempt, step) of the records that are durable now. Raises StoreError."""
        step = self.journal.step + 1
        self.unsynced.add((self.journal.attempt, step))
        self.journal.record("step", step=step, loss=1.0)
        self.journal.step = step
        self.journal.sync()
        synced, self.unsynced = self.unsynced, set()
        self.journal.update(now=True, step=step)
        return synced

    def save(self) -> int:
        self.journal.sync()
        writer.save(self.paths, self.journal.step)
        return self.journal.step

    def obey(self) -> str | None:
        """End if asked to or at the last step. Returns the end state."""
        asked = self.inbox.poll()
        if not asked and self.journal.step < TOTAL_STEPS:
            return None
        state = self.inbox.end_state or DONE
        record = {"state": state, "attempt": self.journal.attempt, "steps": self.journal.step}
        try:
            self.journal.close()
            write_json(self.paths.exit_json, record)
        except StoreError:  # the disk takes no last word
            self.die(1)
            return INTERRUPTED
        self.die(0)
        return state

    def die(self, code: int = -9) -> None:
        """The process is gone: lock free, nothing more written."""
        with contextlib.suppress(StoreError):
            self.journal.close()
        self._lock.close()
        self.code = code


@dataclass
class PuppetLauncher:
    """Launches puppets. They outlive the supervisor that asked for them."""

    puppets: dict[str, Puppet] = field(default_factory=dict)
    refused: str | None = None  # the run that the disk did not let begin

    def start(self, paths: RunPaths) -> Puppet:
        self.refused = paths.id
        self.puppets[paths.id] = Puppet(paths)
        self.refused = None
        return self.puppets[paths.id]

    def poll(self, handle: Puppet) -> int | None:
        return handle.code

    def terminate(self, handle: Puppet) -> None:
        handle.die(-15)

    def kill(self, handle: Puppet) -> None:
        handle.die(-9)


@dataclass
class Known:
    """What must be true of a run."""

    request: str
    state: str = QUEUED
    metrics: set[tuple[int, int]] = field(default_factory=set)
    saved_step: int = 0
    damaged: set[str] = field(default_factory=set)
    maybe: set[tuple[int, int]] = field(default_factory=set)  # metrics that may be there
    unstartable: bool = False  # shown as failed until the page is restarted or it is resumed


class Workspace:
    """The system and, beside it, what is known about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = build_parts(root)
        self.launcher = PuppetLauncher()
        self.runs: dict[str, Known] = {}
        self.trash: dict[str, tuple[str, Known]] = {}
        self.is_full = False
        self.acknowledge: Callable[[], None] = lambda: None  # what is known now is durable
        self.parts.datasets.resolve("tiny.jsonl", format="auto", mapping=None)
        self.kill_ui()

    def close(self) -> None:
        for puppet in self.live().values():
            puppet.die()

    def live(self) -> dict[str, Puppet]:
        """Trainers that run."""
        return {i: p for i, p in self.launcher.puppets.items() if p.code is None}

    # -- what can be done ------------------------------------------------------------------------

    def act(self, name: str, *arguments: Any, **options: Any) -> None:
        """Do something on the disk as it is; a full one must be told with path and free bytes."""
        with full_disk() if self.is_full else contextlib.nullcontext():
            try:
                getattr(self, name)(*arguments, **options)
            except StoreError as error:
                assert self.is_full, f"the disk is well, and yet: {error}"
                assert "No space left" in str(error) and "free" in str(error), str(error)
                assert str(self.root) in str(error), str(error)

    def kill_ui(self) -> None:
        """Another process with empty memory looks at the same folders."""
        self.store = RunStore(self.root)
        self.parts = type(self.parts)(**{**vars(self.parts), "runs": self.store})
        self.supervisor = Supervisor(self.parts, launcher=self.launcher)
        for known in self.runs.values():
            known.unstartable = False

    def start(self, request: str) -> None:
        config = build_config({"data": {"path": "tiny.jsonl"}})
        run_id = self.supervisor.start(config, request_id=request)
        same = {i for i, known in self.runs.items()
                if known.request == request and "run.json" not in known.damaged}  # fmt: skip
        if same:  # two only where a deleted run came back after its request was made again
            assert run_id in same, "the same request made a second run"
        else:
            assert run_id not in self.runs
            self.runs[run_id] = Known(request)

    def second_studio_starts(self) -> None:
        """One that was told that somebody else holds the workspace."""
        second = Supervisor(self.parts, launcher=self.launcher, read_only="Another studio holds it")
        with contextlib.suppress(BusyError):
            second.start(build_config({"data": {"path": "tiny.jsonl"}}), request_id="second")
            raise AssertionError("a read-only studio started a run")

    def tick(self) -> None:
        """A round of the supervisor; notes whom it launched."""
        before = self.live()
        self.launcher.refused = None
        self.supervisor.tick()
        if self.launcher.refused is not None:
            assert self.is_full, "a sound disk, and yet no trainer could be started"
            self.runs[self.launcher.refused].unstartable = True
        for run_id, puppet in self.live().items():
            if before.get(run_id) is not puppet:
                assert not before, "two trainings at once"
                self.runs[run_id].state = "live"
                self.runs[run_id].damaged -= {"state.json", "exit.json"}

    def train(self, steps: int, *, save: bool) -> None:
        for run_id, puppet in self.live().items():
            known = self.runs[run_id]
            for _ in range(steps):
                known.maybe.add((puppet.journal.attempt, puppet.journal.step + 1))
                known.metrics |= puppet.train_step()
                known.maybe -= known.metrics
                self.acknowledge()
                if end := puppet.obey():
                    known.state = end
                    return
            if save:
                known.saved_step = puppet.save()
                known.damaged.discard("checkpoint")
                self.acknowledge()

    def command(self, run_id: str, verb: str) -> None:
        try:
            self.supervisor.command(run_id, verb)
        except BusyError:
            return
        known = self.runs[run_id]
        if known.state == QUEUED and verb in ("stop", "stop_now"):
            paths = self.store.paths(run_id)
            earlier = (read_json(paths.exit_json) or {}).get("state")
            began = paths.process_json.exists()
            known.state = earlier or (INTERRUPTED if began else STOPPED)

    def kill_trainer(self) -> None:
        for run_id, puppet in self.live().items():
            puppet.die()
            self.runs[run_id].state = INTERRUPTED

    def resume(self, run_id: str) -> None:
        state = self.store.get(run_id).state
        try:
            self.supervisor.resume(run_id)
        except BusyError:
            assert state not in RESUMABLE_STATES or self.runs[run_id].damaged
            return
        assert state in RESUMABLE_STATES
        self.runs[run_id].state = QUEUED
        self.runs[run_id].unstartable = False

    def delete(self, run_id: str) -> None:
        if run_id in self.live():
            with contextlib.suppress(BusyError):
                self.store.delete(run_id)
                raise AssertionError("a run in progress was deleted")
            return
        self.trash[self.store.delete(run_id)] = run_id, self.runs.pop(run_id)

    def undo(self, token: str) -> None:
        run_id, known = self.trash[token]
        assert self.store.undo_delete(token) == run_id
        del self.trash[token]
        self.runs[run_id] = known

    def corrupt(self, run_id: str, what: str, how: str) -> None:
        """Damage one file; nothing may be expected of it from now on, but of all others."""
        paths = self.store.paths(run_id)
        file = paths.root / what
        if what == "checkpoint":
            newest = checkpoints.find_newest(paths.checkpoints).checkpoint
            if newest is None or run_id in self.live():
                return
            file = newest.path / checkpoints.WEIGHTS
            self.runs[run_id].saved_step = 0
        if not file.is_file() or (how == "folder" and run_id in self.live()):
            return
        self.runs[run_id].damaged.add(what)
        data = file.read_bytes()
        if how == "folder":
            file.unlink()
            file.mkdir()
        else:
            damaged = {"empty": b"", "half": data[: len(data) // 2], "binary": b"\xff\x00[" + data,
                       "other": b"[1, 2]\n"}[how]  # fmt: skip
            file.write_bytes(damaged)

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        listed = {run.id: run for run in self.store.list()}
        assert set(listed) == set(self.runs), "a run is lost or came from nowhere"
        trashed = {path.name for path in self.store.trash.iterdir()}
        assert trashed == set(self.trash), "the trash is not what was deleted"
        assert len(self.live()) <= 1, "two trainers at once"
        for run_id, known in self.runs.items():
            self._check_state(known, listed[run_id].state)
            paths = RunPaths(self.root / "runs" / run_id)
            if "metrics.jsonl" not in known.damaged and known.metrics:
                records = read_records(paths.metrics).records
                steps = [(r["attempt"], r["step"]) for r in records if r["kind"] == "step"]
                assert set(steps) >= known.metrics, "a committed metric is lost"
                assert set(steps) <= known.metrics | known.maybe, "a metric came from nowhere"
                assert len(set(steps)) == len(steps), "a metric is there twice"
            newest = checkpoints.find_newest(paths.checkpoints).checkpoint
            assert (newest.step if newest else 0) >= known.saved_step, "a checkpoint is lost"

    def _check_state(self, known: Known, shown: str) -> None:
        if "run.json" in known.damaged and known.state != "live":
            assert shown == "failed"
        elif known.state == "live":
            assert shown in LIVE_STATES
        elif known.unstartable and known.state == QUEUED:
            assert shown == "failed"
        elif not known.damaged & {"exit.json"}:
            assert shown == known.state, f"shown as {shown}, is {known.state}"
