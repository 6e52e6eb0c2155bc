"""What `core.spill` judges, read once a second beside the telemetry, and its warnings written down.

Owns reading this process's page faults and swap and who else is on the card. A reading that fails
is left out: a training never ends for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psutil

from studio.backend.journal import Journal
from studio.backend.memory_fault import asked_and_untouched, other_programs
from studio.core.spill import FULL_FRAC, Reading, SpillWatch
from studio.hardware.machine import is_wsl
from studio.hardware.nvml import Nvml
from studio.hardware.probe import program_names

_STEPPING = ("training", "first_step")
_BEFORE = ("loading", "data")


class PagingWatch:
    """Turns device records into readings, and what the watch says into warnings of the run.

    Args:
        nvml: of the telemetry; None on a run without an NVIDIA card.
    """

    def __init__(self, journal: Journal, nvml: Nvml | None) -> None:
        self._journal = journal
        self._nvml = nvml
        self._watch = SpillWatch(driver_spills=sys.platform == "win32" or is_wsl())
        self.untouched_bytes: int | None = None  # the least, once the libraries are there

    def look(self, device: Mapping[str, Any], which: int | str) -> None:
        """Judge the reading that was just recorded.

        Args:
            device: fields of a `device` record.
            which: number or UUID of the run's card.
        """
        for _, text in self._watch.add(self._reading(device, which)):
            self._journal.warn(text)
        if self._journal.phase not in _BEFORE:
            untouched = asked_and_untouched(psutil.Process().memory_info())
            self.untouched_bytes = min(self.untouched_bytes or untouched, untouched)

    def _reading(self, device: Mapping[str, Any], which: int | str) -> Reading:
        faults, swapped = page_faults(), swapped_bytes()
        own = device.get("process_bytes") or device.get("reserved_bytes")
        reading = Reading(
            t_s=time.monotonic(), step=self._journal.step,
            training=self._journal.phase in _STEPPING,
            device_used_bytes=device.get("device_used_bytes"),
            device_total_bytes=device.get("device_total_bytes"), own_bytes=own,
            reserved_bytes=device.get("reserved_bytes"), faults=faults, swapped_bytes=swapped,
            rss_bytes=device.get("rss_bytes"),
        )  # fmt: skip
        used, total = reading.device_used_bytes, reading.device_total_bytes
        if self._nvml is None or used is None or not total or used < FULL_FRAC * total:
            return reading
        others = other_programs(self._nvml, which)
        names = program_names([other.pid for other in others if other.pid is not None])
        return replace(reading, others=tuple(
            replace(other, name=names.get(other.pid or 0)) for other in others
        ))  # fmt: skip


def page_faults() -> int | None:
    """Pages that this process waited for from a disk; None where the system does not count."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def swapped_bytes() -> int | None:
    """How much of this process lies in the swap (Linux); None where it is not told."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            found = next((line for line in status if line.startswith("VmSwap:")), None)
    except OSError:
        return None
    parts = found.split() if found else []
    return int(parts[1]) * 1024 if len(parts) > 1 and parts[1].isdecimal() else None
