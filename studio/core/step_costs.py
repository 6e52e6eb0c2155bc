"""How the memory of a training step grows with batch, length, rank and layers.

Owns the polynomial and the variants it is measured for. `backend.activations` counts passes of a
small stack of layers; `fit` turns a few counts into coefficients; `StepCosts.bytes_at` answers for
any size in microseconds. Pure arithmetic; knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Variant:
    """What changes the kinds of tensors of a step, not their sizes.

    Attributes:
        target_modules: as in `LoraSection`.
        dtype: of the weights and, unless float32, of autocast.
        attention: sdpa or eager.
        adapter_cast: peft casts an input to the adapter's fp32 (not over a 4-bit base on CUDA).
        dropout: whether lora_dropout is above 0.
        dora: use_dora.
        full: all weights are trained, there is no adapter.
        padded: rows of a batch differ in length, so attention gets a mask.
        packed: several rows in one sequence, kept apart by a mask of length x length.
        checkpointing: activations are recomputed in the backward pass.
    """

    target_modules: str | tuple[str, ...] = "all-linear"
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    adapter_cast: bool = True
    dropout: bool = False
    dora: bool = False
    full: bool = False
    padded: bool = False
    packed: bool = False
    checkpointing: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the inverse is `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Variant:
        """Of `to_dict`."""
        targets = record["target_modules"]
        return cls(**{**record, "target_modules": (
            targets if isinstance(targets, str) else tuple(targets))})  # fmt: skip


# Sizes at which passes are counted: (rows, tokens). Shape-only passes cost the same at any size, so
# these are of the order of real ones, where the same tensors make the peak.
POINTS = ((1, 512), (1, 2048), (1, 4096), (2, 2048), (4, 1024))
RANKS = (8, 64)
RANK_POINTS = (1, 2)  # which of POINTS are counted with RANKS[1], too


def _terms(batch: int, length: int) -> tuple[float, ...]:
    """Linear in tokens; quadratic in length a row (eager attention) and once (shared masks)."""
    return (batch * length, batch * length**2, length**2, length, 1.0)


@dataclass(frozen=True)
class Growth:
    """Bytes as a polynomial of rows and tokens, with parts that grow with the rank."""

    terms: tuple[float, ...]
    per_rank_token: float = 0.0
    per_rank: float = 0.0

    def at(self, *, batch: int, length: int, r: int) -> float:
        """Bytes for `batch` rows of `length` tokens at rank `r`."""
        fixed = sum(c * t for c, t in zip(self.terms, _terms(batch, length), strict=True))
        return fixed + r * (self.per_rank + self.per_rank_token * batch * length)


@dataclass(frozen=True)
class StepCosts:
    """Costs of one variant: a short stack of `layers`, and each `period` of layers more."""

    layers: int
    period: int
    base: Growth
    more: Growth

    def bytes_at(self, *, layers: int, batch: int, length: int, r: int) -> int:
        """Bytes of a step of a model of so many layers."""
        size = {"batch": batch, "length": length, "r": r}
        steps = max(0, layers - self.layers) / self.period
        return max(0, round(self.base.at(**size) + steps * self.more.at(**size)))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> StepCosts:
        """Of `dataclasses.asdict`."""

        def growth(part: Mapping[str, Any]) -> Growth:
            return Growth(tuple(part["terms"]), part["per_rank_token"], part["per_rank"])

        return cls(
            record["layers"], record["period"], growth(record["base"]), growth(record["more"])
        )


@dataclass(frozen=True)
class VariantCosts:
    """What a step of one variant takes beside weights, adapter and gradients.

    Attributes:
        held: what lives between the forward and the backward pass, while the head works.
        peak: the most that lives at one time; the head left out.
        forward: the most of a pass without gradients (evaluation).
    """

    held: StepCosts
    peak: StepCosts
    forward: StepCosts

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the inverse is `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> VariantCosts:
        """Of `to_dict`."""
        return cls(*(StepCosts.from_dict(record[name]) for name in ("held", "peak", "forward")))


def fit(counts: Sequence[float], at_rank: Sequence[float]) -> Growth:
    """Coefficients from counts at POINTS with RANKS[0], and at RANK_POINTS with RANKS[1].

    Seven counts decide seven coefficients; the linear system is solved exactly.
    """
    (first, second), ranks = RANK_POINTS, RANKS[1] - RANKS[0]
    tokens = [POINTS[place][0] * POINTS[place][1] for place in (first, second)]
    slopes = [
        (high - counts[place]) / ranks for high, place in zip(at_rank, RANK_POINTS, strict=True)
    ]
    per_token = (slopes[1] - slopes[0]) / (tokens[1] - tokens[0])
    per_rank = slopes[0] - per_token * tokens[0]
    bare = [
        count - RANKS[0] * (per_rank + per_token * b * s)
        for count, (b, s) in zip(counts, POINTS, strict=True)
    ]
    terms = tuple(_solve([list(_terms(b, s)) for b, s in POINTS], bare))
    return Growth(terms, per_token, per_rank)


def _solve(matrix: list[list[float]], values: list[float]) -> list[float]:
    """Gaussian elimination with partial pivoting, in exact fractions: the terms span 12 decades."""
    rows = [
        [Fraction(x) for x in row] + [Fraction(y)]
        for row, y in zip(matrix, values, strict=True)
    ]  # fmt: skip
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column] / rows[column][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [float(rows[i][size] / rows[i][i]) for i in range(size)]
