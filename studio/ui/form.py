"""The form: one control a knob, built from the metadata of `core.config`.

Label, help, unit, range and choices come from the field and stand nowhere else. Controls hand
over what the user typed, unchecked: `core.config` is the judge (gradio lets NaN through and says
less). Knows nothing of services; what the machine cannot do is handed in as `Abilities`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr
from annotated_types import Ge, Gt, Le, Lt

from studio.core.config import RunConfig
from studio.core.config_io import build_config, dump_config, parse_scalar
from studio.core.errors import ConfigError

# A longer range is typed: on a slider of 512 values nobody hits the one that was meant.
SLIDER_SPAN = 101
ON_OFF = [("auto", "auto"), ("on", True), ("off", False)]


class FreeDropdown(gr.Dropdown):
    """A dropdown whose choices may change after the page was built, in another tab or by a
    restart; gradio would refuse a value that this session's list lacks. We check it ourselves."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        if payload is not None and not isinstance(payload, str):
            raise ConfigError("A choice is a text", value=type(payload).__name__)
        return payload


class FreeSlider(gr.Slider):
    """A slider that hands over a value out of range, so that `core` can say what is allowed."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


@dataclass(frozen=True)
class Abilities:
    """What this machine can do: `can` by capability ("cuda", "bnb"), `why_not` the sentence."""

    can: Mapping[str, bool]
    why_not: Mapping[str, str]

    @classmethod
    def of(cls, capabilities: Mapping[str, Any]) -> Abilities:
        """From `MachineProbe.capabilities()`."""
        can = {name: bool(value) for name, value in capabilities.items() if type(value) is bool}
        return cls(can, dict(capabilities.get("reasons") or {}))

    def missing(self, need: str | None) -> str | None:
        """The reason why `need` is absent, None where it is there or nothing is needed."""
        if not need or self.can.get(need, False):
            return None
        return self.why_not.get(need) or f"needs {need}, which this machine lacks"


@dataclass(frozen=True)
class Knob:
    """One field of the config with what its control needs."""

    path: str
    annotation: Any
    title: str
    help: str
    default: Any
    extra: Mapping[str, Any]
    low: float | None
    high: float | None

    @property
    def key(self) -> str:
        """Name of the keyword argument that carries the control's value."""
        return self.path.replace(".", "__")

    @property
    def branches(self) -> tuple[Any, ...]:
        """The types of a union, without None; the type itself where it is none."""
        origin = typing.get_origin(self.annotation)
        if origin in (types.UnionType, typing.Union):
            return tuple(a for a in typing.get_args(self.annotation) if a is not type(None))
        return (self.annotation,)

    @property
    def choices(self) -> list[Any]:
        """Values of all Literal branches, in order."""
        found: list[Any] = []
        for branch in self.branches:
            if typing.get_origin(branch) is Literal:
                found += typing.get_args(branch)
        return found

    @property
    def is_number(self) -> bool:
        return self.annotation in (int, float)

    @property
    def label(self) -> str:
        unit = self.extra.get("unit")
        return f"{self.title} ({unit})" if unit else self.title


def knobs() -> dict[str, Knob]:
    """All knobs by path ("lora.r"), in the order of the config."""
    found: dict[str, Knob] = {}
    for section, section_field in RunConfig.model_fields.items():
        fields = section_field.annotation.model_fields  # type: ignore[union-attr]
        for name, info in fields.items():
            low, high = _range(info.metadata)
            path = f"{section}.{name}"
            found[path] = Knob(
                path, info.annotation, info.title or name, info.description or "", info.default,
                info.json_schema_extra or {}, low, high,
            )  # fmt: skip
    return found


def _range(metadata: Iterable[Any]) -> tuple[float | None, float | None]:
    low = high = None
    for item in metadata:
        low = getattr(item, "ge", None) if isinstance(item, Ge) else low
        low = getattr(item, "gt", None) if isinstance(item, Gt) else low
        high = getattr(item, "le", None) if isinstance(item, Le) else high
        high = getattr(item, "lt", None) if isinstance(item, Lt) else high
    return low, high


@dataclass
class Form:
    """The page's controls by knob path; `add` builds one inside the current layout block."""

    abilities: Abilities
    knobs: dict[str, Knob] = field(default_factory=knobs)
    controls: dict[str, Any] = field(default_factory=dict)

    def add(self, path: str, **overrides: Any) -> Any:
        """Build the control of a knob here."""
        control = build_control(self.knobs[path], self.abilities, **overrides)
        self.controls[path] = control
        return control

    def adopt(self, path: str, control: Any) -> Any:
        """Use a control that was built elsewhere for a knob."""
        self.controls[path] = control
        return control

    def inputs(self) -> dict[str, Any]:
        """For `inputs_kwargs`: keyword argument by control."""
        return {self.knobs[path].key: control for path, control in self.controls.items()}

    def outputs(self) -> list[Any]:
        """All controls, in the order of `updates`."""
        return list(self.controls.values())

    def values(self, raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Nested config values from a handler's keyword arguments (others are passed over)."""
        nested: dict[str, dict[str, Any]] = {}
        for path in self.controls:
            knob = self.knobs[path]
            if knob.key in raw:
                section, _, name = path.partition(".")
                nested.setdefault(section, {})[name] = from_control(knob, raw[knob.key])
        return nested

    def config(self, raw: Mapping[str, Any]) -> RunConfig:
        """The checked config. Raises ConfigError with every issue."""
        return build_config(self.values(raw))

    def updates(self, values: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        """One update a control: what `values` holds, the default elsewhere."""
        full = dump_config(build_config(values))
        result = []
        for path in self.controls:
            section, _, name = path.partition(".")
            result.append(gr.update(value=to_control(self.knobs[path], full[section][name])))
        return result


def from_control(knob: Knob, value: Any) -> Any:
    """A control's value as the config wants it."""
    if isinstance(value, str):
        value = value.strip()
        if knob.path == "lora.target_modules" or not value:
            return value or None
        if len(knob.branches) > 1 and str not in knob.branches:
            return parse_scalar(value)
    if isinstance(value, float) and value.is_integer() and float not in knob.branches:
        return int(value)
    return value


def to_control(knob: Knob, value: Any) -> Any:
    """A config value as its control shows it."""
    if is_text_number(knob):
        return str(value)
    if value is None and str in knob.branches:
        return ""
    return value


def is_text_number(knob: Knob) -> bool:
    """Whether a knob is "a number or auto", typed as text."""
    return "auto" in knob.choices and bool not in knob.branches and len(knob.branches) > 1


def build_control(knob: Knob, abilities: Abilities, **overrides: Any) -> Any:
    """The gradio component for a knob. What the machine cannot do is inactive and says why."""
    why_not = abilities.missing(knob.extra.get("needs"))
    options: dict[str, Any] = {
        "label": knob.label,
        "info": f"{knob.help} Off here: {why_not}" if why_not else knob.help,
        "interactive": why_not is None,
        "value": to_control(knob, knob.default),
        "elem_id": f"knob-{knob.path.replace('.', '-').replace('_', '-')}",
        "min_width": 150,
    }
    maker = overrides.pop("maker", None) or _maker(knob)
    if maker in (gr.Radio, FreeDropdown) and "choices" not in overrides:
        options["choices"] = ON_OFF if bool in knob.branches else choices_of(knob, abilities)
    if maker is FreeSlider:
        options |= {"minimum": knob.low or 0, "maximum": knob.high, "step": _step(knob)}
    if maker is gr.Number:
        options["step"] = 1 if knob.annotation is int else "any"
    if maker is gr.Textbox:
        options["max_lines"] = 4
    return maker(**{**options, **overrides})


def _maker(knob: Knob) -> Any:
    if knob.extra.get("widget") == "slider" and (knob.high or SLIDER_SPAN) < SLIDER_SPAN:
        return FreeSlider
    if knob.annotation is bool:
        return gr.Checkbox
    if bool in knob.branches:
        return gr.Radio
    if is_text_number(knob):
        return gr.Textbox
    if knob.choices:
        return gr.Radio if len(knob.choices) <= 3 else FreeDropdown
    return gr.Number if knob.is_number else gr.Textbox


def _step(knob: Knob) -> float:
    return 1 if knob.annotation is int else 0.01


def choices_of(knob: Knob, abilities: Abilities) -> list[tuple[str, Any]]:
    """A Literal's values; those this machine cannot do carry the reason (style.css greys them)."""
    no_cuda = abilities.missing("cuda")
    return [
        (
            f"{value} (needs CUDA)" if no_cuda and str(value).startswith("paged_") else str(value),
            value,
        )
        for value in knob.choices
    ]
