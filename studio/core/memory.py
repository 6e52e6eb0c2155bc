"""Will it fit? The memory of a training, item by item, before it starts.

Owns `Estimate` and how the terms of `core.memory_terms` and `core.step_costs` add up for a model,
a configuration and a device. Pure arithmetic, well below a millisecond: what is known of the model
comes as a `ModelProfile` and `VariantCosts`, which the inspection process makes from config.json
alone. Knows nothing of files, of drivers or of torch. All numbers are bytes.

What is resident all the time adds up; of what comes and goes (the weights file, the pass through
the layers, the output head, the update, an evaluation, the sampled answers) the largest counts.

Covered: LoRA, QLoRA, 8-bit, full and frozen-layer fine-tuning on one device. Not covered: several
cards, offloading, kernels that replace transformers' layers (Liger, Unsloth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from studio.core import memory_terms as terms
from studio.core.config import RunConfig
from studio.core.memory_methods import Method, base_weights, method_of, trained_shapes
from studio.core.model_profile import Matrices, ModelProfile
from studio.core.step_costs import Variant, VariantCosts

MIB, GIB = 2**20, 2**30
NUM_PROMPTS, NEW_TOKENS, PROMPT_TOKENS = 3, 96, 256  # of the samples during a run
LOADING = "loading"  # the phase that has no gaps: nothing is freed and taken again
_STORED_BYTES = 2  # of a weight in the file, nearly always bf16
EVALUATION_ROWS = 2  # an evaluation's batch, in batches of the training


@dataclass(frozen=True)
class Constants:
    """What no arithmetic gives, in bytes and shares; fitted from measured runs of a device.

    Attributes:
        context_bytes: driver context and libraries (CUDA), interpreter and libraries (CPU).
        fragmentation: reserved beyond allocated, as a share of what comes and goes.
        spread: half the range of the total, as a share of all but weights and what is trained. On
            a CPU all 13 held-out runs lie within 0.43, 12 within 0.40; with 0.15 it was 8 of 13.
            The gaps of the heap differ most: a tenth of the peak, also between equal runs.
        loading: bytes a parameter of the weights file, whose pages are in memory while it is read.
    """

    context_bytes: int
    fragmentation: float
    spread: float
    loading: float = 0.0


# CUDA: 0.3 to 0.8 GB were published for the context with cuBLAS handles. CPU: measured, see
# docs/memory.md for both.
CUDA = Constants(context_bytes=480 * MIB, fragmentation=0.08, spread=0.10)
CPU = Constants(context_bytes=520 * MIB, fragmentation=0.12, spread=0.45, loading=2.0)


def constants_of(device: str) -> Constants:
    """The ones to begin with on a device that has no measured runs."""
    return CUDA if device.startswith("cuda") else CPU


@dataclass(frozen=True)
class Item:
    """One part of the estimate.

    Attributes:
        phase: always, loading, layers, head, update, evaluation or sampling.
        may_move: may go to host memory when the card is full (paged states).
    """

    name: str
    title: str
    bytes: int
    phase: str
    why: str
    may_move: bool = False


@dataclass(frozen=True)
class Estimate:
    """The items and their sum in bytes.

    Attributes:
        phases: what comes and goes, by phase; the largest is among the items.
        unknown: what could not be estimated and is in no number.
    """

    items: tuple[Item, ...]
    low: int
    expected: int
    high: int
    phases: dict[str, int]
    unknown: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: items with bytes, total as low, expected, high in bytes."""
        return {
            "items": [asdict(item) for item in self.items],
            "total": {"low": self.low, "expected": self.expected, "high": self.high},
            "phases": dict(self.phases),
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True)
class Demand:
    """All that an estimate is made of.

    Attributes:
        config: a resolved configuration (no auto).
        adapted: the matrices with an adapter.
        costs: of this configuration's variant; None leaves the activations unknown.
        method: how base and trained numbers are kept; None: as the configuration says.
        rows_tokens: tokens of the longest row, at most max_length.
        learned_share: share of tokens that are learned; the fused head on CUDA scores only those.
        full_head: whether all scores are made at once (TRL fuses the head of every causal model).
        prompt_tokens: of the longest sampled prompt.
        samples: whether the run answers prompts on the way. evaluates: whether it measures.
    """

    config: RunConfig
    profile: ModelProfile
    adapted: Sequence[Matrices]
    costs: VariantCosts | None
    rows_tokens: int
    constants: Constants = CUDA
    method: Method | None = None
    learned_share: float = 1.0
    full_head: bool = False
    prompt_tokens: int = PROMPT_TOKENS
    samples: bool = True
    evaluates: bool = True

    @property
    def how(self) -> Method:
        return self.method or method_of(self.config)

    @property
    def rows(self) -> int:
        """Rows of a micro-batch; packed ones lie in one."""
        train = self.config.train
        return 1 if train.packing else train.per_device_train_batch_size

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        train = self.config.train
        if train.packing:
            return train.max_length * train.per_device_train_batch_size
        return max(1, min(self.rows_tokens, train.max_length))

    @property
    def on_cuda(self) -> bool:
        return self.config.runtime.device.startswith("cuda")

    @property
    def item_bytes(self) -> int:
        """Of a number in the compute dtype."""
        return terms.ITEM_BYTES[self.config.model.dtype]


def variant_of(config: RunConfig, window_tokens: int | None = None) -> Variant:
    """The kinds of tensors that a step of this configuration makes.

    Args:
        window_tokens: of the model's sliding attention.
    """
    targets = config.lora.target_modules
    on_cuda = config.runtime.device.startswith("cuda")
    train = config.train
    beyond = window_tokens is not None and train.max_length >= window_tokens
    return Variant(
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        dtype=config.model.dtype,
        attention=config.model.attn_implementation,
        adapter_cast=not (config.quantization.load_in_4bit and on_cuda),
        dropout=config.lora.lora_dropout > 0,
        dora=config.lora.use_dora,
        padded=not train.packing and (train.per_device_train_batch_size > 1 or beyond),
        packed=train.packing,
        checkpointing=bool(train.activation_checkpointing),
    )


def estimate(demand: Demand) -> Estimate:
    """The memory of a training on one device."""
    resident = [*_weights(demand), *_trained(demand)]
    phases = {
        LOADING: _loading(demand, _total(resident)),
        "layers": _layers(demand), "head": _head_phase(demand), "update": _update(demand),
        "evaluation": _evaluation(demand), "sampling": _sampling(demand),
    }  # fmt: skip
    gaps = {name: 0.0 if name == LOADING else demand.constants.fragmentation for name in phases}
    largest = max(phases, key=lambda name: (1 + gaps[name]) * _total(phases[name]))
    around = _around(demand, gaps[largest], _total(phases[largest]))
    items = tuple(item for item in (*resident, *phases[largest], *around) if item.bytes)
    expected = _total(items)
    doubt = round(demand.constants.spread * (expected - _total(resident)))
    return Estimate(
        items, low=expected - doubt, expected=expected, high=expected + doubt,
        phases={name: _total(parts) for name, parts in phases.items()},
        unknown=() if demand.costs else ("activations",),
    )  # fmt: skip


def with_config(demand: Demand, config: RunConfig, costs: VariantCosts | None) -> Demand:
    """The same question for another configuration."""
    return replace(demand, config=config, costs=costs)


def _total(items: Sequence[Item]) -> int:
    return sum(item.bytes for item in items)


def _weights(demand: Demand) -> list[Item]:
    how, profile = demand.how, demand.profile
    packed, plain = base_weights(profile, how)
    if how.packing == "none":
        count = f"{profile.total_params:,} parameters in {how.dtype}"
        return [Item("weights", "Base weights", plain, "always", count)]
    words = {"int8": "8-bit, a scale a row", "4bit": "4-bit, a scale for 64 weights",
             "4bit_double": "4-bit, double quantization"}[how.packing]  # fmt: skip
    return [
        Item("weights_quantized", "Base weights, quantized", packed, "always", words),
        Item("weights_other", "Embeddings, head, norms", plain, "always", f"left in {how.dtype}"),
    ]


def _loading(demand: Demand, resident: int) -> list[Item]:
    """Pages of the weights file while it is read, beside all weights and before anything trained
    is there. Weights kept as they are stored, 16 bits each, are these pages themselves."""
    packed, plain = base_weights(demand.profile, demand.how)
    is_stored_so = terms.ITEM_BYTES[demand.how.dtype] == _STORED_BYTES
    file = round(demand.constants.loading * demand.profile.total_params)
    beside = file - (plain if is_stored_so else 0) - (resident - packed - plain)
    return [Item("loading", "Weights file in memory", max(0, beside), LOADING,
                 "pages that are read at loading, then dropped")]  # fmt: skip


def _trained(demand: Demand) -> list[Item]:
    """Adapter, gradients, optimizer. Adapters are fp32, over a quantized base too."""
    how, optim = demand.how, demand.config.train.optim
    shapes = trained_shapes(demand.profile, how, demand.adapted, demand.config.lora)
    wide = how.trained_bytes
    count = terms.total_numel(shapes)
    paged = terms.is_paged(optim)
    where = ", may move to host memory" if paged else ""
    items = [
        Item("gradients", "Gradients", wide * count, "always", "one a trained number"),
        Item("optimizer", "Optimizer states", terms.optimizer_states(shapes, optim, wide),
             "always", f"{optim}{where}", may_move=paged),
    ]  # fmt: skip
    if how.trains == "adapter":
        words = f"{count:,} trained numbers in fp32"
        items.insert(0, Item("adapter", "Adapter", wide * count, "always", words))
    return items


def _held(demand: Demand) -> int:
    return 0 if demand.costs is None else demand.costs.held.bytes_at(**_size(demand))


def _size(demand: Demand) -> dict[str, int]:
    return {"layers": demand.profile.layers, "batch": demand.rows, "length": demand.length,
            "r": demand.config.lora.r}  # fmt: skip


def _layers(demand: Demand) -> list[Item]:
    """Forward and backward pass through the layers."""
    if demand.costs is None:
        return _unpacked(demand, "layers")
    checkpointing = bool(demand.config.train.activation_checkpointing)
    how = "each layer's input, the rest recomputed" if checkpointing else "kept for the way back"
    held = _held(demand)
    work = max(0, demand.costs.peak.bytes_at(**_size(demand)) - held)
    tokens = f"{demand.rows} x {demand.length:,} tokens"
    return [
        Item("activations", "Activations", held, "layers", f"{tokens}, {how}"),
        Item("work", "Working space of a layer", work, "layers", "in the backward pass"),
        *_unpacked(demand, "layers"),
    ]


def _head_phase(demand: Demand) -> list[Item]:
    """Between the passes: the head works while all activations wait."""
    held = _held(demand)
    tokens = f"{demand.rows} x {demand.length:,} tokens"
    return [Item("activations", "Activations", held, "head", tokens),
            _head(demand, demand.rows * demand.length, backward=True)]  # fmt: skip


def _head(demand: Demand, tokens: int, *, backward: bool) -> Item:
    profile = demand.profile
    if demand.full_head:
        size = terms.full_logits(
            tokens, profile.vocab_size, item_bytes=demand.item_bytes, backward=backward
        )  # fmt: skip
        return Item("logits", "Scores of the head", size, "head", "every token x vocabulary")
    # Only Triton picks the learned positions out.
    scored = max(1, round(tokens * demand.learned_share)) if demand.on_cuda else tokens
    size = terms.fused_logits(
        scored, profile.hidden_size, profile.vocab_size, item_bytes=demand.item_bytes,
        in_place=demand.on_cuda, backward=backward,
    )  # fmt: skip
    tile = f"{min(scored, terms.TILE_TOKENS):,} x {terms.TILE_VOCAB:,}"
    return Item("logits", "Scores of the head", size, "head", f"{scored:,} tokens, {tile} at once")


def _unpacked(demand: Demand, phase: str) -> list[Item]:
    how = demand.how
    if not how.packing.startswith("4bit"):
        return []
    largest = max((m.weights for m in demand.profile.matrices if m.quantized), default=0)
    dtype = demand.config.quantization.bnb_4bit_compute_dtype
    wide = terms.ITEM_BYTES.get(dtype, demand.item_bytes)
    size = terms.dequantized_weight(largest, item_bytes=wide)
    return [Item("unpacked", "One unpacked 4-bit matrix", size, phase,
                 "unpacked for its product, then dropped")]  # fmt: skip


def _update(demand: Demand) -> list[Item]:
    how = demand.how
    shapes = trained_shapes(demand.profile, how, demand.adapted, demand.config.lora)
    size = terms.update_copies(shapes, demand.config.train.optim, how.trained_bytes)
    return [Item("update", "Copies of the update", size, "update", demand.config.train.optim)]


def _evaluation(demand: Demand) -> list[Item]:
    """Forward passes without gradients, of twice as many rows."""
    if not demand.evaluates:
        return []
    rows = EVALUATION_ROWS * demand.config.train.per_device_train_batch_size
    length = max(1, min(demand.rows_tokens, demand.config.train.max_length))
    size = 0
    if demand.costs is not None:
        size = demand.costs.forward.bytes_at(**{**_size(demand), "batch": rows, "length": length})
    hidden = rows * length * demand.profile.hidden_size * demand.item_bytes
    head = _head(demand, rows * length, backward=False)
    layers = size + sum(item.bytes for item in _unpacked(demand, "evaluation"))
    words = f"{rows} x {length:,} tokens, one layer at a time"
    return [Item("evaluation", "Evaluation", max(layers, hidden + head.bytes), "evaluation", words)]


def _sampling(demand: Demand) -> list[Item]:
    """The cache of the answers to the fixed prompts, and the scores of one token each."""
    if not demand.samples:
        return []
    profile = demand.profile
    tokens = NUM_PROMPTS * (demand.prompt_tokens + NEW_TOKENS)
    cache = terms.kv_cache(
        tokens, profile.layers, profile.kv_width, item_bytes=demand.item_bytes
    )  # fmt: skip
    scores = 2 * 4 * NUM_PROMPTS * profile.vocab_size
    words = f"keys and values of {tokens:,} tokens"
    answers = Item("sampling", "Sampled answers", cache + scores, "sampling", words)
    return [answers, *_unpacked(demand, "sampling")]


def _around(demand: Demand, gaps: float, passing: int) -> list[Item]:
    constants = demand.constants
    return [
        Item("context", "Driver and libraries", constants.context_bytes, "always",
             "what the process takes before it holds any number"),
        Item("fragmentation", "Gaps of the allocator", round(gaps * passing),
             "always", f"{gaps:.0%} of what comes and goes"),
    ]  # fmt: skip
