"""What a step holds, predicted from fitted coefficients, against real tensors on the CPU.

The coefficients are fitted to shape-only passes at `core.step_costs.POINTS`; every size here is one
they have not seen. Counted on real tensors: what autograd saves (`saved_tensors_hooks`), or, with
checkpointing, which uses these hooks itself, what lives between the two passes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from studio.core.step_costs import Variant, VariantCosts
from tests.memory.models import CAUSAL, small_config

LAYERS = 4


@dataclass(frozen=True)
class Combination:
    """One step. Sizes are held out: none is in POINTS or RANKS."""

    kind: str
    variant: Variant
    batch: int
    length: int
    r: int
    layers: int

    def __str__(self) -> str:
        v = self.variant
        words = [self.kind, v.attention, v.dtype, "checkpointing" if v.checkpointing else "",
                 "padded" if v.padded else "", "" if v.adapter_cast else "no cast",
                 f"{self.batch} x {self.length}", f"r={self.r}",
                 f"{self.layers} layers"]  # fmt: skip
        return " ".join(word for word in words if word)


def combinations() -> list[Combination]:
    """72 of them, the same each time."""
    chance = random.Random(5)
    found = []
    kinds = (("float32", True, False), ("bfloat16", True, True), ("bfloat16", False, False))
    for kind, attention, checkpointing, (dtype, cast, padded) in itertools.product(
        CAUSAL, ("sdpa", "eager"), (False, True), kinds
    ):
        variant = Variant(dtype=dtype, attention=attention, adapter_cast=cast, padded=padded,
                          checkpointing=checkpointing)  # fmt: skip
        found.append(Combination(
            kind, variant, batch=chance.choice((2, 3, 5)), length=chance.choice((96, 160, 200)),
            r=chance.choice((4, 16, 24)), layers=chance.choice((2, 3, 4)),
        ))  # fmt: skip
    return found


def compare(combination: Combination) -> tuple[int, int]:
    """(predicted, real) bytes."""
    costs = costs_of(combination)
    predicted = costs.held.bytes_at(
        layers=combination.layers, batch=combination.batch, length=combination.length,
        r=combination.r,
    )  # fmt: skip
    return predicted, real_bytes(combination)


_COSTS: dict[tuple[str, Variant], VariantCosts] = {}


def costs_of(combination: Combination) -> VariantCosts:
    """Fitted once a kind and variant."""
    from studio.backend.profile import measure_costs

    key = (combination.kind, combination.variant)
    if key not in _COSTS:
        _COSTS[key] = measure_costs(small_config(combination.kind, LAYERS), combination.variant)
    return _COSTS[key]


def real_bytes(combination: Combination) -> int:
    """Counted in a forward pass on the CPU."""
    import torch

    from studio.backend.activations import LiveBytes

    model, inputs = _real(combination)
    trunk = model.get_base_model().base_model
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved.setdefault(storage._cdata, (storage.nbytes(), storage))
        return tensor

    dtype = getattr(torch, combination.variant.dtype)
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    if combination.variant.checkpointing:
        live = LiveBytes(known)
        with live, autocast:
            hidden = trunk(**inputs, use_cache=False).last_hidden_state
        assert hidden.requires_grad
        return live.now
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast:
        trunk(**inputs, use_cache=False)
    return sum(size for size, _ in saved.values())


def _real(combination: Combination) -> tuple[Any, dict[str, Any]]:
    """The model with random weights, as `backend.activations.build_on_meta` builds it."""
    import torch
    from transformers import AutoModelForCausalLM

    from studio.backend.adapters import attach
    from studio.core.config import LoraSection

    variant = combination.variant
    model = AutoModelForCausalLM.from_config(
        small_config(combination.kind, combination.layers), dtype=getattr(torch, variant.dtype),
        attn_implementation=variant.attention,
    )  # fmt: skip
    model.requires_grad_(False)
    model = attach(model, LoraSection(r=combination.r), seed=0)
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = variant.adapter_cast
    if variant.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    ids = torch.zeros((combination.batch, combination.length), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    return model.train(), {"input_ids": ids, "attention_mask": mask if variant.padded else None}


def compare_all() -> Iterator[tuple[Combination, int, int]]:
    """All combinations with (predicted, real) bytes."""
    for combination in combinations():
        yield (combination, *compare(combination))
