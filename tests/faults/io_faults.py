"""ENOSPC, EIO and EACCES at the k-th write, sync, rename or open: nothing half-written is called
saved, and the message says where and how much room there is.

    python -m tests.faults.io_faults

Faults are raised in place of calls of `os`, for every k until the k-th is no longer reached, once
and from the k-th on. Where strace may inject, the kernel's answers are replaced too, and the writer
is killed at the k-th system call (`run_strace`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from studio.backend import checkpoints
from studio.backend.journal import Journal
from studio.core.errors import StoreError
from studio.core.runs import RunPaths, read_json
from studio.hardware.platforms import create_exclusive, write_json
from tests.faults import power_loss, writer
from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("write", "fsync", "rename", "replace", "open", "mkdir")
CODES = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Faults:
    """Makes the k-th call of one function of `os` fail below a folder."""

    def __init__(self, call: str, code: int, k: int, *, lasting: bool) -> None:
        self.call, self.code, self.k, self.lasting = call, code, k, lasting
        self.calls = 0
        self.hit = False

    def __str__(self) -> str:
        until = " and later" if self.lasting else ""
        return f"{errno.errorcode[self.code]} at {self.call} {self.k}{until}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        real = getattr(os, self.call)

        def failing(*arguments: Any, **options: Any) -> Any:
            # Reading and looking at folders goes on: the disk refuses changes.
            if self.call == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY):
                return real(*arguments, **options)
            self.calls += 1
            if self.calls == self.k or (self.lasting and self.calls > self.k):
                self.hit = True
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        with mock.patch.object(os, self.call, failing):
            yield


def save(paths: RunPaths) -> None:
    writer.save(paths, 9)


def append(paths: RunPaths) -> None:
    journal = Journal(paths, 2)
    try:
        journal.record("step", step=7, loss=1.0)
        journal.sync()
    finally:
        journal.close()


def write_state(paths: RunPaths) -> None:
    write_json(paths.state_json, {"step": 9})


def send_order(paths: RunPaths) -> None:
    create_exclusive(paths.commands / "0001-stop.json", b'{"verb": "stop"}')


def is_saved(paths: RunPaths) -> bool:
    newest = checkpoints.find_newest(paths.checkpoints).checkpoint
    return newest is not None and newest.step == 9 and writer.is_of_step(newest)


def is_appended(paths: RunPaths) -> bool:
    return b'"step": 7' in paths.metrics.read_bytes()


def is_state(paths: RunPaths) -> bool:
    return (read_json(paths.state_json) or {}).get("step") == 9


def is_ordered(paths: RunPaths) -> bool:
    return (read_json(paths.commands / "0001-stop.json") or {}).get("verb") == "stop"


# What is done, and whether it came about.
ACTS: dict[str, tuple[Callable[[RunPaths], None], Callable[[RunPaths], bool]]] = {
    "save": (save, is_saved),
    "append": (append, is_appended),
    "state": (write_state, is_state),
    "command": (send_order, is_ordered),
}


def make_run(root: Path) -> RunPaths:
    """A run with two checkpoints, six metrics and an adapter; made anew for each fault."""
    shutil.rmtree(root, ignore_errors=True)
    paths = RunPaths(root)
    paths.commands.mkdir(parents=True)
    power_loss.prepare_run(paths, 3, 6)
    return paths


def one_fault(paths: RunPaths, name: str, faults: Faults) -> list[str]:
    """What was wrong with one act under one fault."""
    act, came_about = ACTS[name]
    told: StoreError | None = None
    try:
        with faults.active():
            act(paths)
    except StoreError as error:
        told = error
    except OSError as error:
        return [f"a bare {type(error).__name__} instead of a message: {error}"]
    found = message_problems(told, paths) if told else []
    if told is None and not came_about(paths):
        found.append("it was called done and is not")
    return found + damage(paths)


def message_problems(error: StoreError, paths: RunPaths) -> list[str]:
    """A message names the path; that of a full disk the free bytes."""
    found = [] if str(paths.root) in str(error) else [f"no path in the message: {error}"]
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
    if full and not re.search(r"\d (bytes|[KMGT]iB) free", str(error)):
        found.append(f"no free bytes in the message: {error}")
    return found


def damage(paths: RunPaths) -> list[str]:
    """What was promised before the fault must still be there, and the next try must work."""
    promise = power_loss.Promise(frozenset(range(1, 7)), 6, 6, 6, 6)
    found = power_loss.problems(paths, promise)
    state = paths.state_json.read_text()
    if read_json(paths.state_json) is None:
        found.append(f"state.json is damaged: {state[:80]!r}")
    writer.save(paths, 12)
    newest = checkpoints.find_newest(paths.checkpoints).checkpoint
    if newest is None or newest.step != 12:
        found.append("no checkpoint can be saved afterwards")
    return found


def run(acts: tuple[str, ...] = tuple(ACTS), codes: tuple[int, ...] = CODES) -> Result:
    """Every k of every call of every act."""
    result = Result("I/O faults by call", "0 false \"saved\", nothing damaged, a message with path "
                    "and free bytes")  # fmt: skip
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=base) as root:
        for name in acts:
            for call, code, lasting in ((c, e, x) for c in CALLS for e in codes for x in (0, 1)):
                k = 0
                while True:
                    k += 1
                    paths = make_run(Path(root) / "run")
                    faults = Faults(call, code, k, lasting=bool(lasting))
                    found = one_fault(paths, name, faults)
                    if not faults.hit:
                        break
                    result.trials += 1
                    result.check(not found, f"{name}, {faults}: {'; '.join(found)}")
    return result


# -- by the kernel ---------------------------------------------------------------------------------

# As the shim's calls; `write` covers what a Python file writes too.
SYSTEM_CALLS = {"write": "write,pwrite64", "fsync": "fsync,fdatasync",
                "rename": "rename,renameat,renameat2"}  # fmt: skip
ACTIONS = ("error=ENOSPC", "error=EIO", "error=EIO+", "signal=KILL")  # +: and each one later
DONE, REFUSED = 0, 3
MAX_FAILURES = 20


def can_inject() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    probe = ["strace", "-qq", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=1",
             sys.executable, "-c", "import os; os.fsync(os.open('.', os.O_RDONLY))"]  # fmt: skip
    return subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode == 1


def child(root: Path) -> int:
    """The act under strace: a save and an append. The exit code says what it claims."""
    try:
        append(RunPaths(root))
        save(RunPaths(root))
    except StoreError:
        return REFUSED
    return DONE


def traced(root: Path, call: str, action: str, k: int, planted: str = "") -> tuple[int, bool]:
    """Exit code of the act with `action` injected at the k-th system call (-9: killed), and whether
    there was a k-th call."""
    code = (
        "import sys; from pathlib import Path; from tests.faults import io_faults\n"
        f"{planted}\nsys.exit(io_faults.child(Path({str(root)!r})))"
    )
    trace, lasting = root.with_name("trace"), "+" if action.endswith("+") else ""
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={SYSTEM_CALLS[call]}",
         "-e", f"inject={SYSTEM_CALLS[call]}:{action.rstrip('+')}:when={k}{lasting}",
         sys.executable, "-B", "-c", code],
        cwd=ROOT, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    was_hit = "(INJECTED)" in trace.read_text(errors="replace")
    return done.returncode, was_hit or done.returncode != DONE


def run_strace(limit: int = 1000, planted: str = "") -> Result:
    """Errors and SIGKILL at the k-th write, sync and rename, until the act gets through.

    Args:
        planted: code that the child runs first, to break what is tested.
    """
    result = Result("I/O faults and kills by strace", '0 false "saved", nothing damaged')
    if not can_inject():
        result.skipped = "strace is not installed or may not trace here"
        return result
    with tempfile.TemporaryDirectory() as folder:
        for call in SYSTEM_CALLS:
            for action in ACTIONS:
                for k in range(1, limit + 1):
                    paths = make_run(Path(folder) / "run")
                    code, was_hit = traced(paths.root, call, action, k, planted)
                    came_about = is_saved(paths) and is_appended(paths)
                    if not was_hit and came_about:
                        break
                    result.trials += 1
                    # Records that were refused once wait in memory and are written again.
                    survived = (REFUSED, DONE) if came_about else (REFUSED,)
                    if action.endswith("+") and call == "fsync":
                        survived = (REFUSED,)  # none reached the disk: nothing may be called done
                    wanted = (-9, 137) if action.startswith("signal") else survived
                    found = damage(paths)
                    if code not in wanted:
                        found.append(f"exit code {code}")
                    result.check(not found, f"{action} at {call} {k}: {'; '.join(found)}")
                    if len(result.failures) > MAX_FAILURES:
                        return result  # it would go on to `limit`
    return result


def main() -> int:
    results = [run(), run_strace()]
    for result in results:
        result.tell()
        print(result.to_json())
    return 0 if all(result.is_met for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
