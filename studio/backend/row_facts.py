"""What the rows of a run do to its memory: kept in state.json, where a killed run has left it too.

Owns the counting. Who reads it: the out-of-memory doctor and whoever else estimates a run anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from studio.core.fit_memory import LENGTHS

if TYPE_CHECKING:
    from studio.backend.data import TrainingData


def row_facts(data: TrainingData, max_length: int) -> dict[str, Any]:
    """`longest_tokens` as the trainer sees the rows; `learned_share` of the tokens; `rows_over`:
    how many rows are longer than each shorter length that may be proposed, and for max_length
    itself those that it cuts already."""
    lengths = numpy.concatenate([rows.lengths for rows in (data.train, data.held_out)])
    over = {str(n): int((lengths > n).sum()) for n in LENGTHS if n < max_length}
    over[str(max_length)] = data.counts.get("truncated", 0)
    return {
        "longest_tokens": int(lengths.max(initial=0)) or None,
        "learned_share": round(data.train.trained_share, 4), "rows_over": over,
    }  # fmt: skip
