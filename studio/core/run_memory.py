"""What a run was predicted to take and what it took: the record, and the two side by side.

The trainer keeps one record an attempt, in memory.json while it runs and under `memory` in
exit.json at its end; the page draws it and `core.fit_constants` learns from it.

    device     {name, kind}: what the estimate is held against, "cpu", "mps" or "cuda:N"
    estimate   `Estimate.to_dict()`, null where it could not be made; `no_estimate` says why
    constants  those that the estimate was made with
    measured   {phase: {allocated_bytes, reserved_bytes, nvml_process_bytes, rss_bytes}}: the peak
               within each of PHASES; what nobody told is null or left out

Pure; files may hold anything, so every number is checked. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from studio.core.memory import Constants

LOADING, TRAINING, EVALUATION, SAMPLING, SAVING = (
    "loading", "training", "evaluation", "sampling", "saving",
)  # fmt: skip
PHASES = (LOADING, TRAINING, EVALUATION, SAMPLING, SAVING)
ALLOCATED, RESERVED, PROCESS, RSS = (
    "allocated_bytes", "reserved_bytes", "nvml_process_bytes", "rss_bytes",
)  # fmt: skip
FIELDS = (ALLOCATED, RESERVED, PROCESS, RSS)
HOST = "this computer's memory"

_STEP = ("layers", "head", "update")  # parts of a step, of which one is the largest
_CONTEXT, _GAPS = "context", "fragmentation"
_TRAINED = ("adapter", "gradients", "optimizer")
_AT_LOADING = ("weights", "weights_quantized", "weights_other", "loading", _CONTEXT)
_MAX_BYTES = 1 << 60


@dataclass(frozen=True)
class Part:
    """A piece of a bar. `name` is that of the estimate's item, or one of FIELDS' meanings."""

    name: str
    title: str
    bytes: int


@dataclass(frozen=True)
class Bar:
    """One phase: what was predicted beside what was measured; an empty side is unknown."""

    phase: str
    predicted: tuple[Part, ...]
    measured: tuple[Part, ...]

    @property
    def predicted_bytes(self) -> int:
        return sum(part.bytes for part in self.predicted)

    @property
    def measured_bytes(self) -> int:
        return sum(part.bytes for part in self.measured)


@dataclass(frozen=True)
class Predicted:
    """The estimate of a record, as far as a comparison needs it.

    Attributes:
        phases: what comes and goes, by the estimate's phase.
        unknown: what is in no number.
    """

    items: tuple[tuple[Part, str], ...]  # with the item's phase
    low: int
    expected: int
    high: int
    phases: Mapping[str, int]
    unknown: tuple[str, ...]
    constants: Constants

    @property
    def passing(self) -> int:
        """The largest of what comes and goes, as far as it leaves gaps: loading leaves none."""
        if any(when == LOADING for _, when in self.items):
            return 0
        return max((size for name, size in self.phases.items() if name != LOADING), default=0)

    def item(self, name: str) -> int:
        """Bytes of an item, 0 where there is none."""
        return sum(part.bytes for part, _ in self.items if part.name == name)

    @property
    def countable(self) -> int:
        """All but what the two constants make."""
        return self.expected - self.item(_CONTEXT) - self.item(_GAPS)

    def expected_with(self, constants: Constants) -> int:
        """The total with other constants."""
        gaps = round(constants.fragmentation * self.passing)
        return self.countable + constants.context_bytes + gaps


@dataclass(frozen=True)
class RunMemory:
    """A record that could be read."""

    device: str
    kind: str
    predicted: Predicted | None
    measured: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    no_estimate: str = ""

    @property
    def on_cuda(self) -> bool:
        return self.kind.startswith("cuda")

    @property
    def is_complete(self) -> bool:
        """Whether the two sides can be compared: a whole estimate, and a step was measured."""
        whole = self.predicted is not None and not self.predicted.unknown
        return whole and self.peak_bytes is not None and TRAINING in self.measured

    @property
    def peak_bytes(self) -> int | None:
        """The most that the process held of the device, of all phases."""
        found = [total(values, on_cuda=self.on_cuda) for values in self.measured.values()]
        known = [value for value in found if value]
        return max(known) if known else None

    @property
    def peak_phase(self) -> str | None:
        """The phase of `peak_bytes`; of equal ones the first: memory that stays is nobody's."""
        sizes = {name: total(values, on_cuda=self.on_cuda) or 0
                 for name, values in self.measured.items()}  # fmt: skip
        return max(sizes, key=sizes.__getitem__) if any(sizes.values()) else None

    def most(self, name: str) -> int | None:
        """The largest value of one of FIELDS over all phases."""
        found = [values[name] for values in self.measured.values() if name in values]
        return max(found) if found else None

    def bars(self) -> list[Bar]:
        """The phases that were measured, in their order."""
        return [
            Bar(phase, self._predicted_parts(phase), self._measured_parts(phase))
            for phase in PHASES if phase in self.measured
        ]  # fmt: skip

    def _predicted_parts(self, phase: str) -> tuple[Part, ...]:
        found = self.predicted
        if found is None:
            return ()
        kept = [part for part, when in found.items if when == "always" and part.name != _GAPS]
        if phase == LOADING:
            return (*(part for part in kept if part.name in _AT_LOADING), *_file(found))
        if phase == SAVING:
            return tuple(kept)
        passing = _passing(found, phase)
        size = sum(part.bytes for part in passing)
        gaps = round(found.constants.fragmentation * size)
        parts = (*kept, *passing, Part(_GAPS, "Gaps of the allocator", gaps))
        return tuple(part for part in parts if part.bytes)

    def _measured_parts(self, phase: str) -> tuple[Part, ...]:
        values = self.measured[phase]
        if not self.on_cuda:
            rss = values.get(RSS)
            return (Part(RSS, "Resident memory", rss),) if rss else ()
        allocated, reserved = values.get(ALLOCATED, 0), values.get(RESERVED, 0)
        parts = [
            Part(ALLOCATED, "In use", allocated),
            Part(RESERVED, "Held free by the allocator", max(0, reserved - allocated)),
        ]  # fmt: skip
        process = values.get(PROCESS)
        if process is not None:
            rest = max(0, process - max(reserved, allocated))
            parts.append(Part(PROCESS, "Driver and libraries", rest))
        return tuple(part for part in parts if part.bytes)


def total(values: Mapping[str, int], *, on_cuda: bool) -> int | None:
    """What the process held of the device: as NVML tells, else the allocator; RSS on a CPU."""
    if not on_cuda:
        return values.get(RSS)
    return values.get(PROCESS) or values.get(RESERVED) or values.get(ALLOCATED)


def _file(found: Predicted) -> list[Part]:
    """The pages of the weights file. Their phase counts what they need beyond the trained numbers,
    which come when they have gone."""
    size = found.phases.get(LOADING, 0)
    trained = sum(found.item(name) for name in _TRAINED)
    return [Part("loading", "Weights file in memory", size + trained)] if size else []


def _passing(found: Predicted, phase: str) -> list[Part]:
    """What comes and goes in a phase; by item where the phase is the estimate's largest."""
    if phase == TRAINING:
        names = [name for name in _STEP if name in found.phases]
        chosen = max(names, key=lambda name: found.phases[name], default="")
    else:
        chosen = phase
    size = found.phases.get(chosen, 0)
    told = [part for part, when in found.items if when == chosen]
    if sum(part.bytes for part in told) == size:
        return told
    titles = {TRAINING: "A training step", EVALUATION: "Evaluation", SAMPLING: "Sampled answers"}
    return [Part(f"whole_{phase}", titles[phase], size)] if size else []


def to_record(
    device: str, kind: str, measured: Mapping[str, Mapping[str, int | None]],
    *, estimate: Mapping[str, Any] | None = None, constants: Constants | None = None,
    no_estimate: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The record, for JSON."""
    return {
        "device": {"name": device, "kind": kind},
        "estimate": None if estimate is None else dict(estimate),
        "no_estimate": None if estimate is not None else no_estimate,
        "constants": None if constants is None else asdict(constants),
        "measured": {phase: dict(values) for phase, values in measured.items()},
    }


def read_record(record: Any) -> RunMemory:
    """Of `to_record`, after any journey. Raises ValueError where it is not one."""
    device = _mapping(_mapping(record).get("device"))
    measured = _mapping(record.get("measured"))
    return RunMemory(
        device=_text(device.get("name")), kind=_text(device.get("kind")),
        predicted=_predicted(record.get("estimate"), record.get("constants")),
        measured={phase: _sizes(measured[phase]) for phase in PHASES if phase in measured},
        no_estimate=str(record.get("no_estimate") or ""),
    )  # fmt: skip


def read_constants(record: Any) -> Constants:
    """Of `dataclasses.asdict`. Raises ValueError for what no device can have."""
    values = _mapping(record)
    context = _size(values.get("context_bytes"))
    shares = [values.get(name, 0.0) for name in ("fragmentation", "spread", "loading")]
    if not all(_is_number(share) and 0 <= share <= 16 for share in shares):
        raise ValueError(f"no share of memory: {shares}")
    return Constants(context, *map(float, shares))


def _predicted(estimate: Any, constants: Any) -> Predicted | None:
    if estimate is None:
        return None
    estimate = _mapping(estimate)
    sums = _mapping(estimate.get("total"))
    items, unknown = estimate.get("items"), estimate.get("unknown") or []
    if not isinstance(items, list) or not isinstance(unknown, list):
        raise ValueError("an estimate without items")
    return Predicted(
        items=tuple(map(_item, items)), low=_size(sums.get("low")),
        expected=_size(sums.get("expected")), high=_size(sums.get("high")),
        phases={str(k): _size(v) for k, v in _mapping(estimate.get("phases")).items()},
        unknown=tuple(map(str, unknown)),
        constants=read_constants(constants),
    )  # fmt: skip


def _item(record: Any) -> tuple[Part, str]:
    item = _mapping(record)
    part = Part(_text(item.get("name")), _text(item.get("title")), _size(item.get("bytes")))
    return part, _text(item.get("phase"))


def _sizes(record: Any) -> dict[str, int]:
    values = _mapping(record)
    return {name: _size(values[name]) for name in FIELDS if values.get(name) is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"an object was expected, not {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text was expected, not {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any) -> int:
    if not _is_number(value) or not 0 <= value <= _MAX_BYTES:
        raise ValueError(f"no size in bytes: {value!r:.40}")
    return int(value)
