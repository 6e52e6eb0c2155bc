"""After an out-of-memory end: which changed settings would have fitted, the least loss first.

Owns the options that a user may choose from. The notches and their order are `core.fit_memory`'s;
what a configuration needs is asked of a function that is handed in. No option changes the shape of
the adapter (rank, target modules): each can go on with the weights that were learned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from studio.core.config import RunConfig
from studio.core.fit_memory import Change, Needs, changed, explain, propose, rungs


@dataclass(frozen=True)
class Option:
    """Settings that fit.

    Attributes:
        key: names it in a request; the same settings have the same key.
        changes: what is given up, in the order of the loss; each with what it saves.
        needs_bytes: with them.
    """

    key: str
    changes: tuple[Change, ...]
    needs_bytes: int

    @property
    def title(self) -> str:
        """For example "checkpointing + batch 2 x 8"."""
        return " + ".join(change.title for change in self.changes)

    @property
    def values(self) -> dict[str, object]:
        """`section.key` and its new value."""
        return {path: value for change in self.changes for path, value in change.values.items()}

    @property
    def saved_bytes(self) -> int:
        """By all changes together."""
        return sum(change.saved_bytes for change in self.changes)

    @property
    def quantizes(self) -> bool:
        """Whether the base model becomes another one, near to what it was."""
        return any(path.startswith("quantization.") for path in self.values)


@dataclass(frozen=True)
class Rescue:
    """The options, and what the smallest settings need if there is none."""

    options: tuple[Option, ...]
    least_bytes: int | None = None


def rescue(
    config: RunConfig,
    budget_bytes: int,
    needs: Needs,
    *,
    rows_cut: Callable[[int], int] = lambda length: 0,
    can_4bit: bool = True,
) -> Rescue:
    """What would have fitted: the settings with the least loss, then single changes that are
    enough by themselves.

    Args:
        config: a resolved one, that did not fit.
        needs: bytes that a configuration needs, corrected by what was seen.
    """
    best = propose(config, budget_bytes, needs, rows_cut=rows_cut, can_4bit=can_4bit)
    if not best.fits:
        return Rescue((), best.needs_bytes)
    found = [_option(best.changes, best.needs_bytes)] if best.changes else []
    for family in dict.fromkeys(_family(r.values) for r in rungs(config, can_4bit=can_4bit)):
        alone = _alone(config, family, budget_bytes, needs, can_4bit=can_4bit)
        if alone is not None:
            option = _option(tuple(explain(config, alone, needs, rows_cut)), needs(alone))
            if option.changes and option.key not in [other.key for other in found]:
                found.append(option)
    return Rescue(tuple(found))


def _family(values: dict[str, object]) -> str:
    """Which notches are steps of one change: 4-bit and double quantization are."""
    first = next(iter(values))
    return "quantization" if first.startswith("quantization.") else first


def _alone(
    config: RunConfig, family: str, budget_bytes: int, needs: Needs, *, can_4bit: bool
) -> RunConfig | None:
    """The fewest notches of one change that fit, None where all of them are not enough."""
    current = config
    while True:
        down = next(
            (r for r in rungs(current, can_4bit=can_4bit) if _family(r.values) == family), None
        )
        if down is None:
            return None
        current = changed(current, down.values)
        if needs(current) <= budget_bytes:
            return current


def _option(changes: tuple[Change, ...], needs_bytes: int) -> Option:
    values = {path: value for change in changes for path, value in change.values.items()}
    told = "-".join(f"{path.rpartition('.')[2]}-{value}" for path, value in sorted(values.items()))
    return Option(re.sub(r"[^a-z0-9]+", "-", told.lower()), changes, needs_bytes)


def value_text(value: object) -> str:
    """As a config file or --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def what_is_left(config: RunConfig, step: int, total_steps: int) -> dict[str, object]:
    """How long a run goes on that begins with the weights of a step: the steps that are left, or
    the epochs, rounded up to whole ones: their rows come in another order than they would have, so
    a part of an epoch would leave rows out.

    Returns `section.key` values; {} where nothing was done yet.
    """
    train = config.train
    if step <= 0 or total_steps <= 0:
        return {}
    if train.max_steps > 0:
        return {"train.max_steps": max(1, train.max_steps - step)}
    left = train.num_train_epochs * max(0.0, 1 - step / total_steps)
    return {"train.num_train_epochs": min(train.num_train_epochs, max(1, math.ceil(left - 1e-9)))}
