"""What a maximum length does to a data set: rows cut, answers lost, padding, steps.

Owns a compact summary of the lengths of all rows and the arithmetic on it. Pure: `TokenSummary` is
made by the backend once per data set, model and loss, travels as JSON, and answers "what if
max_length were L" in milliseconds, so that a line can be dragged on a histogram. Knows nothing of
tokenizers or files.

Counts are exact where `exact` is true. With more than MAX_POINTS different lengths they are rounded
up to a grid, at most 1/MAX_POINTS of the longest row. Padding and packing are simulated on a sample
of at most SAMPLE_ROWS rows; their standard error is about 1 % of the share.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from studio.core.packing import pack_best_fit

MAX_POINTS = 4096
SAMPLE_ROWS = 2000
MEGABATCH = 50  # micro-batches that the trainer sorts by length together
KEEP_SHARE = 0.99


@dataclass(frozen=True)
class Steps:
    """A step function of the position: sorted `at`, and how much is added at each."""

    at: list[int]
    count: list[int]
    _total: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_total", list(accumulate(self.count)))

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return self._total[-1] if self._total else 0

    def up_to(self, position: int) -> int:
        """The sum of the counts at places up to and with `position`."""
        place = bisect_right(self.at, position)
        return self._total[place - 1] if place else 0

    def above(self, position: int) -> int:
        """The sum of the counts at places behind `position`."""
        return self.total - self.up_to(position)


@dataclass(frozen=True)
class TokenSummary:
    """Lengths of all rows of a data set, for one tokenizer, template and loss.

    Attributes:
        rows: that have tokens. refused: that the template cannot render.
        refused_reasons: each reason with its rows.
        never_trained: rows of which no token is learned at any length.
        tokens, trained_tokens: of all rows, whole.
        lengths: tokens of a row -> rows.
        answer_starts: place (from 0) of the first learned token of a row -> rows.
        answer_ends: place of the last learned token -> rows.
        trained: place -> learned tokens there, over all rows.
        sample: lengths of rows in random order.
        exact: whether lengths and places are not rounded up.
        first_rows: {check: [row, ...]} examples at the max_length the summary was asked with.
    """

    rows: int
    refused: int
    never_trained: int
    tokens: int
    trained_tokens: int
    longest: int
    lengths: Steps
    answer_starts: Steps
    answer_ends: Steps
    trained: Steps
    sample: list[int]
    exact: bool = True
    refused_reasons: dict[str, int] = field(default_factory=dict)
    first_rows: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        record = asdict(self)
        for name in ("lengths", "answer_starts", "answer_ends", "trained"):
            record[name].pop("_total")
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TokenSummary:
        """The inverse of `to_dict`."""
        values = dict(record)
        for name in ("lengths", "answer_starts", "answer_ends", "trained"):
            values[name] = Steps(list(values[name]["at"]), list(values[name]["count"]))
        return cls(**values)


@dataclass(frozen=True)
class Cut:
    """What one `max_length` does.

    Attributes:
        rows_cut: rows that lose tokens. answer_cut: of them, those whose last answer loses some.
        answer_lost: rows whose whole answer is behind the cut: they train nothing, left out.
        no_trained_token: rows left out for want of a learned token, those of `answer_lost` and
            those that never have one.
        trained_share: learned tokens / tokens that remain.
        keeps_99: smallest max_length that keeps 99 % of the rows whole.
    """

    max_length: int
    rows: int
    rows_cut: int
    answer_cut: int
    answer_lost: int
    no_trained_token: int
    tokens: int
    trained_tokens: int
    cut_tokens: int
    keeps_99: int

    @property
    def rows_cut_share(self) -> float:
        """Rows cut / rows."""
        return self.rows_cut / self.rows if self.rows else 0.0

    @property
    def trained_share(self) -> float:
        """Learned tokens / tokens that remain."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the shares."""
        return {**asdict(self), "rows_cut_share": self.rows_cut_share,
                "trained_share": self.trained_share}  # fmt: skip


@dataclass(frozen=True)
class Padding:
    """Padding of one way to make batches.

    Attributes:
        waste_share: padding / (padding + tokens) of a micro-batch, in the mean.
        steps_per_epoch: optimizer steps; with packing estimated from the sample.
    """

    way: str
    waste_share: float
    steps_per_epoch: int


def cut_at(summary: TokenSummary, max_length: int) -> Cut:
    """What `max_length` does to the rows. Exact (or rounded, see the module), microseconds."""
    last = max_length - 1  # the last place that is kept
    rows_cut = summary.lengths.above(max_length)
    lost = summary.answer_starts.above(last)
    tokens = _tokens_kept(summary.lengths, max_length)
    return Cut(
        max_length=max_length, rows=summary.rows, rows_cut=rows_cut,
        answer_cut=summary.answer_ends.above(last), answer_lost=lost,
        no_trained_token=lost + summary.never_trained, tokens=tokens,
        trained_tokens=summary.trained.up_to(last), cut_tokens=summary.tokens - tokens,
        keeps_99=length_that_keeps(summary, KEEP_SHARE),
    )  # fmt: skip


def _tokens_kept(lengths: Steps, max_length: int) -> int:
    place = bisect_right(lengths.at, max_length)
    whole = sum(
        at * count for at, count in zip(lengths.at[:place], lengths.count[:place], strict=True)
    )
    return whole + max_length * lengths.above(max_length)


def length_that_keeps(summary: TokenSummary, share: float) -> int:
    """The smallest max_length at which so many of the rows stay whole."""
    if not summary.rows:
        return 0
    wanted = math.ceil(share * summary.lengths.total - 1e-9)
    place = bisect_left(summary.lengths._total, wanted)
    return summary.lengths.at[min(place, len(summary.lengths.at) - 1)]


def histogram(summary: TokenSummary, bins: int = 60) -> list[dict[str, int]]:
    """Bars of equal width over the lengths: {"from", "to" (with), "rows"}."""
    if not summary.rows:
        return []
    width = max(1, math.ceil(summary.longest / bins))
    return [
        {"from": start + 1, "to": start + width,
         "rows": summary.lengths.up_to(start + width) - summary.lengths.up_to(start)}
        for start in range(0, summary.longest, width)
    ]  # fmt: skip


def padding(
    summary: TokenSummary,
    max_length: int,
    *,
    batch_size: int,
    accumulation: int = 1,
    held_out: int = 0,
    seed: int = 0,
) -> list[Padding]:
    """Padding and steps of an epoch in random order, grouped by length, and packed.

    The batches are made of the sample as the trainer makes them of all rows.

    Args:
        held_out: how many of the summary's rows do not train.
    """
    lengths = [min(length, max_length) for length in summary.sample if length > 0]
    usable = summary.rows - cut_at(summary, max_length).no_trained_token
    rows = round(usable * (1 - held_out / max(1, summary.rows)))
    if not lengths or rows < 1:
        return []
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    shuffled = [lengths[row] for row in order]
    grouped: list[int] = []
    for start in range(0, len(shuffled), batch_size * MEGABATCH):
        grouped += sorted(shuffled[start : start + batch_size * MEGABATCH])
    bins = pack_best_fit(shuffled, max_length)
    packed = max(1, round(len(bins) * rows / len(shuffled)))
    return [
        Padding("random", _waste(shuffled, batch_size), _steps(rows, batch_size, accumulation)),
        Padding("grouped", _waste(grouped, batch_size), _steps(rows, batch_size, accumulation)),
        # A packed micro-batch is one long row without padding; what is lost is free places.
        Padding("packed", 0.0, _steps(packed, batch_size, accumulation)),
    ]


def _waste(lengths: Sequence[int], batch_size: int) -> float:
    padded = sum(
        max(batch) * len(batch)
        for start in range(0, len(lengths), batch_size)
        if (batch := lengths[start : start + batch_size])
    )
    return 1.0 - sum(lengths) / padded


def _steps(rows: int, batch_size: int, accumulation: int) -> int:
    return max(1, math.ceil(math.ceil(rows / batch_size) / accumulation))


def explain(cut: Cut) -> str:
    """One sentence for the page and the command line."""
    share = f"{100 * cut.rows_cut_share:.1f} %"
    text = f"{cut.rows_cut:,} rows cut ({share})"
    if cut.answer_lost:
        text += f", {cut.answer_lost:,} lose the whole answer"
    if cut.keeps_99 > cut.max_length:
        text += f"; {cut.keeps_99:,} would keep 99 %"
    return text
