"""Which rows share a sequence: best-fit decreasing, as TRL's `pack_dataset` does it.

Pure: knows lengths only. The trainer packs by it and the page counts sequences by it, so both see
the same ones. A test holds it against TRL's result, bit for bit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

PACK_ROWS = 1000  # rows packed together: the batch size of `datasets.Dataset.map`, which TRL uses


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers of each sequence; no sequence is longer than `capacity` tokens.

    Longer rows count as `capacity` (they are cut), empty ones are left out. Rows stay in blocks of
    PACK_ROWS; within a block the longest comes first and takes the fullest place it fits into.
    """
    bins: list[list[int]] = []
    for start in range(0, len(lengths), PACK_ROWS):
        block = [min(length, capacity) for length in lengths[start : start + PACK_ROWS]]
        bins += [[start + row for row in rows] for rows in _pack_block(block, capacity)]
    return bins


def _pack_block(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows = [row for row, length in enumerate(lengths) if length > 0]
    rows.sort(key=lambda row: -lengths[row])  # stable, as Arrow's sort is
    bins: list[list[int]] = []
    spaces: list[int] = []  # free places that some sequence has, in ascending order, each once
    waiting: dict[int, deque[int]] = {}
    for row in rows:
        length = lengths[row]
        at = bisect_left(spaces, length)
        if at < len(spaces):
            space = spaces[at]
            place = waiting[space].popleft()
            if not waiting[space]:
                del spaces[at], waiting[space]
        else:
            space, place = capacity, len(bins)
            bins.append([])
        bins[place].append(row)
        left = space - length
        if left > 0:
            if left not in waiting:
                insort(spaces, left)
                waiting[left] = deque()
            waiting[left].append(place)
    return bins
