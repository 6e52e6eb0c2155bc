"""The line under the form: what the settings mean, before anything runs.

Trainable parameters, share of the model, size of the adapter, steps; what was changed by hand
against the preset; and, where settings are wrong, the sentences. Pure but for the services asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from studio.core.config import RunConfig
from studio.core.config_io import build_config, dump_config, merge
from studio.core.errors import ConfigError, StudioError
from studio.core.plan import count_steps, resolve
from studio.ui.form import Form
from studio.ui.text import count, escape, megabytes, percent, plain

if TYPE_CHECKING:
    from studio.core.presets import Preset
    from studio.services.studio import Studio


def config_values(form: Form, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Nested config values of all controls, the target modules among them."""
    values = form.values(raw)
    targets, modules = raw.get("targets"), raw.get("modules") or []
    if targets == "choose" and not modules:
        raise ConfigError(
            "No target module is ticked", allowed="at least one",
            remedy="Tick a module or choose all linear layers",
        )  # fmt: skip
    values.setdefault("lora", {})["target_modules"] = modules if targets == "choose" else targets
    return values


def summary_html(studio: Studio, form: Form, raw: Mapping[str, Any], preset: Preset | None) -> str:
    """The summary of a form's values; their faults where they have any."""
    try:
        config = build_config(config_values(form, dict(raw)))
    except ConfigError as error:
        return faults_html(form, error)
    return figures_html(studio, config) + changes_html(
        form, config, preset, base_values(studio, preset)
    )


def faults_html(form: Form, error: ConfigError) -> str:
    """Every wrong setting, with its control's label."""
    items = error.issues or {"": str(error)}
    lines = []
    for path, sentence in items.items():
        label = form.knobs[path].title if path in form.knobs else ""
        lines.append(f"<li><b>{escape(label)}</b> {escape(sentence)}</li>")
    return f"<ul class='faults' role='alert'>{''.join(lines)}</ul>"


def figures_html(studio: Studio, config: RunConfig) -> str:
    """Tiles: trainable parameters, share, adapter size, steps."""
    tiles, notes = [], []
    try:
        adapter = studio.inspector.adapter(config.model.id, config.lora.model_dump(mode="json"))
        tiles += [
            ("Trainable", count(adapter["trainable_params"]), "parameters"),
            ("Share", percent(adapter["share"]), "of the model"),
            ("Adapter", megabytes(adapter["adapter_bytes"]), "on disk"),
        ]
    except StudioError as error:
        notes.append(str(error))
    steps = steps_of(studio, config)
    if steps:
        tiles.append(("Steps", count(steps[0]), f"an epoch, {steps[1]:,} in all"))
        notes += plan_warnings(studio, config)
    ratio = config.lora.lora_alpha / config.lora.r
    notes_html = "".join(f"<p class='warn'>{escape(note)}</p>" for note in notes)
    return (
        f"<div class='sum'>{''.join(_tile(*tile) for tile in tiles)}</div>"
        f"<p class='hint'>alpha / r = <b>{plain(round(ratio, 4))}</b>{_rows_a_step(config)}</p>"
        f"{notes_html}"
    )


def plan_warnings(studio: Studio, config: RunConfig) -> list[str]:
    """What the plan says of these settings on this machine with the chosen data set."""
    info = studio.datasets.get(str(config.data.path))
    held_out = info.num_held_out(config.data.val_frac)
    try:
        plan = resolve(config, studio.machine.capabilities(), info.used - held_out, held_out, {})
    except StudioError as error:  # the same sentence would refuse the start
        return [str(error)]
    return [f"{warning}." for warning in plan.warnings]


def _rows_a_step(config: RunConfig) -> str:
    train = config.train
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return f" \u00b7 {rows:,} rows a step"


def _tile(title: str, value: str, note: str) -> str:
    return f"<div><span>{title}</span><b>{escape(value)}</b><em>{escape(note)}</em></div>"


def steps_of(studio: Studio, config: RunConfig) -> tuple[int, int] | None:
    """(steps per epoch, steps in all) for the chosen data set, None without one."""
    path = config.data.path
    if not path or path.startswith("sample:"):
        return None
    info = studio.datasets.get(path)
    rows = info.used - info.num_held_out(config.data.val_frac)
    if rows < 1:
        return None
    per_epoch, total, _ = count_steps(config, rows, {})
    return per_epoch, total


def base_values(studio: Studio, preset: Preset | None) -> dict[str, Any]:
    """What the preset sets on this machine, before anything is changed by hand."""
    proposal = (studio.machine.capabilities().get("proposal") or {}).get("values") or {}
    return merge(proposal, preset.values if preset else {})


def changes_html(
    form: Form, config: RunConfig, preset: Preset | None, base: Mapping[str, Any]
) -> str:
    """Knobs that differ from the preset, so that a change stays in sight when it scrolls away."""
    if preset is None:
        return ""
    have, full = dump_config(config), dump_config(build_config(base))
    changed = []
    for path, knob in form.knobs.items():
        section, _, name = path.partition(".")
        if path in ("data.path", "model.id", "data.mapping", "data.format"):
            continue
        now, before = have[section][name], full[section][name]
        if now != before:
            changed.append(
                f"<li>{escape(knob.title)} <s>{_said(before)}</s> <b>{_said(now)}</b></li>"
            )
    if not changed:
        return ""
    return (
        "<p class='hint changed-title'>Different from the preset "
        f"\u201c{escape(preset.title)}\u201d:</p><ul class='changed'>{''.join(changed)}</ul>"
    )


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return plain(value)
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return escape("none" if value is None else value)
