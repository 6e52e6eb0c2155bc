"""Runs one short-lived, limited child process and brings back its result or its error.

Owns: the child's environment, its wall clock, the watch on its memory where the system cannot
limit it, cancelling, and turning every way a child can end into one sentence. Knows nothing of
what the child does. Blocks; called from worker threads and the command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from studio.core.errors import DatasetError, HubError, StoreError, StudioError
from studio.core.examples import shown
from studio.core.runs import read_json
from studio.core.sniff import UnknownFormatError
from studio.hardware.platforms import write_json
from studio.services.settings import PROJECT_ROOT

log = logging.getLogger(__name__)

# (share done or None, what is being done) -> None
ProgressFn = Callable[[float | None, str], None]
CancelledFn = Callable[[], bool]

POLL_S = 0.05
# glibc hands each freed block of some 100 KiB back to the system and asks for it again, page by
# page: a fifth of an import's time. Others do not know these names.
_KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}  # fmt: skip
_ERRORS = {"DatasetError": DatasetError, "HubError": HubError, "StoreError": StoreError}


class ImportCancelledError(DatasetError):
    """The user cancelled; nothing was kept."""


@dataclass(frozen=True)
class Limits:
    """What an import may use.

    Attributes:
        memory_bytes: what the child may allocate (Linux), and what may lie in memory (the
            parent watches that everywhere).
        cpu_s: processor time.
        wall_s: time until the parent ends the child.
        file_bytes: size of one written file.
        decoded_bytes: what may come out of a compressed file.
    """

    memory_bytes: int = 1280 * 2**20
    cpu_s: int = 900
    wall_s: float = 1800.0
    file_bytes: int = 16 * 2**30
    decoded_bytes: int = 8 * 2**30

    @classmethod
    def for_file(cls, size_bytes: int) -> Limits:
        """Limits that fit a file: honest text and Parquet unpack to at most some 100 times.

        A small file has little time, so that a bomb is over soon; 1 MiB of honest data takes less
        than 2 s, packed ten to one, and 700 MiB of JSON lines about 60 s.
        """
        cpu_s = 10 + 4 * size_bytes // 2**20
        return cls(
            decoded_bytes=min(16 * 2**30, max(256 * 2**20, 200 * size_bytes, size_bytes)),
            cpu_s=cpu_s, wall_s=2.0 * cpu_s + 5,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One child: module, its request, where it works, and what it is called in messages."""

    module: str
    folder: Path
    name: str
    request: Mapping[str, Any]
    limits: Limits
    environment: Mapping[str, str] | None = None


def run_job(
    job: Job, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
) -> dict[str, Any]:
    """Run the child to its end and return its facts.

    Raises:
        StudioError: what the child reported, or how it ended.
        ImportCancelledError: `cancelled` said so.
    """
    request_file = job.folder / "request.json"
    write_json(request_file, {**job.request, "folder": str(job.folder), "name": job.name,
                              "limits": asdict(job.limits)})  # fmt: skip
    with (job.folder / "child.log").open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", job.module, str(request_file)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=_environment(job.environment), cwd=job.folder,
        )  # fmt: skip
        try:
            _watch(child, job, progress, cancelled)
        finally:
            _end(child)
    result = read_json(job.folder / "result.json")
    if child.returncode != 0 or result is None:
        raise _died(child.returncode, job)
    if error := result.get("error"):
        raise _rebuilt(error)
    return result["facts"]


def while_copying(
    name: str, progress: ProgressFn | None, cancelled: CancelledFn | None
) -> Callable[[int, int], None]:
    """For services.source_file.take: says how much of a file is copied, and ends it when asked."""

    def told(done_bytes: int, size_bytes: int) -> None:
        if cancelled is not None and cancelled():
            raise _cancelled(name)
        if progress is not None:
            progress(None, f"{done_bytes >> 20:,} of {size_bytes >> 20:,} MiB copied")

    return told


def _cancelled(name: str) -> ImportCancelledError:
    return ImportCancelledError(f"{name}: the import was cancelled; nothing was kept")


def clear_scraps(folder: Path) -> None:
    """Remove what a job has left besides its work."""
    for scrap in ("request.json", "result.json", "progress.json", "child.log"):
        (folder / scrap).unlink(missing_ok=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and those that it started; harmless when it has ended."""
    if child.poll() is None:
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(child.pid).children(recursive=True)
            child.kill()
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        child.kill()
    child.wait()


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Ours without secrets, with the project importable and one thread a library."""
    kept = {key: value for key, value in os.environ.items() if "TOKEN" not in key.upper()}
    path = os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))
    # The system allocator keeps the memory limit meaningful: others reserve far ahead.
    ours = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return {**kept, **ours, **_KEPT_MEMORY, **(extra or {})}


def _watch(
    child: subprocess.Popen[bytes], job: Job, progress: ProgressFn | None,
    cancelled: CancelledFn | None,
) -> None:  # fmt: skip
    """Wait for the end; end the child when it is cancelled, too slow or too big."""
    started = time.monotonic()
    watched = [psutil.Process(child.pid)]
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_S)
            return
        if cancelled is not None and cancelled():
            raise _cancelled(job.name)
        if time.monotonic() - started > job.limits.wall_s:
            raise DatasetError(
                f"{job.name}: reading it took longer than {job.limits.wall_s:.0f} s",
                remedy="Split the file into smaller ones",
            )
        told = read_json(job.folder / "progress.json") or {}
        if told.get("second_pid") and len(watched) < 2:
            with contextlib.suppress(psutil.Error):
                watched.append(psutil.Process(told["second_pid"]))
        for process in watched:  # each has the limit for itself
            with contextlib.suppress(psutil.Error):
                if process.memory_info().rss > job.limits.memory_bytes:
                    raise _too_big(job)
        if progress is not None and told:
            progress(told.get("frac"), told.get("text") or f"{told.get('rows', 0):,} rows read")


def _too_big(job: Job) -> DatasetError:
    return DatasetError(
        f"{job.name}: reading it needs more than {job.limits.memory_bytes / 2**30:.1f} GiB of "
        "memory",
        remedy="Split the file or its longest rows",
    )


def _died(code: int, job: Job) -> StudioError:
    """The error of a child that left no result."""
    if code == -getattr(signal, "SIGXCPU", 24):
        return DatasetError(
            f"{job.name}: reading it took more than {job.limits.cpu_s} s of processor time",
            remedy="Split the file into smaller ones",
        )
    if code in (-int(getattr(signal, "SIGKILL", 9)), -int(signal.SIGABRT)):
        return _too_big(job)
    said = (job.folder / "child.log").read_text(encoding="utf-8", errors="replace").strip()
    log.error("import child for %s ended with %s: %s", job.name, code, said[-4000:])
    if said.endswith("MemoryError") or "bad_alloc" in said[-2000:]:
        return _too_big(job)
    last = shown(said.splitlines()[-1])[:200] if said else _ending(code)
    return DatasetError(
        f"{job.name}: reading it failed ({last})",
        remedy="Save it as CSV or JSONL and report the file",
    )


def _ending(code: int) -> str:
    """How a child without last words ended."""
    if code >= 0:
        return f"exit code {code}"
    names = {-int(known): known.name for known in signal.Signals}
    return f"ended by {names.get(code, f'signal {-code}')}"


def _rebuilt(error: Mapping[str, Any]) -> StudioError:
    """The child's error as an exception again; names out of the file are made fit to show."""
    found = {key: error.get(key) for key in ("what", "value", "allowed", "remedy")}
    parts = {key: text if text is None else shown(str(text)) for key, text in found.items()}
    what = parts.pop("what") or "the file cannot be used"
    if error.get("type") == "UnknownFormatError":
        return UnknownFormatError(what, columns=error.get("columns") or [], **parts)
    return _ERRORS.get(str(error.get("type")), DatasetError)(what, **parts)
