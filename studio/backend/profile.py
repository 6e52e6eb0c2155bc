"""What an estimate needs to know of a model, from its config.json alone.

Owns the making of `core.model_profile.ModelProfile` and of `core.step_costs.VariantCosts`: the
model is built on the meta device, a short stack of it runs without storage (`backend.activations`).
Knows nothing of estimates, cards or weights.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from studio.backend.activations import Counted, count_steps
from studio.backend.shapes import BUILD_ERRORS, CONTEXT_KEYS, read_config
from studio.core.errors import ModelError
from studio.core.memory_terms import Shape
from studio.core.model_profile import Matrices, ModelProfile
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

_CLASSES = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForMaskedLM)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def profile_of(model_path: Path) -> ModelProfile:
    """Of the model in a folder. Raises ModelError."""
    return read_profile(read_config(model_path))


def costs_of(model_path: Path, variant: Variant) -> VariantCosts:
    """Of the model in a folder. Raises ModelError."""
    return measure_costs(read_config(model_path), variant)


def read_profile(config: Any) -> ModelProfile:
    """Count the tensors of the model that `config` describes. Raises ModelError."""
    _check_sizes(config)
    model = _on_meta(config)
    matrices = _matrices(model)
    text = config.get_text_config(decoder=True)
    queries = int(getattr(text, "num_attention_heads", 0) or 0)
    heads = int(getattr(text, "num_key_value_heads", None) or queries)
    head_dim = getattr(text, "head_dim", None) or int(text.hidden_size) // max(1, queries)
    lengths = (getattr(text, key, None) for key in CONTEXT_KEYS)
    kinds, order, outside = _layers(model)
    return ModelProfile(
        architecture=type(model).__name__,
        layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        matrices=matrices,
        kinds=kinds,
        order=order,
        outside=outside,
        fp32_params=_kept_in_fp32(model),
        buffer_bytes={
            name: sum(b.numel() * b.element_size() for b in _on_meta(config, dtype).buffers())
            for name, dtype in _DTYPES.items()
        },
        kv_width=heads * int(head_dim),
        context_tokens=next((v for v in lengths if isinstance(v, int)), None),
        window_tokens=_window(text),
        trainable_here=type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")),
    )


def _window(text: Any) -> int | None:
    window = getattr(text, "sliding_window", None)
    is_used = getattr(text, "use_sliding_window", True)
    return int(window) if isinstance(window, int) and window > 0 and is_used else None


_WHOLE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
          "intermediate_size")  # fmt: skip
_MAX_SIZE = 1 << 24


def _check_sizes(config: Any) -> None:
    """Refuse numbers that make no sense before anything is built from them."""
    text = config.get_text_config(decoder=True)
    for name in _WHOLE:
        value = getattr(text, name, None)
        if isinstance(value, int) and not 1 <= value <= _MAX_SIZE:
            raise ModelError(
                f"{name} in config.json makes no sense", value=value, allowed=f"1 to {_MAX_SIZE}",
                remedy="Download the model again or choose another one",
            )  # fmt: skip


def _on_meta(config: Any, dtype: torch.dtype | None = None) -> Any:
    problem: Exception | None = None
    for build in _CLASSES:
        if type(config) not in build._model_mapping:
            continue
        try:
            with torch.device("meta"):
                return build.from_config(config, dtype=dtype, trust_remote_code=False)
        except BUILD_ERRORS as error:
            problem = error
    raise ModelError(
        f"transformers cannot build a language model of type {config.model_type!r}",
        remedy="Choose a text-generation model" + (f" ({str(problem)[:200]})" if problem else ""),
    ) from problem


def _matrices(model: Any) -> tuple[Matrices, ...]:
    skipped = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    head = model.get_output_embeddings()
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: Counter[Matrices] = Counter()
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or id(module.weight) in seen:
            continue
        if id(module.weight) in embedded:
            continue  # counted with the embedding whose tensor it is
        quantized = type(module) in (nn.Linear, Conv1D) and should_convert_module(name, skipped)
        wide, high = _features(module)
        kind = Matrices(name.rpartition(".")[2], wide, high, 1, quantized, module is head)
        groups[kind] += 1
        seen.add(id(module.weight))
    return tuple(
        Matrices(m.name, m.in_features, m.out_features, count, m.quantized, m.head)
        for m, count in groups.items()
    )


def _layers(model: Any) -> tuple[tuple[tuple[Shape, ...], ...], tuple[int, ...], tuple[Shape, ...]]:
    """Sorts of layers, which one each is, and what lies outside; tied tensors once."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    stacks = [s for s in lists if not any(s is not o and _contains(o, s) for o in lists)]
    kinds: list[tuple[Shape, ...]] = []
    order: list[int] = []
    inside: set[int] = set()
    for layer in (layer for stack in stacks for layer in stack):
        own = [p for p in layer.parameters() if id(p) not in inside]
        inside.update(map(id, own))
        shapes = tuple(sorted(tuple(p.shape) for p in own))
        if shapes not in kinds:
            kinds.append(shapes)
        order.append(kinds.index(shapes))
    outside = tuple(tuple(p.shape) for p in model.parameters() if id(p) not in inside)
    return tuple(kinds), tuple(order), outside


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _features(module: Any) -> tuple[int, int]:
    if isinstance(module, Conv1D):  # GPT-2 keeps its matrices transposed
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _kept_in_fp32(model: Any) -> int:
    names = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return sum(
        p.numel() for name, p in model.named_parameters()
        if any(part in names for part in name.split("."))
    )  # fmt: skip


def measure_costs(config: Any, variant: Variant) -> VariantCosts:
    """Coefficients of what a step holds and of its peaks (see `backend.activations.Counted`).

    Raises ModelError where the model cannot run without storage.
    """
    few, period, more = _stacks(config)
    with _told_as_model_error(config):
        short = _counts(config, variant, few)
        tall = _counts(config, variant, few + period) if more else short

    def costs(which: Callable[[Counted], int]) -> StepCosts:
        base = [which(c) for c in short]
        extra = [which(b) - which(a) for a, b in zip(short, tall, strict=True)]
        return StepCosts(few, period, _growth(base), _growth(extra))

    return VariantCosts(
        held=costs(lambda c: c.held), peak=costs(lambda c: c.peak),
        forward=costs(lambda c: c.forward),
    )  # fmt: skip


def measure_size(
    config: Any, variant: Variant, *, r: int, step: tuple[int, int], evaluation: tuple[int, int]
) -> VariantCosts:
    """Costs that hold at one size only, in a seventh of the time of `measure_costs`.

    Args:
        step: rows and tokens of a training step. evaluation: those of an evaluation's batch.

    Raises ModelError where the model cannot run without storage.
    """
    few, period, more = _stacks(config)
    sizes = [step] if step == evaluation else [step, evaluation]
    with _told_as_model_error(config):
        short = count_steps(config, variant, r=r, layers=few, sizes=sizes)
        tall = short
        if more:
            tall = count_steps(config, variant, r=r, layers=few + period, sizes=sizes)

    def costs(which: Callable[[Counted], int], place: int) -> StepCosts:
        base = which(short[place])
        return StepCosts(few, period, _always(base), _always(which(tall[place]) - base))

    return VariantCosts(
        held=costs(lambda c: c.held, 0), peak=costs(lambda c: c.peak, 0),
        forward=costs(lambda c: c.forward, -1),
    )  # fmt: skip


def _always(size: int) -> Growth:
    """The same at any size."""
    return Growth((0.0, 0.0, 0.0, 0.0, float(size)))


def _stacks(config: Any) -> tuple[int, int, int]:
    """Layers of the short stack, after how many kinds repeat, and how many more a tall one has."""
    period = _period(config)
    layers = int(config.get_text_config(decoder=True).num_hidden_layers)
    few = min(layers, 2 * period if period == 1 else period)
    return few, period, min(period, max(0, layers - few)) and period


@contextlib.contextmanager
def _told_as_model_error(config: Any) -> Iterator[None]:
    try:
        yield
    except BUILD_ERRORS as error:
        raise ModelError(
            "The memory of a step of this model cannot be counted", value=config.model_type,
            remedy=f"Its activations are left out of the estimate ({str(error)[:200]})",
        ) from error  # fmt: skip


def _counts(config: Any, variant: Variant, layers: int) -> list[Counted]:
    """At each of POINTS with the first rank, then at RANK_POINTS with the second."""
    found = count_steps(config, variant, r=RANKS[0], layers=layers, sizes=POINTS)
    again = [POINTS[place] for place in RANK_POINTS]
    if variant.full:
        return [*found, *(found[place] for place in RANK_POINTS)]
    return [*found, *count_steps(config, variant, r=RANKS[1], layers=layers, sizes=again)]


def _growth(counts: list[int]) -> Growth:
    return fit(counts[: len(POINTS)], counts[len(POINTS) :])


def _period(config: Any) -> int:
    """After how many layers their kinds repeat (sliding and full attention, dense and sparse)."""
    text = config.get_text_config(decoder=True)
    kinds = [
        list(value) for value in (getattr(text, "layer_types", None),
                                  getattr(text, "mlp_layer_types", None)) if value
    ]  # fmt: skip
    count = int(text.num_hidden_layers)
    for period in range(1, count + 1):
        if all(k[i] == k[i % period] for k in kinds for i in range(len(k))):
            return period
    return count
