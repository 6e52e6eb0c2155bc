"""The lease of a compute device: one lock per GPU (and one for the CPU) for this user.

It lies in the user's cache folder, so that a second workspace or a headless run respects it too.
Held by the process that computes; given back by the system when that process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from studio.core.errors import BusyError
from studio.core.runs import read_json
from studio.hardware.platforms import held_lock, make_folder, write_json

LEASE_TIMEOUT_S = 60.0


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


@contextlib.contextmanager
def device_lease(device: str, holder: str, *, timeout_s: float = LEASE_TIMEOUT_S) -> Iterator[None]:
    """Hold the device. Raises BusyError naming the holder if it stays taken.

    Args:
        holder: shown to whoever waits, for example the run's id.
    """
    folder = make_folder(lease_folder())
    key = device_key(device)
    with held_lock(folder / f"{key}.lock", timeout_s=timeout_s) as got:
        note = folder / f"{key}.json"
        if not got:
            other = read_json(note) or {}
            raise BusyError(
                f"The {device.partition(':')[0]} is in use by {other.get('holder', 'another run')}"
                f" (process {other.get('pid', 'unknown')})",
                remedy="Stop that run or wait until it ends",
            )
        write_json(note, {"holder": holder, "pid": os.getpid()})
        yield
