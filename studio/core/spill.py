"""Memory that spills: told from how full the memory is and how long the steps take.

Owns the judgement on a sequence of `Reading`s (one a second, made by the trainer): Windows moves
part of a full card to main memory, Linux swaps pages of the training out, another program fills
the card. None of these ends a run; each makes it many times slower. Pure: knows nothing of NVML,
psutil or threads. Each cause is told once in an attempt.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from studio.core.out_of_memory import OtherProgram, program_name, size_text

GIB = 2**30
SPILL, PAGING, CROWDED = "spill", "paging", "crowded"
FULL_FRAC = 0.97  # of the card in use: nothing of a training's size fits beside it
MANY_FOLD = 3.0  # so many times longer than before is no longer chance
NOTICEABLE_S = 0.5  # steps that take less longer than this bother nobody
PAGES_PER_S = 200.0  # read back from disk, in training: 0.8 MB/s in pieces of 4 KiB
SWAPPED_FRAC = 0.02  # of the training's memory
CROWDED_FRAC = 0.10  # of the card held by others, and at least a GiB: more than a desktop
_BEFORE_STEPS = 5  # the first ones are slower: compiling, caches
_LAST_STEPS = 3
_PAGING_READINGS = 10  # seconds in a row where nothing is known of before


@dataclass(frozen=True)
class Reading:
    """What is known at one moment. Bytes and seconds; None: unknown.

    Attributes:
        t_s: monotonic. step: completed steps.
        training: whether steps are being done now, and not evaluations, saves or answers.
        device_used_bytes, device_total_bytes: of the card, by all programs.
        own_bytes: of the card, by this training; reserved_bytes: by its allocator.
        faults: pages that this process had to wait for from a disk, since it began.
        swapped_bytes: of this process, lying in the swap. rss_bytes: lying in memory.
        others: programs on the card, where they are listed.
    """

    t_s: float
    step: int
    training: bool = True
    device_used_bytes: int | None = None
    device_total_bytes: int | None = None
    own_bytes: int | None = None
    reserved_bytes: int | None = None
    faults: int | None = None
    swapped_bytes: int | None = None
    rss_bytes: int | None = None
    others: tuple[OtherProgram, ...] = ()


class SpillWatch:
    """Takes one reading a second and says what has gone wrong.

    Args:
        driver_spills: whether the driver moves memory of a full card to main memory instead of
            refusing it (Windows, and WSL, which has Windows' driver).
    """

    def __init__(self, *, driver_spills: bool) -> None:
        self._driver_spills = driver_spills
        self._pace = _Pace()
        self._last: Reading | None = None
        self._paging_readings = 0
        self._told: set[str] = set()

    def add(self, reading: Reading) -> list[tuple[str, str]]:
        """(cause, sentence) of what is new at this reading; mostly nothing."""
        self._pace.add(reading)
        checks = (
            (SPILL, self._spilled), (PAGING, self._paged), (CROWDED, self._crowded),
        )  # fmt: skip
        found = []
        for cause, check in checks:
            text = check(reading)
            if text and cause not in self._told:
                self._told.add(cause)
                found.append((cause, text))
        self._last = reading
        return found

    def _spilled(self, now: Reading) -> str:
        """The driver keeps part of the allocator's memory elsewhere, or a full card has slowed."""
        used, total = now.device_used_bytes, now.device_total_bytes
        if not self._driver_spills or used is None or not total or used < FULL_FRAC * total:
            return ""
        outside = (now.reserved_bytes or 0) - used
        slower = self._pace.slower()
        if outside <= 0 and slower is None:
            return ""
        where = f"the card is full ({size_text(used)} of {size_text(total)})"
        moved = f", {size_text(outside)} of the training lie outside it" if outside > 0 else ""
        return (
            f"Windows has moved memory of the training from the card to main memory: {where}{moved}"
            f"{_slower_text(slower)}. Pause and take a smaller batch or shorter rows; or set 'CUDA "
            "- Sysmem Fallback Policy' to 'Prefer No Sysmem Fallback' in the NVIDIA Control Panel, "
            "so that it ends instead"
        )

    def _paged(self, now: Reading) -> str:
        """Pages come back from the disk while steps are done, and something lies in the swap."""
        before = self._last
        if before is None or now.faults is None or before.faults is None or not now.training:
            self._paging_readings = 0
            return ""
        rate = (now.faults - before.faults) / max(1e-3, now.t_s - before.t_s)
        swapped, rss = now.swapped_bytes or 0, now.rss_bytes or 0
        pages = rate >= PAGES_PER_S and swapped >= SWAPPED_FRAC * (rss + swapped)
        self._paging_readings = self._paging_readings + 1 if pages else 0
        slower = self._pace.slower()
        if not pages or (slower is None and self._paging_readings < _PAGING_READINGS):
            return ""
        return (
            "The computer is short of main memory and swaps the training out and in again: "
            f"{size_text(swapped)} of it lie on the disk, {rate:,.0f} pages a second come back"
            f"{_slower_text(slower)}. Close other programs, or pause and take a smaller batch or "
            "shorter rows"
        )

    def _crowded(self, now: Reading) -> str:
        """Nothing is left of the card, and much of it is not ours."""
        used, total, own = now.device_used_bytes, now.device_total_bytes, now.own_bytes
        if used is None or not total or own is None or used < FULL_FRAC * total:
            return ""
        foreign = used - own
        if foreign < max(GIB, CROWDED_FRAC * total):
            return ""
        return (
            f"The card is full ({size_text(used)} of {size_text(total)}), and "
            f"{size_text(foreign)} of it belong to {_names(now.others)}, not to this training. "
            "Close it, or the training may run out of memory"
        )


class _Pace:
    """Seconds a step, before and now, told from readings that are a second apart."""

    def __init__(self) -> None:
        self._before: list[float] = []
        self._recent: deque[float] = deque(maxlen=_LAST_STEPS)
        self._step: int | None = None
        self._t_s = 0.0
        self._spent_s = 0.0
        self._skipped = 0

    def add(self, reading: Reading) -> None:
        """Time counts while steps are done; what was measured or saved meanwhile does not."""
        if self._step is None or reading.step < self._step:
            self._step, self._spent_s = reading.step, 0.0
        elif reading.training:
            self._spent_s += reading.t_s - self._t_s
        self._t_s = reading.t_s
        steps = reading.step - self._step
        if steps > 0:
            self._note(self._spent_s / steps, steps)
            self._step, self._spent_s = reading.step, 0.0

    def _note(self, step_s: float, steps: int) -> None:
        if self._skipped == 0:
            self._skipped = 1  # the first one loads kernels
            return
        if len(self._before) < _BEFORE_STEPS:
            self._before += [step_s] * min(steps, _BEFORE_STEPS - len(self._before))
        else:
            self._recent.append(step_s)

    def slower(self) -> tuple[float, float] | None:
        """(seconds a step before, now) where the steps take many times as long; else None. A step
        that is under way counts with what it took so far."""
        if len(self._before) < _BEFORE_STEPS:
            return None
        before = statistics.median(self._before)
        recent = [*self._recent, self._spent_s] if self._spent_s > before else [*self._recent]
        if len(recent) < 2:
            return None
        now = statistics.median(recent[-_LAST_STEPS:])
        if now < MANY_FOLD * before or now - before < NOTICEABLE_S:
            return None
        return before, now


def _slower_text(slower: tuple[float, float] | None) -> str:
    if slower is None:
        return ""
    before, now = slower
    return f"; a step takes {now:.1f} s instead of {before:.1f} s"


def _names(others: Sequence[OtherProgram]) -> str:
    """The largest three, or that nobody is listed."""
    if not others:
        return "another program"
    largest = sorted(others, key=lambda other: -(other.bytes or 0))[:3]
    return ", ".join(
        program_name(other) + (f": {size_text(other.bytes)}" if other.bytes else "")
        for other in largest
    )
