"""What a trainer writes while it runs: metrics.jsonl, samples.jsonl, state.json.

Owns appending whole lines, making them durable at most a second later, replacing the state
without flooding the disk, and holding on to all of it while the disk refuses (`standing_fault`).
Safe to use from several threads. Knows nothing of torch or training.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.errors import StoreError
from studio.core.runs import STARTING, RunPaths
from studio.hardware.platforms import store_error, sync_file, sync_folder, write_json

SYNC_EVERY_S = 1.0
STATE_EVERY_S = 0.5
MAX_WAITING_BYTES = 8 << 20  # records held in memory while the disk refuses them
log = logging.getLogger(__name__)


def utc_now() -> str:
    """ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Fault:
    """A file that the disk does not take now, and the monotonic time since when."""

    error: StoreError
    since: float

    @classmethod
    def now(cls, error: StoreError, earlier: Fault | None) -> Fault:
        """The fault of a write that failed; one that stands keeps its beginning."""
        return cls(error, earlier.since if earlier else time.monotonic())


class Lines:
    """An append-only file of JSON lines. A line torn by an earlier crash is closed, never cut.

    What was appended since the last sync that worked is kept in memory too. Where the disk refuses
    a write or a sync, appending goes on in memory, and each retry writes all of it again from where
    the last sync ended, with the same bytes at the same place: a failed sync is never repeated as
    if it were one, no line comes twice, and a half-written line becomes whole. One writer only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting = bytearray()  # not yet known to be durable
        self._synced = self._tried = time.monotonic()
        self.fault: Fault | None = None
        self.dropped = 0
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            status = os.fstat(self._descriptor)
            size = status.st_size
            if size and _last_byte(self._descriptor, size) != b"\n":
                os.write(self._descriptor, b"\n")
                size += 1
            if not size:  # new: a power cut must not take its name away
                sync_folder(path.parent)
        except OSError as error:
            raise store_error(path, error) from error
        self._durable_bytes = size
        self._has_links = status.st_nlink > 0  # some network disks do not count

    def append(self, record: dict[str, Any]) -> None:
        """Take one record; numbers that JSON has no word for become null. A disk that refuses is
        noted as `fault`."""
        line = json.dumps(finite_values(record), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", "surrogatepass")
        with self._lock:
            if self.fault and len(self._waiting) + len(data) > MAX_WAITING_BYTES:
                self.dropped += 1
                return
            self._waiting += data
            if self.fault is None:
                self._attempt(lambda: _write_all(self._descriptor, data))
            if self._is_due(SYNC_EVERY_S):
                self._attempt(self._sync)

    def sync(self, *, max_age_s: float = 0.0) -> None:
        """Make what was appended durable, if it has waited longer than max_age_s. Raises StoreError
        where it is not; all of it is tried again at the next call."""
        with self._lock:
            if self._waiting and self._is_due(max_age_s):
                self._attempt(self._sync)
            if self.fault:
                raise self.fault.error

    def _is_due(self, age_s: float) -> bool:
        return time.monotonic() - (self._tried if self.fault else self._synced) >= age_s

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            refused = store_error(self._path, error)
            refused.__cause__ = error
            self.fault = Fault.now(refused, self.fault)
            self._tried = time.monotonic()

    def _sync(self) -> None:
        if self.fault:
            self._write_again()
        else:
            if self._has_links and not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "the file was deleted", str(self._path))
            sync_file(self._descriptor)
        self._durable_bytes += len(self._waiting)
        self._waiting.clear()
        self.fault, self._synced = None, time.monotonic()

    def _write_again(self) -> None:
        """Through a descriptor that does not append: at the place where it was or should be."""
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            if not os.path.samestat(os.fstat(descriptor), os.fstat(self._descriptor)):
                raise FileNotFoundError(errno.ENOENT, "the file was replaced", str(self._path))
            os.lseek(descriptor, self._durable_bytes, os.SEEK_SET)
            _write_all(descriptor, self._waiting)
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Sync and close. May be called twice. Raises StoreError where something was lost."""
        with self._lock:
            if self._descriptor >= 0:
                if self._waiting:
                    self._attempt(self._sync)
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)
                if self.fault:
                    raise self.fault.error


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    """The system may take less at once."""
    view = memoryview(bytes(data))
    while view:
        view = view[os.write(descriptor, view) :]


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


def finite_values(value: Any) -> Any:
    """The same values; numbers that JSON has no word for become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_values(item) for item in value]
    return value


class Journal:
    """All that one attempt of a run writes down, apart from weights.

    `began` is the monotonic clock's value at the start of the attempt: `t_s` counts from it.
    `step` is the last completed optimizer step.
    """

    def __init__(self, paths: RunPaths, attempt: int, *, began: float | None = None) -> None:
        self.paths = paths
        self.attempt = attempt
        self.began = time.monotonic() if began is None else began
        self.step = 0
        self.phase = "loading"
        self.failed_phase: str | None = None  # the innermost phase that an exception left
        self.phase_seconds: dict[str, float] = {}
        self.on_phase: Callable[[str], None] = lambda name: None  # told of each change of phase
        self.warnings: list[str] = []
        self._metrics = Lines(paths.metrics)
        self._samples = Lines(paths.samples)
        self._lock = threading.Lock()
        self._state_fault: Fault | None = None
        self._told: str | None = None
        self._state: dict[str, Any] = {
            "state": STARTING, "phase": self.phase, "message": "Starting", "step": 0,
            "total_steps": None, "epoch": 0.0, "attempt": attempt, "eta_s": None,
            "micro_batch_s": None, "last_save_s": None,
            "trainable_params": None, "total_params": None, "adapter_bytes": None,
            "longest_tokens": None, "learned_share": None, "rows_over": None,
        }  # fmt: skip
        self._written = 0.0
        self._changed = True

    def elapsed_s(self) -> float:
        """Seconds since this attempt began."""
        return time.monotonic() - self.began

    def record(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        """Append one metrics record (kinds and fields: core.events)."""
        self._metrics.append({
            "kind": kind, "attempt": self.attempt, "time": utc_now(),
            "t_s": round(self.elapsed_s(), 3), "step": self.step if step is None else step,
            **fields,
        })  # fmt: skip

    def warn(self, text: str) -> None:
        """Record a warning that the page shows; the same one only once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.record("warning", text=text)

    def sample(self, **fields: Any) -> None:
        """Append one sampled answer."""
        self._samples.append({"attempt": self.attempt, "time": utc_now(), **fields})

    @contextlib.contextmanager
    def in_phase(self, name: str, message: str = "") -> Iterator[None]:
        """Mark a phase in the metrics and the state; its duration is summed by name."""
        outer, outer_message = self.phase, self._state.get("message")
        began = time.monotonic()
        self.record("phase", name=name, status="begin")
        self.phase = name
        self.on_phase(name)
        self.update(now=True, phase=name, message=message or name.capitalize())
        try:
            yield
        except BaseException:
            self.failed_phase = self.failed_phase or name
            raise
        finally:
            duration = time.monotonic() - began
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + duration
            self.phase = outer
            self.on_phase(outer)
            self.record("phase", name=name, status="end", duration_s=round(duration, 3))
            self.update(phase=outer, message=outer_message)

    def update(self, *, now: bool = False, **fields: Any) -> None:
        """Change state.json; written at once, or by the next `beat` but at most twice a second."""
        with self._lock:
            self._state.update(fields, progress_time=utc_now())
            self._changed = True
            if now or time.monotonic() - self._written >= STATE_EVERY_S:
                self._write_state()

    def beat(self) -> None:
        """Once a second from the sampler's thread: heartbeat, sync of what waits, and a word where
        the disk refuses."""
        with self._lock:
            self._write_state()
        for lines in (self._metrics, self._samples):
            with contextlib.suppress(StoreError):  # kept in memory; `standing_fault` tells
                lines.sync(max_age_s=SYNC_EVERY_S / 2)
        self._tell_fault()

    def _write_state(self) -> None:
        try:
            write_json(self.paths.state_json, finite_values({**self._state, "time": utc_now()}))
            self._state_fault = None
        except StoreError as error:
            self._state_fault = Fault.now(error, self._state_fault)
        self._written, self._changed = time.monotonic(), False

    def standing_fault(self, *, min_age_s: float = 0.0) -> StoreError | None:
        """Why a file of the run cannot be written, if that has been so for min_age_s."""
        found = [self._metrics.fault, self._samples.fault, self._state_fault]
        standing = sorted((fault for fault in found if fault), key=lambda fault: fault.since)
        if standing and time.monotonic() - standing[0].since >= min_age_s:
            return standing[0].error
        return None

    def _tell_fault(self) -> None:
        fault = self.standing_fault()
        if fault is not None and self._told != fault.what:
            log.warning("writing is tried again: %s", fault)
            self.warn(f"Records wait in memory because a file cannot be written. {fault}")
        elif fault is None and self._told is not None:
            log.info("all files can be written again")
        self._told = fault.what if fault else None

    def sync(self) -> None:
        """Make all records durable now (before a checkpoint is called saved). Raises StoreError
        where they are not."""
        self._metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        """Sync and close the files. May be called twice. Raises StoreError where records are lost;
        both files are closed all the same."""
        try:
            self._metrics.close()
        finally:
            self._samples.close()
