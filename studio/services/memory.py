"""Will it fit? Estimates for a model, a configuration and a device of this or another machine.

Owns what an estimate is held against: the free memory of this moment, a card of the table. What is
known of a model comes from `services.model_shapes`; the arithmetic is `core.memory`'s.
Synchronous and thread safe: the first question about a model takes seconds (`is_measured` says so
before), every further one is arithmetic. Knows nothing of torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.core.cards import Card, card_of_gib, find_card, load_cards
from studio.core.config import RunConfig
from studio.core.errors import ModelError, StudioError
from studio.core.fit_memory import Change, Proposal, advise, propose
from studio.core.memory import Constants, Demand, Estimate, constants_of, estimate, variant_of
from studio.core.memory_methods import METHODS, Method, family, resident_bytes
from studio.core.memory_words import answer
from studio.core.plan import resolve
from studio.core.token_stats import TokenSummary, cut_at
from studio.services.model_shapes import KnownModel, ModelShapes

if TYPE_CHECKING:
    from studio.core.model_profile import ModelProfile
    from studio.hardware.probe import MachineProbe
    from studio.services.child import ChildServer
    from studio.services.models import ModelStore

CARDS = "cards.yaml"
_ROWS_GUESS = 1000  # the number of rows decides no memory; the plan needs one


@dataclass(frozen=True)
class DataFacts:
    """What a data set does to memory. Without one, every row is as long as max_length.

    Attributes:
        longest_tokens: of a row.
        learned_share: of tokens that are learned.
        summary: for the rows that a shorter max_length would cut.
    """

    longest_tokens: int | None = None
    learned_share: float = 1.0
    summary: TokenSummary | None = None

    @classmethod
    def of(cls, summary: TokenSummary) -> DataFacts:
        """Of the token statistics of a data set for this model."""
        share = summary.trained_tokens / summary.tokens if summary.tokens else 1.0
        return cls(summary.longest or None, share, summary)

    def rows_cut(self, max_length: int) -> int:
        """Rows longer than that."""
        return 0 if self.summary is None else cut_at(self.summary, max_length).rows_cut


@dataclass(frozen=True)
class Device:
    """What an estimate is held against. `free_bytes` is None where nobody tells."""

    name: str
    kind: str
    total_bytes: int | None
    free_bytes: int | None
    note: str | None = None

    @property
    def used_bytes(self) -> int | None:
        """By other programs: the desktop, the browser, another training."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True)
class MemoryAnswer:
    """An estimate with what it means. `config` has no auto left."""

    estimate: Estimate
    sentence: str
    device: Device
    config: RunConfig
    advice: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether even the upper end fits; None where it is not known."""
        if self.device.free_bytes is None or self.estimate.unknown:
            return None
        return self.estimate.high <= self.device.free_bytes


class MemoryService:
    """Answers for models that are here, or whose config.json is in the catalogue.

    Args:
        child: stands in for the counting process in tests.
    """

    def __init__(
        self, workspace: Path, models: ModelStore, machine: MachineProbe,
        *, child: ChildServer | None = None,
    ) -> None:  # fmt: skip
        self._workspace = workspace
        self._machine = machine
        self._shapes = ModelShapes(workspace, models, child=child)
        self._lock = threading.Lock()
        self._fitted: dict[str, Constants] = {}

    # -- questions -------------------------------------------------------------------------------

    def estimate(
        self,
        model_id: str,
        config: RunConfig,
        *,
        facts: DataFacts | None = None,
        card: Card | None = None,
        measure: bool = True,
    ) -> MemoryAnswer:
        """The memory of a run, by item, against a device.

        Args:
            config: as the form or the file has it; every auto is decided for the device.
            card: another card than this machine's.
            measure: False leaves out what is not counted yet instead of counting it (seconds).

        Raises:
            StudioError: no config.json, an architecture transformers does not know, numbers that
                make no sense, a device that is not here, target modules that match nothing.
        """
        facts = facts or DataFacts()
        known = self._shapes.model(model_id)
        resolved, device = self._resolved(config, known.profile, card)

        def ask(wanted: RunConfig, *, count: bool = measure) -> Estimate:
            return estimate(self._demand(known, wanted, facts, device, count=count))

        found = ask(resolved)
        short = device.free_bytes is not None and found.high > device.free_bytes
        advice: tuple[Change, ...] = ()
        if short and not found.unknown:
            advice = tuple(
                advise(
                    resolved, lambda wanted: _known_need(ask(wanted), found),
                    can_4bit=self._can_4bit(card),
                )
            )  # fmt: skip
        warnings = tuple(w for w in (device.note, known.problem) if w)
        sentence = answer(found, device.free_bytes, advice)
        return MemoryAnswer(found, sentence, device, resolved, advice, warnings)

    def propose(
        self, model_id: str, config: RunConfig, *, facts: DataFacts | None = None,
        card: Card | None = None,
    ) -> Proposal:  # fmt: skip
        """Settings that fit the device with the least loss (core.fit_memory).

        Raises:
            ModelError: the activations of this model cannot be counted, so nothing is promised.
            StudioError: as `estimate`; or nobody tells how much memory is free.
        """
        facts = facts or DataFacts()
        known = self._shapes.model(model_id)
        resolved, device = self._resolved(config, known.profile, card)
        if device.free_bytes is None:
            raise StudioError(
                "The free memory of this device is unknown", value=device.name,
                remedy="Give the card by name or its memory in GiB",
            )  # fmt: skip

        def needs(wanted: RunConfig) -> int:
            found = estimate(self._demand(known, wanted, facts, device, count=True))
            if found.unknown:
                raise ModelError(
                    "No settings can be proposed: the activations of this model cannot be counted",
                    value=model_id, remedy="Try a small batch and watch the memory",
                )  # fmt: skip
            return found.high

        return propose(
            resolved, device.free_bytes, needs, rows_cut=facts.rows_cut,
            can_4bit=self._can_4bit(card),
        )  # fmt: skip

    def is_known(self, model_id: str) -> bool:
        """Whether the model's shapes are at hand, so that `estimate` with `measure=False` asks
        no child. Raises StudioError as `estimate`."""
        return self._shapes.find(model_id) is not None

    def is_measured(self, model_id: str, config: RunConfig, *, card: Card | None = None) -> bool:
        """Whether `estimate` answers at once; else it counts shapes for some seconds first."""
        known = self._shapes.find(model_id)
        if known is None:
            return self._shapes.is_refused(model_id)
        resolved, _ = self._resolved(config, known.profile, card)
        variant = variant_of(resolved, known.profile.window_tokens)
        return variant in known.costs or self._shapes.kept_costs(known, variant) is not None

    def table(
        self, model_id: str | None, config: RunConfig, *, facts: DataFacts | None = None
    ) -> list[dict[str, Any]]:
        """Cards x methods: one row a method with the expected bytes of a step of this config.

        Without a model: the sizes 7, 13, 33 and 65 B, weights, trained numbers and states only.
        """
        if model_id is None:
            return [
                {"model": name, "method": method.title,
                 "bytes": resident_bytes(profile, method, config.lora)}
                for name, profile in family().items() for method in METHODS
            ]  # fmt: skip
        facts = facts or DataFacts()
        known = self._shapes.model(model_id)
        card = card_of_gib(4096)
        resolved, device = self._resolved(config, known.profile, card)
        rows = []
        for method in METHODS:
            wanted = _as_method(resolved, method)
            demand = self._demand(known, wanted, facts, device, count=True, method=method)
            found = estimate(demand)
            rows.append({"model": model_id, "method": method.title, "bytes": found.expected,
                         "high_bytes": found.high, "unknown": list(found.unknown)})  # fmt: skip
        return rows

    def cards(self) -> dict[str, Card]:
        """Ours and those of workspace/cards.yaml. Raises ConfigError for a wrong file."""
        return load_cards(self._workspace / CARDS)

    def card(self, name: str) -> Card:
        """By name. Raises DeviceError."""
        return find_card(name, self.cards())

    def device(self, config: RunConfig) -> Device:
        """What `config.runtime.device` (a resolved one) has free at this moment."""
        name = config.runtime.device
        live = self._machine.live()
        if not name.startswith("cuda"):
            total, used = live.get("ram_total_bytes"), live.get("ram_used_bytes")
            free = total - used if total is not None and used is not None else None
            return Device("this computer's memory", name, total, free)
        index = int(name.partition(":")[2] or 0)
        samples = [gpu for gpu in live.get("gpu") or [] if gpu.get("index") == index]
        if not samples:
            others = ", ".join(f"cuda:{gpu.get('index')}" for gpu in live.get("gpu") or [])
            why = live.get("note") or "No readings of the graphics card"
            why = f"{why}; there is {others}" if others else why
            return Device(name, name, None, None, f"{why}: its free memory is unknown")
        sizes = [(_free(gpu), gpu) for gpu in samples]
        told = [(free, gpu) for free, gpu in sizes if free is not None]
        if not told:
            gpu = samples[0]
            return Device(str(gpu.get("name") or name), name, gpu.get("total_bytes"), None,
                          "The card does not tell its free memory")  # fmt: skip
        free, gpu = min(told, key=lambda pair: pair[0])
        note = None
        if gpu.get("is_mig"):
            note = "This card is cut into MIG slices: the estimate is held against the fullest one"
        return Device(str(gpu.get("name") or name), name, gpu.get("total_bytes"), free, note)

    def fit_constants(self, device_name: str, constants: Constants) -> None:
        """Use constants that were fitted from measured runs of a device from now on."""
        with self._lock:
            self._fitted[device_name] = constants

    def close(self) -> None:
        """End the child. Idempotent."""
        self._shapes.close()

    # -- inside ----------------------------------------------------------------------------------

    def _resolved(
        self, config: RunConfig, profile: ModelProfile, card: Card | None
    ) -> tuple[RunConfig, Device]:
        machine = dict(self._machine.capabilities()) if card is None else _machine_of(card)
        values = config.model_dump()
        if card is not None:
            values["runtime"]["device"] = "cuda:0"
        model = {"params": profile.total_params, "context_length": profile.context_tokens}
        wanted = RunConfig.model_validate(values)
        resolved = resolve(wanted, machine, _ROWS_GUESS, _ROWS_GUESS // 10, model).config
        if card is None:
            return resolved, self.device(resolved)
        device = Device(card.name, "cuda:0", card.vram_bytes, card.budget_bytes)
        return resolved, device

    def _can_4bit(self, card: Card | None) -> bool:
        return card is not None or self._machine.capabilities().get("bnb") is not False

    def _demand(
        self, known: KnownModel, config: RunConfig, facts: DataFacts, device: Device,
        *, count: bool, method: Method | None = None,
    ) -> Demand:  # fmt: skip
        variant = variant_of(config, known.profile.window_tokens)
        if method is not None and method.trains == "all":
            variant = replace(variant, full=True)
        elif method is not None and method.packing != "none":
            variant = replace(variant, adapter_cast=False)
        longest = facts.longest_tokens or config.train.max_length
        return Demand(
            config=config, profile=known.profile, method=method,
            adapted=self._shapes.adapted(known, config.lora),
            costs=self._shapes.costs(known, variant, count=count),
            rows_tokens=min(longest, config.train.max_length), learned_share=facts.learned_share,
            constants=self._fitted.get(device.name) or constants_of(device.kind),
        )  # fmt: skip


def _known_need(found: Estimate, before: Estimate) -> int:
    """What a change needs; no saving where it is not known."""
    return before.high if found.unknown else found.high


def _free(gpu: Mapping[str, Any]) -> int | None:
    total, used = gpu.get("total_bytes"), gpu.get("used_bytes")
    return None if total is None or used is None else max(0, total - used)


def _machine_of(card: Card) -> dict[str, Any]:
    """Capabilities of a machine with that card."""
    gpu = {"name": card.name, "total_bytes": card.vram_bytes, "used_bytes": 0}
    return {"cuda": True, "mps": False, "bnb": True, "bf16": True, "cores": 1, "reasons": {},
            "gpus": [gpu]}  # fmt: skip


def _as_method(config: RunConfig, method: Method) -> RunConfig:
    """The configuration with the method's dtype; quantization is the method's own."""
    values = config.model_dump()
    values["model"]["dtype"] = method.dtype
    values["quantization"]["load_in_4bit"] = method.packing.startswith("4bit")
    values["quantization"]["bnb_4bit_use_double_quant"] = method.packing == "4bit_double"
    values["quantization"]["bnb_4bit_compute_dtype"] = method.dtype
    return RunConfig.model_validate(values)
