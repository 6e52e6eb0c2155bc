"""What a trainer writes while it runs: metrics.jsonl, samples.jsonl, state.json.

Owns appending whole lines, making them durable at most a second later, and replacing the state
without flooding the disk. Safe to use from several threads. Knows nothing of torch or training.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.runs import STARTING, RunPaths
from studio.hardware.platforms import store_error, sync_file, sync_folder, write_json

SYNC_EVERY_S = 1.0
STATE_EVERY_S = 0.5


def utc_now() -> str:
    """ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Lines:
    """An append-only file of JSON lines. A line torn by an earlier crash is closed, never cut.

    Each line is one `write` to a descriptor in append mode, so lines never mix.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._dirty = False
        self._synced = time.monotonic()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            size = os.fstat(self._descriptor).st_size
            if size and _last_byte(self._descriptor, size) != b"\n":
                os.write(self._descriptor, b"\n")
            if not size:  # new: a power cut must not take its name away
                sync_folder(path.parent)
        except OSError as error:
            raise store_error(path, error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; numbers that JSON has no word for become null."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            try:
                data = memoryview(line.encode("utf-8", "surrogatepass"))
                while data:
                    data = data[os.write(self._descriptor, data) :]
                self._dirty = True
                if time.monotonic() - self._synced >= SYNC_EVERY_S:
                    self._sync()
            except OSError as error:
                raise store_error(self._path, error) from error

    def sync(self, *, max_age_s: float = 0.0) -> None:
        """Make what was written durable, if it has waited longer than max_age_s."""
        with self._lock:
            if self._dirty and time.monotonic() - self._synced >= max_age_s:
                try:
                    self._sync()
                except OSError as error:
                    raise store_error(self._path, error) from error

    def _sync(self) -> None:
        sync_file(self._descriptor)
        self._dirty, self._synced = False, time.monotonic()

    def close(self) -> None:
        """Sync and close. May be called twice."""
        with self._lock:
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                try:
                    sync_file(descriptor)
                except OSError as error:
                    raise store_error(self._path, error) from error
                finally:
                    os.close(descriptor)


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
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
        self.warnings: list[str] = []
        self._metrics = Lines(paths.metrics)
        self._samples = Lines(paths.samples)
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {
            "state": STARTING, "phase": self.phase, "message": "Starting", "step": 0,
            "total_steps": None, "epoch": 0.0, "attempt": attempt, "eta_s": None,
            "trainable_params": None, "total_params": None, "adapter_bytes": None,
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
        """Once a second from the sampler's thread: heartbeat, and sync of what waits."""
        with self._lock:
            self._write_state()
        self._metrics.sync(max_age_s=SYNC_EVERY_S / 2)
        self._samples.sync(max_age_s=SYNC_EVERY_S / 2)

    def _write_state(self) -> None:
        write_json(self.paths.state_json, _finite({**self._state, "time": utc_now()}))
        self._written, self._changed = time.monotonic(), False

    def sync(self) -> None:
        """Make all records durable now (before a checkpoint is called saved)."""
        self._metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        """Sync and close the files. May be called twice."""
        self._metrics.close()
        self._samples.close()
