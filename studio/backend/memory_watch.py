"""The peak memory of each phase of a run: allocator, NVML's figure for the process, resident set.

Owns the windows: at each change of phase the peaks of the one that ends are read and set back, so
that the next one is not measured by an older peak. A change costs about 0.1 ms and comes a few
times an evaluation, never within a step. Peaks come from counters that the system keeps (torch's
allocator; on Linux the kernel's high-water mark of the resident set, which /proc/self/clear_refs
sets back); where there is none, from the readings of the sampler. Safe to use from two threads.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.core.run_memory import (
    ALLOCATED,
    EVALUATION,
    FIELDS,
    LOADING,
    PROCESS,
    RESERVED,
    RSS,
    SAMPLING,
    SAVING,
    TRAINING,
)
from studio.hardware.probe import rss_bytes

# The journal's phases, as the record names them.
_PHASE_OF = {
    "loading": LOADING, "data": LOADING, "first_step": TRAINING, "training": TRAINING,
    "eval": EVALUATION, "sampling": SAMPLING, "saving": SAVING,
}  # fmt: skip
_HIGH_WATER = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_NEWS_BYTES = 1 << 20
_SET_BACK = b"5"  # proc(5): "reset the peak resident set size to the current value"


class MemoryWatch:
    """Peaks by phase. `enter` belongs to the trainer's thread, `sample` to the sampler's.

    Args:
        on_cuda: whether torch's CUDA counters are asked.
        process_bytes: what NVML counts for this process now; None where it does not tell.
        proc: this process's folder in /proc.
    """

    def __init__(
        self, *, on_cuda: bool = False, process_bytes: Callable[[], int | None] = lambda: None,
        proc: Path = Path("/proc/self"),
    ) -> None:  # fmt: skip
        self._on_cuda = on_cuda
        self._process_bytes = process_bytes
        self._proc = proc
        self._lock = threading.Lock()
        self._phase = LOADING
        self._peaks: dict[str, dict[str, int]] = {}
        self._marks = self._set_back()
        self._is_over = False
        self.torch_is_ready = False  # while it is being imported, its parts are not all there
        self.changes = 0  # of the peaks, worth writing down again

    def enter(self, phase: str) -> None:
        """The journal's phase changes: end the window of the one before."""
        name = _PHASE_OF.get(phase, self._phase)
        with self._lock:
            if name != self._phase:
                self._end_window()
                self._phase = name

    def stop(self) -> None:
        """The run's own work is over: what follows is not measured."""
        with self._lock:
            self._read()
            self._is_over = True

    def sample(self, *, rss: int | None = None, process: int | None = None) -> None:
        """A reading of this moment."""
        with self._lock:
            self._note(RSS, None if self._marks else rss)
            self._note(PROCESS, process)

    def measured(self) -> dict[str, dict[str, int | None]]:
        """Peaks by phase up to now; each with all of FIELDS, None where nobody told."""
        with self._lock:
            self._read()
            return {phase: {name: peaks.get(name) for name in FIELDS}
                    for phase, peaks in self._peaks.items()}  # fmt: skip

    @property
    def peak_rss_bytes(self) -> int:
        """Of all phases."""
        with self._lock:
            return max((peaks.get(RSS, 0) for peaks in self._peaks.values()), default=0)

    # -- inside, under the lock ------------------------------------------------------------------

    def _end_window(self) -> None:
        self._read()
        if self._on_cuda and PROCESS not in self._peaks.get(self._phase, {}):
            self._note(PROCESS, self._process_bytes())  # shorter than the sampler's interval
        self._marks = self._set_back()
        torch = self._torch()
        if torch is not None:
            torch.cuda.reset_peak_memory_stats(0)

    def _read(self) -> None:
        """Take the peaks of the window so far."""
        self._note(RSS, self._high_water() if self._marks else rss_bytes(os.getpid()))
        torch = self._torch()
        if torch is not None:
            self._note(ALLOCATED, torch.cuda.max_memory_allocated(0))
            self._note(RESERVED, torch.cuda.max_memory_reserved(0))

    def _note(self, name: str, value: int | None) -> None:
        if self._is_over:
            return
        peaks = self._peaks.setdefault(self._phase, {})
        before = peaks.get(name)
        if value is not None and (before is None or value > before):
            peaks[name] = value
            self.changes += before is None or value - before >= _NEWS_BYTES

    def _torch(self) -> Any:
        torch = sys.modules.get("torch") if self._on_cuda and self.torch_is_ready else None
        return torch if torch is not None and torch.cuda.is_initialized() else None

    def _set_back(self) -> bool:
        """Begin a new high-water mark; False where there is none that begins anew."""
        try:
            (self._proc / "clear_refs").write_bytes(_SET_BACK)
        except OSError:
            return False
        return self._high_water() is not None

    def _high_water(self) -> int | None:
        try:
            found = _HIGH_WATER.search((self._proc / "status").read_bytes())
        except OSError:
            return None
        return 1024 * int(found[1]) if found else None
