"""Checks that need all rows at once, from the hashes of the rows alone.

Owns exact duplicates, conflicting answers and the overlap of training and held-out rows. Works on
the array of `hashes.npy` (rows, 3): whole row, prompt, last answer (core.checks.row_hashes), sorts
it and compares neighbours, so a million rows take a second and some 50 bytes each, and no text is
read again. Row positions count from 0 in the order of data.jsonl. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studio.core.split import split

WHOLE, PROMPT, ANSWER = 0, 1, 2

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Rows that a check names, each with the row that it is compared with.

    Attributes:
        rows: positions in ascending order.
        others: for each of them the position of its counterpart.
    """

    rows: Positions
    others: Positions

    def __len__(self) -> int:
        return len(self.rows)


def _repeated(values: NDArray[np.uint64]) -> Positions:
    """Positions of the values that stand more than once, in ascending order.

    Most stand once, and the sort that tells so is four times as fast as a stable one.
    """
    order = np.argsort(values)
    ordered = values[order]
    same = ordered[1:] == ordered[:-1]
    several = np.zeros(len(values), dtype=bool)
    several[1:] = same
    several[:-1] |= same
    return np.sort(order[several])


def _groups(values: NDArray[np.uint64]) -> tuple[Positions, Positions]:
    """(order, first): positions sorted by value, and for each place the place its group begins.

    The sort is stable, so the rows of a group stay in their order.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.empty(len(values), dtype=bool)
    begins[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(values)), 0))
    return order, first


def _ascending(rows: Positions, others: Positions) -> Matches:
    by_row = np.argsort(rows, kind="stable")
    return Matches(rows[by_row].astype(np.int64), others[by_row].astype(np.int64))


def duplicates(hashes: NDArray[np.uint64]) -> Matches:
    """Rows that repeat an earlier one; the counterpart is the first of them, which is not named."""
    whole = np.ascontiguousarray(hashes[:, WHOLE])
    rows = _repeated(whole)
    order, first = _groups(whole[rows])
    repeats = first != np.arange(len(order))
    return _ascending(rows[order[repeats]], rows[order[first[repeats]]])


def conflicting_answers(hashes: NDArray[np.uint64]) -> Matches:
    """Rows whose prompt has another answer elsewhere, all of them.

    The counterpart is the first row of that prompt whose answer differs. Plain texts (prompt 0)
    have no prompt, so nothing conflicts.
    """
    prompts = np.ascontiguousarray(hashes[:, PROMPT])
    prompted = _repeated(prompts)
    prompted = prompted[prompts[prompted] != 0]
    order, first = _groups(prompts[prompted])
    answers = hashes[prompted, ANSWER][order]
    differs = answers != answers[first]  # from the first answer of the group
    # The first place of each group where the answer differs; places without one point to the end.
    end = len(order)
    places = np.where(differs, np.arange(end), end)
    begins = np.flatnonzero(first == np.arange(end))
    earliest = np.minimum.reduceat(places, begins) if end else places
    group = np.cumsum(first == np.arange(end)) - 1
    other = np.where(differs, first, earliest[group] if end else first)
    named = other < end
    rows = prompted[order[named]]
    return _ascending(rows, prompted[order[other[named]]])


def held_out_overlap(hashes: NDArray[np.uint64], val_frac: float, seed: int) -> Matches:
    """Held-out rows that train too, each with the first training row that equals it."""
    train, held_out = (np.asarray(rows, np.int64) for rows in split(len(hashes), val_frac, seed))
    return overlap(hashes, train, held_out)


def overlap(hashes: NDArray[np.uint64], train: Positions, held_out: Positions) -> Matches:
    """As `held_out_overlap`, for rows that are held out by choice."""
    whole = np.ascontiguousarray(hashes[:, WHOLE])
    trained, first = np.unique(whole[train], return_index=True)
    if not len(trained):
        return Matches(held_out[:0], held_out[:0])
    at = np.minimum(np.searchsorted(trained, whole[held_out]), len(trained) - 1)
    same = trained[at] == whole[held_out]
    return Matches(held_out[same], train[first[at[same]]])
