"""From a table of tokens to the summary that the page keeps: `core.token_stats.TokenSummary`.

Owns the counting over whole arrays. What the numbers mean and what follows from them is core's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from studio.backend.token_cache import TokenTable
from studio.core.token_stats import MAX_POINTS, SAMPLE_ROWS, Steps, TokenSummary

LISTED_ROWS = 100_000  # of each kind; as many as the lists of the other checks (findings)
_BLOCK_TOKENS = 1 << 24


def summarise(
    table: TokenTable, *, max_length: int | None = None, rows: Sequence[int] | None = None,
    seed: int = 0,
) -> TokenSummary:  # fmt: skip
    """Count everything about the rows of a table.

    Args:
        max_length: with it the first rows that are cut, lose their answer or teach nothing are
            listed.
        rows: the row numbers to count; by default all.
    """
    chosen = numpy.arange(len(table)) if rows is None else numpy.array(rows, numpy.int64)
    refused = table.refused(chosen)
    lengths = table.lengths()[chosen]
    some = lengths > 0
    chosen, lengths = chosen[some], lengths[some]
    first, last = table.fact("first")[chosen], table.fact("last")[chosen]
    longest = int(lengths.max()) if len(lengths) else 0
    grid = max(1, math.ceil(longest / MAX_POINTS))
    trained = _trained_places(table, chosen, longest)
    order = numpy.random.default_rng(seed).permutation(len(lengths))[:SAMPLE_ROWS]
    return TokenSummary(
        rows=len(chosen), refused=sum(refused.values()), never_trained=int((first < 0).sum()),
        tokens=int(lengths.sum()), trained_tokens=int(table.fact("trained")[chosen].sum()),
        longest=longest, lengths=_steps(numpy.bincount(lengths), grid),
        answer_starts=_steps(numpy.bincount(first[first >= 0]), grid),
        answer_ends=_steps(numpy.bincount(last[last >= 0]), grid),
        trained=_steps(trained, grid), sample=lengths[order].tolist(), exact=grid == 1,
        refused_reasons=refused,
        first_rows={} if max_length is None else _first_rows(chosen, lengths, first, max_length),
    )  # fmt: skip


def _first_rows(
    rows: numpy.ndarray, lengths: numpy.ndarray, first: numpy.ndarray, max_length: int
) -> dict[str, list[int]]:
    kinds = {
        "cut": lengths > max_length,
        "answer_cut": first >= max_length,
        "no_trained_token": (first < 0) | (first >= max_length),
    }
    return {name: rows[which][:LISTED_ROWS].tolist() for name, which in kinds.items()}


def _steps(counts: numpy.ndarray, grid: int) -> Steps:
    """Counts by place as steps; places are rounded up to a multiple of `grid`."""
    places = numpy.flatnonzero(counts)
    values = counts[places]
    if grid > 1 and len(places):
        rounded = -(-places // grid) * grid
        places, inverse = numpy.unique(rounded, return_inverse=True)
        values = numpy.bincount(inverse, weights=values).astype(numpy.int64)
    return Steps(places.tolist(), values.tolist())


def _trained_places(table: TokenTable, rows: numpy.ndarray, longest: int) -> numpy.ndarray:
    """Learned tokens at each place of a row, over all rows; some rows at a time."""
    counts = numpy.zeros(longest + 1, numpy.int64)
    ends, lengths = table.ends.astype(numpy.int64), table.lengths()
    wanted = numpy.zeros(len(table), bool)
    wanted[rows] = True
    start = 0
    while start < len(table):
        base = int(ends[start] - lengths[start])
        stop = max(start + 1, int(numpy.searchsorted(ends, base + _BLOCK_TOKENS, side="right")))
        learned = numpy.flatnonzero(table.learned[base : int(ends[stop - 1])])
        block = ends[start:stop] - base
        owner = numpy.searchsorted(block, learned, side="right")
        place = learned - (block - lengths[start:stop])[owner]
        keep = wanted[start:stop][owner] & (place > 0)  # the first token is never predicted
        counts += numpy.bincount(place[keep], minlength=longest + 1)
        start = stop
    return counts
