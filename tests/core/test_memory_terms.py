"""Terms of memory against figures that can be checked by hand or are published."""

from __future__ import annotations

import pytest

from studio.core import memory_terms as terms
from studio.core.config import LoraSection
from studio.core.memory_methods import (
    METHODS,
    Method,
    base_weights,
    family,
    rank_in_numbers,
    resident_bytes,
)

GIB = 2**30


def test_bits_of_a_weight() -> None:
    weights = 4096 * 4096
    assert 8 * terms.weights_4bit(weights, double_quant=False) / weights == pytest.approx(4.5, 1e-4)
    double = 8 * terms.weights_4bit(weights, double_quant=True) / weights
    assert double == pytest.approx(4.127, abs=1e-3)
    assert terms.weights_8bit(4096, 4096) == weights + 4 * 4096


# Sizes of the checkpoints and of bitsandbytes' 4-bit tensors, in GiB.
@pytest.mark.parametrize(
    ("size", "params_b", "bf16", "nf4", "nf4_double"),
    [("7 B", 6.738, 12.55, 3.88, 3.60), ("13 B", 13.016, 24.24, 7.26, 6.71),
     ("33 B", 32.53, 60.59, 17.61, 16.22), ("65 B", 65.29, 121.60, 34.90, 32.09)],
)  # fmt: skip
def test_weights_of_the_llama_sizes(
    size: str, params_b: float, bf16: float, nf4: float, nf4_double: float
) -> None:
    profile = family()[size]
    assert profile.total_params / 1e9 == pytest.approx(params_b, abs=5e-3)
    for packing, gib in (("none", bf16), ("4bit", nf4), ("4bit_double", nf4_double)):
        method = Method("x", "x", packing=packing)  # type: ignore[arg-type]
        assert sum(base_weights(profile, method)) / GIB == pytest.approx(gib, abs=6e-3)


def test_well_known_figures_of_full_fine_tuning() -> None:
    assert terms.full_finetuning(7_000_000_000) == 112_000_000_000
    profile = family()["7 B"]
    full = resident_bytes(profile, METHODS[0], LoraSection())
    assert full == pytest.approx(16 * profile.total_params, rel=1e-6)


def test_65_b_in_12_gb_is_impossible() -> None:
    """The figure circulates; the 4-bit weights alone are 32 GiB."""
    double = Method("x", "x", packing="4bit_double")
    assert sum(base_weights(family()["65 B"], double)) > 32 * GIB


def test_what_rank_does() -> None:
    assert rank_in_numbers(4096, 4096, 8) == (16_777_216, 65_536)


def test_methods_are_ordered_by_memory() -> None:
    for profile in family().values():
        sizes = [resident_bytes(profile, method, LoraSection()) for method in METHODS]
        assert sizes == sorted(sizes, reverse=True)


def test_paged_states_are_the_same_bytes() -> None:
    shapes = [((64, 4096), 3), ((16,), 2)]
    plain, paged = (
        terms.optimizer_states(shapes, name) for name in ("adamw_8bit", "paged_adamw_8bit")
    )
    assert plain == paged
    assert terms.is_paged("paged_adamw_8bit") and not terms.is_paged("adamw_8bit")


def test_8bit_states_begin_at_4096_numbers() -> None:
    tables = 2 * 256 * 4
    assert terms.optimizer_states([((4095,), 1)], "adamw_8bit") == 8 * 4095
    assert terms.optimizer_states([((4096,), 1)], "adamw_8bit") == 2 * 4096 + 8 * 16 + tables


def test_fused_head_stops_growing_with_the_vocabulary() -> None:
    def at(vocab: int) -> int:
        return terms.fused_logits(2048, 1024, vocab, item_bytes=2, in_place=True)

    assert at(32_000) == at(152_000)
    assert terms.full_logits(2048, 152_000, item_bytes=2) > 4 * at(152_000)
