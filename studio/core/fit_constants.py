"""The two constants that no arithmetic gives, from measured runs of a device; and how good it is.

Owns the fit of `Constants.context_bytes` and `Constants.fragmentation`, and the error that a run
would have had with what the others taught (each run is left out once: the figure is no flattery).
`spread` and `loading` stay as they are. Pure arithmetic.

On a card both are measured: context = what NVML counts for the process beyond the allocator's
reserve; gaps = (reserved - allocated) / what comes and goes. Where NVML lists no process (WSL,
most containers) the context stays as it is. On a CPU only their sum is measured, the resident set:
a line through the runs, held near the constants to begin with as long as few runs tell them apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studio.core.memory import Constants
from studio.core.run_memory import ALLOCATED, PROCESS, RESERVED, RunMemory, read_constants

CONSTANTS_FILE = Path("cache") / "memory_constants.json"  # in the workspace

ENOUGH_RUNS = 3
MAX_RUNS = 20  # the newest; drivers and versions change
# How far a figure may be from its line, and a constant from where it began, before it counts.
_DOUBT_SHARE = 0.02
_CONTEXT_DOUBT, _GAPS_DOUBT = 1.0, 0.5
_MAX_GAPS = 2.0


@dataclass(frozen=True)
class Fit:
    """What the runs of a device taught.

    Attributes:
        constants: None before there are ENOUGH_RUNS.
        errors: (predicted - measured) / measured of each run, newest first.
        kinds: how many different predictions are among the runs: of one recipe alone, an error
            says little of another.
    """

    runs: int
    constants: Constants | None = None
    errors: tuple[float, ...] = ()
    kinds: int = 0

    @property
    def median(self) -> float | None:
        """Of the absolute errors."""
        return statistics.median(map(abs, self.errors)) if self.errors else None

    @property
    def worst(self) -> float | None:
        """Of the absolute errors."""
        return max(map(abs, self.errors)) if self.errors else None


def fit(records: Sequence[RunMemory], base: Constants) -> Fit:
    """Of the complete records of one device, newest first.

    Args:
        base: the constants to begin with on such a device.
    """
    usable = [record for record in records if record.is_complete][:MAX_RUNS]
    if len(usable) < ENOUGH_RUNS:
        return Fit(len(usable))
    errors = []
    for place, record in enumerate(usable):
        others = [*usable[:place], *usable[place + 1 :]]
        errors.append(error_of(record, constants_from(others, base)))
    found = (record.predicted for record in usable)
    kinds = len({(one.countable, one.passing) for one in found if one is not None})
    return Fit(len(usable), constants_from(usable, base), tuple(errors), kinds)


def error_of(record: RunMemory, constants: Constants) -> float:
    """(predicted - measured) / measured of a complete record."""
    assert record.predicted is not None and record.peak_bytes is not None
    measured = record.peak_bytes
    if record.on_cuda and record.most(PROCESS) is None:
        measured += constants.context_bytes  # the allocator alone was seen
    return record.predicted.expected_with(constants) / measured - 1


def constants_from(records: Sequence[RunMemory], base: Constants) -> Constants:
    """The constants that explain these complete records best."""
    if all(record.on_cuda for record in records):
        return _of_card(records, base)
    return _of_host([record for record in records if not record.on_cuda], base)


def _of_card(records: Sequence[RunMemory], base: Constants) -> Constants:
    contexts, gaps, passing = [], 0, 0
    for record in records:
        allocated, reserved = record.most(ALLOCATED), record.most(RESERVED)
        process = record.most(PROCESS)
        if reserved is not None and process is not None and process > reserved:
            contexts.append(process - reserved)
        if reserved is not None and allocated is not None and record.predicted is not None:
            gaps += max(0, reserved - allocated)
            passing += record.predicted.passing
    context = round(statistics.median(contexts)) if contexts else base.context_bytes
    share = min(_MAX_GAPS, gaps / passing) if passing else base.fragmentation
    return replace(base, context_bytes=context, fragmentation=share)


def _of_host(records: Sequence[RunMemory], base: Constants) -> Constants:
    """Least squares for resident = countable + context + gaps x passing, with both constants held
    near the base by how much they may differ (ridge)."""
    context_doubt = _CONTEXT_DOUBT * base.context_bytes
    # The 2 x 2 system in units of the two doubts.
    a, b, d = 1.0, 0.0, 1.0
    right_a, right_b = 0.0, 0.0
    for record in records:
        found, measured = record.predicted, record.peak_bytes
        assert found is not None and measured is not None
        doubt = _DOUBT_SHARE * measured
        rest = (measured - found.expected_with(base)) / doubt
        x, y = context_doubt / doubt, _GAPS_DOUBT * found.passing / doubt
        a, b, d = a + x * x, b + x * y, d + y * y
        right_a, right_b = right_a + x * rest, right_b + y * rest
    determinant = a * d - b * b  # at least 1: the doubts alone make the unit matrix
    context = base.context_bytes + context_doubt * (d * right_a - b * right_b) / determinant
    share = base.fragmentation + _GAPS_DOUBT * (a * right_b - b * right_a) / determinant
    return replace(
        base, context_bytes=max(0, round(context)), fragmentation=min(_MAX_GAPS, max(0.0, share))
    )


def kept_constants(record: Any) -> dict[str, Constants]:
    """By device, of `to_kept` after any journey; what cannot be read is left out."""
    devices = record.get("devices") if isinstance(record, dict) else None
    found = {}
    for name, values in (devices if isinstance(devices, dict) else {}).items():
        try:
            found[str(name)] = read_constants(values)
        except ValueError:
            continue
    return found


def to_kept(constants: Mapping[str, Constants]) -> dict[str, Any]:
    """For JSON; the inverse is `kept_constants`."""
    return {"devices": {name: asdict(found) for name, found in constants.items()}}
