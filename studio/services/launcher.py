"""Starting a trainer process. Local today; several GPUs or a cluster are other launchers.

Owns the child's command line, environment and output file. The child gets no pipe and no terminal,
so it outlives us. Knows nothing of queues or states.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from studio.core.runs import RunPaths, read_json
from studio.hardware.platforms import (
    ProcessIdentity,
    detached_popen_options,
    make_folder,
    store_error,
)
from studio.hardware.threads import env_for
from studio.services.settings import PROJECT_ROOT
from studio.services.summary import mapping

TRAINER_COMMAND = (sys.executable, "-m", "studio.backend.trainer")
STOP_GRACE_S = 15.0  # between SIGTERM and SIGKILL of a "stop now"
_POLL_S = 0.05
_KILLED_WAIT_S = 10.0  # a killed process may still wait for its disk


class Launcher(Protocol):
    """Start a run's trainer, ask whether it ended, end it. `handle` is the launcher's own."""

    def start(self, paths: RunPaths) -> Any: ...

    def poll(self, handle: Any) -> int | None: ...

    def terminate(self, handle: Any) -> None: ...

    def kill(self, handle: Any) -> None: ...


class LocalLauncher:
    """Trainer as a detached process of this machine."""

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = tuple(command or TRAINER_COMMAND)

    def start(self, paths: RunPaths) -> subprocess.Popen[bytes]:
        """Start the trainer. Raises StoreError if its log cannot be written."""
        make_folder(paths.commands)
        try:
            log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise store_error(paths.log, error) from error
        try:
            return subprocess.Popen(
                [*self._command, str(paths.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PROJECT_ROOT,
                env=trainer_environment(paths), **detached_popen_options(),
            )  # fmt: skip
        except OSError as error:
            raise store_error(paths.root, error) from error
        finally:
            os.close(log)

    def poll(self, handle: subprocess.Popen[bytes]) -> int | None:
        """Exit code, or None while it runs. Reaps the process: no zombie stays."""
        return handle.poll()

    def terminate(self, handle: subprocess.Popen[bytes]) -> None:
        """Ask the trainer to save and end."""
        if identity := self._identity(handle):
            identity.terminate()

    def kill(self, handle: subprocess.Popen[bytes]) -> None:
        """End the trainer and its children at once."""
        if identity := self._identity(handle):
            identity.kill()

    def _identity(self, handle: subprocess.Popen[bytes]) -> ProcessIdentity | None:
        return ProcessIdentity.of(handle.pid) if handle.poll() is None else None


def trainer_environment(paths: RunPaths) -> dict[str, str]:
    """Variables for the run's trainer: threads and device as resolved, no network."""
    resolved = mapping((read_json(paths.run_json) or {}).get("resolved"))
    runtime = mapping(resolved.get("runtime"))
    threads = runtime.get("num_threads")
    environment = env_for(threads if isinstance(threads, int) else 1, os.environ)
    # The project's root first: a module of the same name in the current folder must not win.
    search = [str(PROJECT_ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    environment["HF_HUB_OFFLINE"] = "1"
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    # torch makes this folder when it is imported: in the workspace, not in the system's /tmp.
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(paths.root.parents[1] / "cache" / "torch")
    device, _, index = str(runtime.get("device", "")).partition(":")
    if device == "cuda" and "CUDA_VISIBLE_DEVICES" not in os.environ:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = index or "0"
    elif device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(secret, None)  # the trainer is offline: it needs no token
    return environment


def recorded_process(paths: RunPaths) -> ProcessIdentity | None:
    """The trainer that `process.json` names, whoever started it."""
    record = read_json(paths.process_json) or {}
    pid, start_time, boot = record.get("pid"), record.get("start_time"), record.get("boot_id")
    if not isinstance(pid, int) or not isinstance(start_time, int | float):
        return None
    return ProcessIdentity(pid, float(start_time), str(boot))


def end_now(process: ProcessIdentity, grace_s: float) -> bool:
    """SIGTERM, and SIGKILL to the whole group once `grace_s` are over. True if it had to be killed.

    For a trainer that somebody else started: it is known by its identity, and nobody here reaps it.
    """
    process.terminate()
    if _is_gone(process, grace_s):
        return False
    killed = process.kill()
    _is_gone(process, _KILLED_WAIT_S)
    return killed


def _is_gone(process: ProcessIdentity, timeout_s: float) -> bool:
    wait, deadline = threading.Event(), time.monotonic() + timeout_s
    while process.is_alive():
        if time.monotonic() >= deadline:
            return False
        wait.wait(_POLL_S)
    return True
