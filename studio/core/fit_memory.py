"""Fit it for me: the settings that fit a number of bytes with the least loss.

Owns the order in which settings are given up and the search. What a configuration needs is asked
of a function that is handed in (`core.memory` behind it), so this knows no terms, cards or models.

The order, cheapest for the result and for speed first: packing off where its mask costs more than
it saves, checkpointing (a third slower, same numbers), a smaller micro-batch with the rows of a
step kept, an 8-bit paged optimizer, 4-bit weights, double quantization, and shorter rows last:
they lose data. Grouping rows by length is not in it: the longest rows make the peak either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from studio.core.config import RunConfig

LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576,
           32768, 49152, 65536, 98304, 131072)  # fmt: skip
MAX_ACCUMULATION = 1024
Needs = Callable[[RunConfig], int]
Values = Mapping[str, object]


@dataclass(frozen=True)
class Change:
    """One setting given up.

    Attributes:
        values: `section.key` and its new value.
        saved_bytes: by how much the need falls with it.
        speed: what it costs, a clause.
        lost_rows: rows that are cut with it and were not before.
    """

    title: str
    values: dict[str, object]
    saved_bytes: int
    speed: str
    lost_rows: int = 0


@dataclass(frozen=True)
class Proposal:
    """The outcome: `fits` is False where even the smallest settings need more."""

    config: RunConfig
    changes: tuple[Change, ...]
    needs_bytes: int
    fits: bool


@dataclass(frozen=True)
class Rung:
    """One notch down from a configuration."""

    title: str
    speed: str
    values: dict[str, object]


def changed(config: RunConfig, values: Values) -> RunConfig:
    """The configuration with `section.key` values replaced."""
    record = config.model_dump()
    for path, value in values.items():
        section, _, key = path.partition(".")
        record[section][key] = value
    return RunConfig.model_validate(record)


def propose(
    config: RunConfig,
    budget_bytes: int,
    needs: Needs,
    *,
    rows_cut: Callable[[int], int] = lambda length: 0,
    min_length: int = 256,
    can_4bit: bool = True,
) -> Proposal:
    """Settings that fit `budget_bytes`, as near to `config` as the order allows.

    Args:
        config: a resolved one.
        needs: bytes that a configuration needs, the upper end of its estimate.
        rows_cut: how many rows a max_length would cut.
        min_length: rows are never made shorter than this.
        can_4bit: whether bitsandbytes works here.

    Walks down the ladder until it fits, then takes back what need not have been given up, the
    dearest first: afterwards no single setting can be relaxed one notch and still fit.
    """
    current, needed = config, needs(config)
    while needed > budget_bytes:
        step = _next_down(current, needed, needs, min_length, can_4bit)
        if step is None:
            break
        current, needed = step
    if needed <= budget_bytes:
        current = _relaxed(config, current, budget_bytes, needs)
        needed = needs(current)
    changes = tuple(explain(config, current, needs, rows_cut))
    return Proposal(current, changes, needed, needed <= budget_bytes)


def _next_down(
    config: RunConfig, needed: int, needs: Needs, min_length: int, can_4bit: bool
) -> tuple[RunConfig, int] | None:
    """The first notch that needs less, or None at the bottom."""
    for rung in rungs(config, min_length=min_length, can_4bit=can_4bit):
        lower = changed(config, rung.values)
        if (low := needs(lower)) < needed:
            return lower, low
    return None


def advise(
    config: RunConfig, needs: Needs, *, min_length: int = 256, can_4bit: bool = True
) -> list[Change]:
    """What each notch down would save by itself, in the order of the ladder."""
    needed = needs(config)
    found = []
    for rung in rungs(config, min_length=min_length, can_4bit=can_4bit):
        saved = needed - needs(changed(config, rung.values))
        if saved > 0:
            found.append(Change(rung.title, rung.values, saved, rung.speed))
    return found


def rungs(config: RunConfig, *, min_length: int = 256, can_4bit: bool = True) -> Iterator[Rung]:
    """Every next notch, in the order in which they are tried."""
    train, quantization = config.train, config.quantization
    on_cuda = config.runtime.device.startswith("cuda")
    if train.packing:
        yield Rung("packing off", "more padding", {"train.packing": False})
    if train.activation_checkpointing is not True:
        yield Rung("checkpointing", "about a third slower",
                   {"train.activation_checkpointing": True})  # fmt: skip
    if train.per_device_train_batch_size > 1:
        yield _batch(config, train.per_device_train_batch_size // 2)
    if can_4bit and on_cuda and train.optim != "paged_adamw_8bit":
        yield Rung("8-bit paged optimizer", "a few per cent slower",
                   {"train.optim": "paged_adamw_8bit"})  # fmt: skip
    if can_4bit and not quantization.load_in_4bit:
        yield Rung("4-bit", "about a third slower, a little less exact",
                   {"quantization.load_in_4bit": True,
                    "quantization.bnb_4bit_use_double_quant": False})  # fmt: skip
    if quantization.load_in_4bit and not quantization.bnb_4bit_use_double_quant:
        yield Rung("double quantization", "1 to 2 % slower",
                   {"quantization.bnb_4bit_use_double_quant": True})  # fmt: skip
    shorter = [length for length in LENGTHS if min_length <= length < train.max_length]
    if shorter:
        yield Rung(f"rows of at most {shorter[-1]:,} tokens", "faster, but data is lost",
                   {"train.max_length": shorter[-1]})  # fmt: skip


def _batch(config: RunConfig, size: int) -> Rung:
    """Another micro-batch; the rows of a step stay the same where they divide, else a few more."""
    train = config.train
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    steps = max(1, min(MAX_ACCUMULATION, -(-rows // size)))
    return Rung(
        f"batch {size}", "somewhat slower, same result",
        {"train.per_device_train_batch_size": size, "train.gradient_accumulation_steps": steps},
    )  # fmt: skip


def relaxations(wish: RunConfig, config: RunConfig) -> Iterator[RunConfig]:
    """Each setting one notch back towards the wish, the dearest loss first."""
    train, wanted = config.train, wish.train
    if train.max_length < wanted.max_length:
        longer = [n for n in LENGTHS if train.max_length < n < wanted.max_length]
        yield changed(config, {"train.max_length": (*longer, wanted.max_length)[0]})
    q, wq = config.quantization, wish.quantization
    if q.load_in_4bit and not wq.load_in_4bit:
        double = wq.bnb_4bit_use_double_quant
        yield changed(config, {"quantization.load_in_4bit": False,
                               "quantization.bnb_4bit_use_double_quant": double})  # fmt: skip
    asked_double = wq.load_in_4bit and wq.bnb_4bit_use_double_quant
    if q.load_in_4bit and q.bnb_4bit_use_double_quant and not asked_double:
        yield changed(config, {"quantization.bnb_4bit_use_double_quant": False})
    if train.optim != wanted.optim:
        yield changed(config, {"train.optim": wanted.optim})
    size = train.per_device_train_batch_size
    if size < wanted.per_device_train_batch_size:
        bigger = min(2 * size, wanted.per_device_train_batch_size)
        values = _batch(wish, bigger).values
        if bigger == wanted.per_device_train_batch_size:
            values["train.gradient_accumulation_steps"] = wanted.gradient_accumulation_steps
        yield changed(config, values)
    if train.activation_checkpointing is True and wanted.activation_checkpointing is not True:
        before = wanted.activation_checkpointing
        yield changed(config, {"train.activation_checkpointing": before})
    if train.packing != wanted.packing:
        yield changed(config, {"train.packing": wanted.packing})


def _relaxed(wish: RunConfig, config: RunConfig, budget: int, needs: Needs) -> RunConfig:
    """Take back what need not be given up."""
    while True:
        better = next((c for c in relaxations(wish, config) if needs(c) <= budget), None)
        if better is None:
            return config
        config = better


# What belongs together, in the order of the ladder, with what it costs.
_LADDER = (
    (("train.packing",), "more padding"),
    (("train.activation_checkpointing",), "about a third slower"),
    (("train.per_device_train_batch_size", "train.gradient_accumulation_steps"),
     "somewhat slower, same result"),
    (("train.optim",), "a few per cent slower"),
    (("quantization.load_in_4bit", "quantization.bnb_4bit_use_double_quant"),
     "about a third slower, a little less exact"),
    (("train.max_length",), "faster, but data is lost"),
)  # fmt: skip


def explain(
    wish: RunConfig, config: RunConfig, needs: Needs, rows_cut: Callable[[int], int]
) -> Iterator[Change]:
    """The way from the wish to the proposal as changes with what each saves, in order."""
    current, needed = wish, needs(wish)
    for paths, speed in _LADDER:
        values = {p: _value(config, p) for p in paths if _value(config, p) != _value(wish, p)}
        if not values:
            continue
        if paths[0] == "quantization.load_in_4bit" and paths[0] not in values:
            speed = "1 to 2 % slower"  # double quantization alone
        current = changed(current, values)
        need = needs(current)
        lost = 0
        if "train.max_length" in values:
            lost = rows_cut(config.train.max_length) - rows_cut(wish.train.max_length)
        yield Change(_title(config, paths[0], values), values, needed - need, speed, lost)
        needed = need


def _value(config: RunConfig, path: str) -> object:
    section, _, key = path.partition(".")
    return getattr(getattr(config, section), key)


def _title(config: RunConfig, path: str, values: Values) -> str:
    train, quantization = config.train, config.quantization
    if path == "train.packing":
        return "packing off"
    if path == "train.activation_checkpointing":
        return "checkpointing"
    if path == "train.optim":
        return "8-bit paged optimizer"
    if path == "train.max_length":
        return f"rows of at most {train.max_length:,} tokens"
    if path == "quantization.load_in_4bit":
        if path not in values:
            return "double quantization"
        double = " with double quantization" if quantization.bnb_4bit_use_double_quant else ""
        return f"4-bit{double}"
    return f"batch {train.per_device_train_batch_size} x {train.gradient_accumulation_steps}"
