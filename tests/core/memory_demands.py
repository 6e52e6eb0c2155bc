"""Demands for tests of the estimator: real shapes, made-up but plausible costs of a step."""

from __future__ import annotations

from typing import Any

from studio.core.config import RunConfig
from studio.core.config_io import build_config, merge
from studio.core.memory import Demand
from studio.core.memory_methods import family
from studio.core.model_profile import ModelProfile, adapted_matrices
from studio.core.step_costs import Growth, StepCosts, VariantCosts

RESOLVED: dict[str, Any] = {
    "model": {"dtype": "bfloat16", "attn_implementation": "sdpa"},
    "quantization": {"bnb_4bit_compute_dtype": "bfloat16"},
    "train": {"activation_checkpointing": True, "optim": "adamw_torch_fused", "eval_steps": 10,
              "save_steps": 10},
    "runtime": {"device": "cuda:0", "num_threads": 1},
}  # fmt: skip


def resolved(values: dict[str, Any] | None = None) -> RunConfig:
    """A configuration without auto."""
    return build_config(merge(RESOLVED, values or {}))


def costs_for(profile: ModelProfile, config: RunConfig) -> VariantCosts:
    """Of the order of counted ones: 2 h bytes a token and layer with checkpointing, 68 h without;
    a mask of 2 bytes a pair where rows are padded or packed."""
    hidden, train = profile.hidden_size, config.train
    per_token = 2.0 * hidden if train.activation_checkpointing is True else 68.0 * hidden
    masked = 2.0 if train.packing or train.per_device_train_batch_size > 1 else 0.0
    pairs = masked if train.activation_checkpointing is not True else 0.0
    adapter = 0.0 if train.activation_checkpointing is True else 14.0
    more = Growth((per_token, pairs, 0, 0, 0), adapter, 0)
    held = StepCosts(1, 1, Growth((per_token + 4.0 * hidden, masked, 0, 0, 0)), more)
    peak = StepCosts(1, 1, Growth((per_token + 90.0 * hidden, masked, 0, 0, 0)), more)
    forward = StepCosts(1, 1, Growth((30.0 * hidden, masked, 0, 0, 0)), Growth((0.0,) * 5))
    return VariantCosts(held, peak, forward)


def demand(
    values: dict[str, Any] | None = None, size: str = "7 B", **changes: Any
) -> Demand:  # fmt: skip
    """The question for a size of LLaMA."""
    config, profile = resolved(values), family()[size]
    options: dict[str, Any] = {
        "config": config, "profile": profile, "adapted": adapted_matrices(profile, config.lora),
        "costs": costs_for(profile, config), "rows_tokens": config.train.max_length, **changes,
    }  # fmt: skip
    return Demand(**options)
