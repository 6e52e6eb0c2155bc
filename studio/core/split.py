"""Which rows train and which are held out: the one rule for the page, the trainer and the CLI.

Pure and deterministic. Knows row numbers only, nothing of what the rows hold.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

MIN_ROWS_TO_SPLIT = 5


def num_held_out(n_rows: int, val_frac: float) -> int:
    """How many rows are held out.

    At least one where `val_frac` is above 0 and there are MIN_ROWS_TO_SPLIT rows; below that none,
    because a measurement on one of four rows costs more than it tells. One row always trains.
    """
    if val_frac <= 0 or n_rows < MIN_ROWS_TO_SPLIT:
        return 0
    return min(n_rows - 1, max(1, round(n_rows * val_frac)))


def split(n_rows: int, val_frac: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers (from 0) that train and that are held out, both in ascending order.

    `random()` is the one method whose sequence Python promises to keep between versions, so rows
    are ranked by it; `sample` and `shuffle` carry no such promise.
    """
    count = num_held_out(n_rows, val_frac)
    if count == 0:
        return list(range(n_rows)), []
    draw = random.Random(seed).random
    ranked = sorted(range(n_rows), key=[draw() for _ in range(n_rows)].__getitem__)
    chosen = set(ranked[:count])
    train = [row for row in range(n_rows) if row not in chosen]
    return train, sorted(chosen)


def split_chosen(n_rows: int, held_out: Iterable[int]) -> tuple[list[int], list[int]]:
    """`split` where the held-out rows were chosen by hand. Numbers of no row are passed over."""
    chosen = {row for row in held_out if 0 <= row < n_rows}
    return [row for row in range(n_rows) if row not in chosen], sorted(chosen)
