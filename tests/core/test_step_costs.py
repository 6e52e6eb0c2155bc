"""The polynomial of a step's memory: what is put in comes out, at sizes it has not seen."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.core.step_costs import (
    POINTS,
    RANK_POINTS,
    RANKS,
    Growth,
    StepCosts,
    Variant,
    VariantCosts,
    fit,
)

whole = st.integers(min_value=0, max_value=100_000)


@settings(max_examples=50, deadline=None)
@given(st.lists(whole, min_size=5, max_size=5), whole, whole)
def test_fit_finds_the_coefficients(terms: list[int], per_token: int, per_rank: int) -> None:
    true = Growth(tuple(map(float, terms)), float(per_token), float(per_rank))
    counts = [true.at(batch=b, length=s, r=RANKS[0]) for b, s in POINTS]
    at_rank = [true.at(batch=POINTS[i][0], length=POINTS[i][1], r=RANKS[1]) for i in RANK_POINTS]
    found = fit(counts, at_rank)
    for batch, length, r in ((3, 700, 16), (1, 32_768, 256), (16, 128, 4)):
        wanted = true.at(batch=batch, length=length, r=r)
        assert found.at(batch=batch, length=length, r=r) == pytest.approx(wanted, rel=1e-6, abs=4e3)


def test_layers_beyond_the_counted_ones_are_added() -> None:
    base, more = Growth((10.0, 0, 0, 0, 100.0)), Growth((2.0, 0, 0, 0, 5.0))
    costs = StepCosts(2, 1, base, more)
    size = {"batch": 2, "length": 8, "r": 8}
    assert costs.bytes_at(layers=2, **size) == 260
    assert costs.bytes_at(layers=12, **size) == 260 + 10 * 37
    assert costs.bytes_at(layers=1, **size) == 260


def test_costs_and_variants_travel_as_json() -> None:
    costs = StepCosts(2, 1, Growth((1.0,) * 5, 2.0, 3.0), Growth((4.0,) * 5))
    kept = VariantCosts(costs, costs, costs)
    assert VariantCosts.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    for variant in (Variant(), Variant(target_modules=("q_proj", "v_proj"), packed=True)):
        assert Variant.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant
