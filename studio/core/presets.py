"""Presets: goals such as "try it" or "style", as differences from the defaults with a reason.

A preset file is a config file with `title`, `why`, `source` and `order` on top; it can be given to
`train` as it is. Knows nothing of machines: what fits is proposed by `core.proposal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_io import PRESET_KEYS, build_config, dump_config, read_yaml
from studio.core.errors import ConfigError, PresetError, StoreError


@dataclass(frozen=True)
class Preset:
    """One goal. `values` are nested sections, only what differs from the defaults."""

    id: str
    title: str
    why: str
    source: str
    order: int = 100
    values: dict[str, Any] = field(default_factory=dict)

    def config(self) -> RunConfig:
        """The preset laid over the defaults."""
        return build_config(self.values)


def load_presets(folder: Path) -> list[Preset]:
    """All presets of a folder (`*.yaml`), in their order. Raises PresetError on a bad one."""
    presets = [load_preset(path) for path in sorted(folder.glob("*.yaml"))]
    return sorted(presets, key=lambda preset: (preset.order, preset.id))


def load_preset(path: Path) -> Preset:
    """One preset file, checked: known keys only, and each differs from its default."""
    try:
        raw = read_yaml(path)
        values = {key: value for key, value in raw.items() if key not in PRESET_KEYS}
        build_config(values)
    except (ConfigError, StoreError) as error:
        raise PresetError(f"The preset {path.name} is wrong: {error}") from error
    missing = [key for key in ("title", "why", "source") if not str(raw.get(key) or "").strip()]
    if missing:
        raise PresetError(
            f"The preset {path.name} has no {', '.join(missing)}", remedy="Add them at the top"
        )
    same = [name for name, value in _leaves(values) if value == default_of(name)]
    if same:
        raise PresetError(
            f"The preset {path.name} repeats defaults", value=", ".join(same),
            allowed="only values that differ from the defaults",
        )  # fmt: skip
    return Preset(
        id=path.stem, title=str(raw["title"]).strip(), why=str(raw["why"]).strip(),
        source=str(raw["source"]).strip(), order=_order_of(raw, path), values=values,
    )  # fmt: skip


def default_of(name: str) -> Any:
    """Default value of `section.key`."""
    section, _, key = name.partition(".")
    return dump_config(RunConfig()).get(section, {}).get(key)


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, entries in values.items():
        for key, value in (entries or {}).items():
            yield f"{section}.{key}", value


def _order_of(raw: Mapping[str, Any], path: Path) -> int:
    order = raw.get("order", 100)
    if isinstance(order, bool) or not isinstance(order, int):
        raise PresetError(f"The order of preset {path.name} must be a whole number", value=order)
    return order
