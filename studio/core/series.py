"""Arithmetic on curves: smoothing, downsampling, remaining time. Knows no run and no chart."""

from __future__ import annotations

import math
from collections.abc import Sequence


def smooth(values: Sequence[float | None], weight: float = 0.9) -> list[float | None]:
    """Exponential moving average with bias correction; None where nothing finite came yet.

    s_i = w s_(i-1) + (1 - w) x_i, shown as s_i / (1 - w^i) (Kingma & Ba 2015, section 3), so that
    the first values are not pulled to zero. A None or non-finite value repeats the last average.
    """
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"weight={weight} is not allowed; choose 0 to below 1")
    average, count, result = 0.0, 0, []
    for value in values:
        if value is not None and math.isfinite(value):
            average = weight * average + (1.0 - weight) * value
            count += 1
        result.append(average / (1.0 - weight**count) if count else None)
    return result


def downsample(
    xs: Sequence[float], ys: Sequence[float | None], limit: int
) -> tuple[list[float], list[float | None]]:
    """At most `limit` points that keep the first, the last, and each bucket's lowest and highest.

    A spike is never lost, which a plain stride would do.
    """
    if limit < 4:
        raise ValueError(f"limit={limit} is not allowed; choose 4 or more")
    count = len(xs)
    if count <= limit:
        return list(xs), list(ys)
    buckets = (limit - 2) // 2
    kept = {0, count - 1}
    for bucket in range(buckets):
        low = 1 + bucket * (count - 2) // buckets
        high = 1 + (bucket + 1) * (count - 2) // buckets
        known = [i for i in range(low, high) if ys[i] is not None]
        if known:
            kept.add(min(known, key=lambda i: ys[i]))  # type: ignore[arg-type, return-value]
            kept.add(max(known, key=lambda i: ys[i]))  # type: ignore[arg-type, return-value]
    order = sorted(kept)
    return [xs[i] for i in order], [ys[i] for i in order]


class StepClock:
    """Remaining time from the median duration of the last steps: one slow step does not count.

    Args:
        window: how many steps are looked at.
    """

    def __init__(self, window: int = 20) -> None:
        self._window = window
        self._durations_s: list[float] = []
        self.last_s: float | None = None

    def add(self, duration_s: float) -> None:
        """Note the duration of one step."""
        self.last_s = duration_s
        self._durations_s = [*self._durations_s, duration_s][-self._window :]

    @property
    def step_s(self) -> float | None:
        """Median duration of a step; None before the first."""
        if not self._durations_s:
            return None
        ordered = sorted(self._durations_s)
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return (ordered[middle - 1] + ordered[middle]) / 2

    def eta_s(self, remaining_steps: int, *, overhead_frac: float = 0.0) -> float | None:
        """Seconds for so many steps when a share of the time goes to evaluation and saving."""
        if self.step_s is None:
            return None
        return max(0, remaining_steps) * self.step_s / (1.0 - min(0.9, max(0.0, overhead_frac)))
