"""Turning YAML text, `section.key=value` overrides and form values into one `RunConfig`.

All problems are collected and raised at once as a `ConfigError`, with the field's path, the value
and what is allowed. A preset file is a config file with `title`, `why` and `source` on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from studio.core.config import RunConfig
from studio.core.errors import ConfigError, StoreError

PRESET_KEYS = ("title", "why", "source", "order")
_MAX_CONFIG_BYTES = 1 << 20


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises StoreError (cannot read) or ConfigError (not a mapping)."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError("The config file is too large", value=str(path), allowed="1 MiB")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The config file is not UTF-8 text", value=str(path), allowed="a YAML file",
            remedy="Give a config or a preset first, and the data with --set data.path=FILE",
        ) from error  # fmt: skip
    except OSError as error:
        raise StoreError(
            f"Cannot read the config file ({error.strerror})", value=str(path),
            remedy="Check the path",
        ) from error  # fmt: skip
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"The config file is not valid YAML{where}", value=str(path), remedy="Mend that line"
        ) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            "The config file must be a mapping of sections", value=type(loaded).__name__,
            allowed=", ".join(RunConfig.model_fields),
        )  # fmt: skip
    return loaded


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Config of a YAML file with `--set` overrides applied."""
    values = {k: v for k, v in read_yaml(path).items() if k not in PRESET_KEYS}
    return build_config(apply_overrides(values, overrides))


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` strings laid over nested `values`; a value is read as YAML."""
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for item in overrides:
        path, separator, text = item.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (separator and dot and section and key):
            raise ConfigError(
                "--set needs section.key=value", value=item, allowed="for example lora.r=8"
            )
        if not isinstance(result.setdefault(section, {}), dict):
            raise ConfigError("A section must be a mapping", value=section)
        result[section][key] = parse_scalar(text)
    return result


def parse_scalar(text: str) -> Any:
    """A YAML value from text; text that YAML cannot read stays text. `2e-4` is read as a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of later layers laid over earlier ones, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, Mapping) and isinstance(result.get(section), dict):
                result[section] = {**result[section], **values}
            else:
                result[section] = dict(values) if isinstance(values, Mapping) else values
    return result


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate nested values. Raises ConfigError that lists every issue at once."""
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        issues: dict[str, str] = {}
        for item in error.errors(include_url=False):
            path = _field_path(item["loc"])
            issues.setdefault(path, _issue_text(path, item))
        raise ConfigError("; ".join(issues.values()), issues=issues) from error


def _field_path(location: tuple[Any, ...]) -> str:
    # A union adds the name of the branch ("int", "literal['auto']") behind the field: cut it off.
    return ".".join(str(part) for part in location[:2]) or "config"


def _issue_text(path: str, item: Mapping[str, Any]) -> str:
    section, _, key = path.partition(".")
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        known = RunConfig.model_fields
        if key and section in known:
            names = ", ".join(known[section].annotation.model_fields)  # type: ignore[union-attr]
            return f"{path} is not a setting; allowed in {section}: {names}"
        return f"{path} is not a section; allowed: {', '.join(known)}"
    if path == "config":
        return str(item["msg"]).removeprefix("Value error, ")
    shown = repr(value)[:80]
    return f"{path}={shown} is not allowed; {allowed_text(section, key) or item['msg']}"


def allowed_text(section: str, key: str) -> str:
    """What a field accepts, in words ("choose 1 to 512"), from its own constraints."""
    sections = RunConfig.model_fields
    model = sections[section].annotation if section in sections else None
    field = getattr(model, "model_fields", {}).get(key)
    if field is None:
        return ""
    schema = model.model_json_schema()["properties"][key]  # type: ignore[union-attr]
    branches = schema.get("anyOf", [schema])
    words = [text for branch in branches if (text := _branch_text(branch))]
    return f"choose {' or '.join(words)}" if words else ""


def _branch_text(branch: Mapping[str, Any]) -> str:
    if "enum" in branch:
        return ", ".join(map(str, branch["enum"]))
    if "const" in branch:
        return str(branch["const"])
    low = branch.get("minimum", branch.get("exclusiveMinimum"))
    high = branch.get("maximum", branch.get("exclusiveMaximum"))
    kind = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}.get(
        str(branch.get("type")), ""
    )
    if low is not None and high is not None:
        above = "above " if "exclusiveMinimum" in branch else ""
        return f"{kind} {above}{low} to {high}".strip()
    if low is not None:
        return f"{kind} from {low}".strip()
    if "pattern" in branch:
        return f"text like {branch['pattern']}"
    return kind


def dump_config(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, as saved in run.json and YAML."""
    return config.model_dump(mode="json")
