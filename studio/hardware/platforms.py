"""What differs by platform: locks, durable writes, liveness, signals. The only such module.

macOS has no `os.fdatasync` and a weak `fsync`; Windows has neither `fcntl` nor folder handles;
a pid alone names nobody, so a process is pid + start time + boot id. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from studio.core.endings import OomKills
from studio.core.errors import StoreError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_REFUSALS = (*_DISK_FULL, errno.EIO, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def store_error(path: Path, error: OSError) -> StoreError:
    """An OSError as a sentence that names the path, the cause and, where it matters, what is free.

    Each cause has its own remedy: who has a full disk must not be sent to look at permissions.
    """
    code, reason = error.errno, error.strerror or str(error)
    what = f"Cannot write or read {path}: {reason}"
    remedy = "Check that the folder exists and that you may write to it"
    if code in _DISK_FULL:
        what = f"No space left on the disk that holds {path}"
        remedy = "Free some space or choose another --workspace"
    elif code == errno.EIO:
        what = f"The disk that holds {path} reports an error: {reason}"
        remedy = "Check the disk and the system's log before you go on"
    elif code == errno.EROFS:
        what = f"The disk that holds {path} is read-only"
        remedy = "Make it writable again (after an error a system locks its disk: check it)"
    elif code in _NO_PERMISSION:
        what = f"You have no permission for {path}: {reason}"
        remedy = "Give your user the right to read and write there"
    elif code in _GONE and not _is_there(path.parent):
        what = f"Cannot write or read {path}: its folder is gone"
        remedy = "Put the folder back, or check that its disk is still connected"
    else:
        return StoreError(what, remedy=remedy)
    free = free_bytes(path)
    return StoreError(what, value=free_text(free) if free is not None else None, remedy=remedy)


def is_disk_refusal(error: BaseException | None) -> bool:
    """Whether the disk would not take or give data: full, failing, read-only, or (in one of our own
    StoreErrors) forbidden or gone. What failed can be tried again once that is mended."""
    ours, seen = isinstance(error, StoreError), 0
    while error is not None and seen < 10:
        if isinstance(error, OSError):
            return error.errno in _REFUSALS or (ours and error.errno in (*_NO_PERMISSION, *_GONE))
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def free_text(free: int) -> str:
    """For example "12 KiB free" or "3.4 GiB free"."""
    amount, unit = float(free), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    digits = 1 if amount < 10 and unit else 0
    return f"{amount:.{digits}f} {_UNITS[unit]} free"


def free_bytes(path: Path) -> int | None:
    """Free bytes on the file system of path (or its nearest existing parent)."""
    for folder in (path, *path.parents):
        if _is_there(folder):
            try:
                return psutil.disk_usage(str(folder)).free
            except OSError:
                return None
    return None


def _is_there(path: Path) -> bool:
    """Whether a path can be seen; one behind a folder that may not be entered cannot."""
    try:
        return path.exists()
    except OSError:
        return False


def sync_file(descriptor: int) -> None:
    """Make a file's content durable. Raises OSError; a failed sync is never retried as success."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames and creations in a folder durable. Windows has no such call: there a no-op."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_close(descriptor: int, data: bytes) -> None:
    """Write all of it (the system may take less at once), make it durable, close in any case."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file atomically and durably: stage, sync, rename, sync the folder."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        _write_and_close(descriptor, data)
        os.replace(staged, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise store_error(path, error) from error


def remove_staged(folder: Path) -> None:
    """Remove what a `write_bytes` left in a folder whose process was killed in the middle of it."""
    for staged in folder.glob(".*.tmp"):
        pid = staged.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):  # it costs a few bytes, and the next start tries it
                staged.unlink()


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:
    """`write_bytes` of a JSON value. NaN and infinity are a ValueError: JSON has none."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    write_bytes(path, text.encode() + b"\n", mode=mode)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create a file only if it is not there. Returns False where it was. Durable.

    Raises StoreError where the disk refuses; then no half-written file stays.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise store_error(path, error) from error
    try:
        _write_and_close(descriptor, data)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise store_error(path, error) from error
    return True


def make_folder(path: Path, *, mode: int = 0o700) -> Path:
    """Create a folder (and parents) that only this user may enter."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(path, error) from error
    return path


@contextlib.contextmanager
def held_lock(path: Path, *, timeout_s: float = 0.0) -> Iterator[bool]:
    """Hold an advisory lock. Yields whether it was got; waits at most timeout_s."""
    lock = filelock.FileLock(str(path), mode=0o600)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise store_error(path, error) from error
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now. Never creates the lock file.

    A lock that cannot be opened (read-only disk, no permission) counts as free: a listing of many
    runs must not fail because of one. Taking it still tells the reason.
    """
    if not path.exists():
        return False
    lock = filelock.FileLock(str(path), mode=0o600)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def boot_id() -> str:
    """Changes at every boot: the kernel's own id, elsewhere the boot time in seconds."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def own_cgroup() -> str | None:
    """This process's control group (cgroup v2), as /proc names it; None where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def oom_kills(cgroup: str | None, *, root: Path = Path("/")) -> OomKills:
    """How often the kernel has killed for want of memory, in that control group and altogether.

    Where the group was removed meanwhile, or the system does not count, that part is unknown.
    """
    group = None
    if cgroup is not None and ".." not in cgroup:
        folder = root / "sys/fs/cgroup" / cgroup.lstrip("/")
        group = _count_of("oom_kill", folder / "memory.events")
    return OomKills(group, _count_of("oom_kill", root / "proc/vmstat"))


def _count_of(key: str, file: Path) -> int | None:
    """The number beside a word in a file of the kernel's."""
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    pairs = (line.split() for line in text.splitlines())
    found = next((p[1] for p in pairs if len(p) == 2 and p[0] == key), "")
    return int(found) if found.isdecimal() else None


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for another: pid, start time, boot id."""

    pid: int
    start_time: float
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Identity of a living process, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), boot_id())
        except psutil.Error:
            return None

    def is_alive(self) -> bool:
        """Whether exactly this process lives (a zombie does not)."""
        if self.pid < 2 or self.boot_id != boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.start_time) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def send(self, signal_number: int) -> bool:
        """Signal the process and, on POSIX, its group if it leads one. False if it is gone."""
        if not self.is_alive():
            return False
        try:
            if os.name != "nt" and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal_number)
            else:
                os.kill(self.pid, signal_number)
        except ProcessLookupError:
            return False
        return True

    def terminate(self) -> bool:
        """Ask to end: SIGTERM (on Windows this ends it at once)."""
        return self.send(signal.SIGTERM)

    def kill(self) -> bool:
        """End at once."""
        return self.send(getattr(signal, "SIGKILL", signal.SIGTERM))


def detached_popen_options() -> dict[str, Any]:
    """Popen options for a child that outlives us and gets none of our terminal's signals."""
    if os.name == "nt":
        flags = 0x00000200 | 0x00000008  # CREATE_NEW_PROCESS_GROUP | DETACHED_PROCESS
        return {"creationflags": flags}
    return {"start_new_session": True}
