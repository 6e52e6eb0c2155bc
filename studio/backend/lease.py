"""The lease of a compute device: one lock per GPU (and one for the CPU) for this user.

It lies in the user's cache folder, so that a second workspace or a headless run respects it too.
Held by the process that computes; given back by the system when that process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from studio.core.errors import BusyError, StoreError
from studio.core.runs import read_json
from studio.hardware.platforms import held_lock, make_folder, write_json

log = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 60.0
_ASK_EVERY_S = 0.5


def lease_folder() -> Path:
    """~/.cache/lora-studio/locks, or where the platform keeps caches."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "lora-studio" / "locks"


def device_key(device: str) -> str:
    """A file name for a device: its UUID for a GPU, so that renumbering does not matter."""
    if device.startswith("cuda"):
        import torch

        # The launcher shows this process one GPU, whatever its number is elsewhere.
        uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
        return re.sub(r"[^A-Za-z0-9-]", "", f"gpu-{uuid}") if uuid else "gpu-0"
    return re.sub(r"[^A-Za-z0-9-]", "-", device)


def _sign(note: Path, holder: str) -> None:
    """Say who holds the device. The lock is what counts: a full disk ends no run here."""
    try:
        write_json(note, {"holder": holder, "pid": os.getpid()})
    except StoreError as error:
        log.warning("who uses the device cannot be noted: %s", error)


@contextlib.contextmanager
def device_lease(
    device: str,
    holder: str,
    *,
    timeout_s: float = LEASE_TIMEOUT_S,
    give_up: Callable[[str], bool] = lambda user: False,
) -> Iterator[bool]:
    """Hold the device. Raises BusyError naming the holder if it stays taken.

    Args:
        holder: shown to whoever waits, for example the run's id.
        give_up: asked now and then while the device is taken, with who uses it; true ends the wait.

    Yields:
        Whether it is held; False only where `give_up` ended the wait.
    """
    folder = make_folder(lease_folder())
    key = device_key(device)
    note = folder / f"{key}.json"
    until = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, until - time.monotonic())
        with held_lock(folder / f"{key}.lock", timeout_s=min(left_s, _ASK_EVERY_S)) as got:
            if got:
                _sign(note, holder)
                yield True
                return
        other = read_json(note) or {}
        user = f"{other.get('holder', 'another run')} (process {other.get('pid', 'unknown')})"
        if give_up(user):
            yield False
            return
        if time.monotonic() >= until:
            raise BusyError(
                f"The {device.partition(':')[0]} is in use by {user}",
                remedy="Stop that run or wait until it ends",
            )
