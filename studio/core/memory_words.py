"""Sentences about an estimate: whether it fits, and what would make it fit.

Pure; used by the page, the command line and the queue alike. Bytes come in, GiB go out.
"""

from __future__ import annotations

from collections.abc import Sequence

from studio.core.fit_memory import Change
from studio.core.memory import Estimate

GIB = 2**30


def answer(estimate: Estimate, free_bytes: int | None, advice: Sequence[Change] = ()) -> str:
    """For example "Fits with 1.9 GiB to spare" or "Needs 2.3 GiB more: 4-bit saves 9.1 GiB,
    checkpointing 3.4, batch 2 1.2"."""
    if estimate.unknown:
        left_out = ", ".join(estimate.unknown)
        known = f"At least {gib(estimate.expected)}; unknown for this model: {left_out}"
        if free_bytes is not None and estimate.expected > free_bytes:
            return f"{known}. Needs {gib(estimate.expected - free_bytes)} more already"
        return known
    if free_bytes is None:
        return f"Needs about {gib(estimate.expected)}; the memory of this device is unknown"
    spare = free_bytes - estimate.expected
    if estimate.high <= free_bytes:
        return f"Fits with {gib(spare)} to spare"
    savings = _savings(advice)
    if spare >= 0:
        worst = gib(estimate.high - free_bytes)
        return f"Fits barely: {gib(spare)} to spare, or {worst} too much at the worst{savings}"
    return f"Needs {gib(-spare)} more{savings}"


def gib(amount: int) -> str:
    """ "1.9 GiB"; below 0.1 GiB in MiB."""
    if abs(amount) < GIB / 10:
        return f"{amount / 2**20:.0f} MiB"
    return f"{amount / GIB:.1f} GiB"


def _savings(advice: Sequence[Change]) -> str:
    """The largest first; a title that ends in a number is told apart by "saves"."""
    large = sorted(advice, key=lambda change: -change.saved_bytes)[:4]
    parts = [f"{change.title} saves {gib(change.saved_bytes)}" for change in large]
    return ": " + ", ".join(parts) if parts else ""
