"""The form as it was left: kept by the browser, put back when the page is loaded again.

Owns what is kept (the knobs, the preset, the run's name; never a token) and that what comes back is
checked like anything else that a browser sends. Kept in localStorage by our own script: no server
state, no connection held open, one memory a browser.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.config_io import build_config
from studio.core.errors import StudioError
from studio.ui.data_tab import dataset_choices
from studio.ui.errors import shows_errors
from studio.ui.text import escape
from studio.ui.train_summary import config_values
from studio.ui.train_tab import TrainTab, preset_of, settings_of

if TYPE_CHECKING:
    from studio.services.studio import Studio
    from studio.ui.form import Form

KEY = "studio-form-1"
MAX_CHARS = 100_000
# Nothing is kept before the old values are back: the page would keep its own defaults.
_KEEP = """(...values) => { if (!window.studioFormIsBack) return;
  const names = %s, kept = {}; names.forEach((name, i) => { kept[name] = values[i]; });
  try { localStorage.setItem(%s, JSON.stringify(kept)); }
  catch (error) { console.info('the form is not kept: ' + error); } }"""
_RECALL = """() => { try { return [localStorage.getItem(%s) || '']; }
  catch (error) { console.info('the form was not kept: ' + error); return ['']; } }"""
_IS_BACK = "() => { window.studioFormIsBack = true; }"


def wire_form_memory(studio: Studio, tab: TrainTab, form: Form, blocks: gr.Blocks) -> Any:
    """Keep each change, and bring the form back when the page is loaded.

    Returns:
        The event after which it is back.
    """
    knobs = {**form.inputs(), "targets": tab.targets, "modules": tab.modules}
    kept = {**knobs, "preset": tab.preset, "name": tab.name}
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [control.change for control in kept.values()], None, list(kept.values()), None,
        js=_KEEP % (json.dumps(list(kept)), json.dumps(KEY)), trigger_mode="always_last", **private,
    )  # fmt: skip
    text = gr.Textbox("", visible="hidden", label="Kept settings")

    @shows_errors
    def on_load(text: str) -> list[Any]:
        return recalled(studio, tab, form, text)

    loaded = blocks.load(
        on_load, inputs=[text], outputs=[*tab.settings(form), tab.preset, tab.name, tab.why],
        js=_RECALL % json.dumps(KEY), **private,
    )  # fmt: skip
    loaded.then(None, js=_IS_BACK, **private)
    return loaded


def recalled(studio: Studio, tab: TrainTab, form: Form, text: str) -> list[Any]:
    """Updates of all settings, preset, name and the preset's sentence, for what a browser kept.

    What is no longer allowed is left at its default; a data set that is not in this workspace gives
    way to the newest one.
    """
    kept = _read(text)
    values = _allowed(form, kept)
    infos = studio.datasets.list()
    newest = infos[0].id if infos else None
    data = values.setdefault("data", {})
    if not studio.datasets.has(str(data.get("path") or "")):
        data["path"] = newest
    if not kept:
        updates = [gr.skip() for _ in tab.settings(form)]
        place = list(form.controls).index("data.path")
        updates[place] = gr.update(choices=dataset_choices(studio), value=newest)
        return [*updates, gr.skip(), gr.skip(), gr.skip()]
    preset = preset_of(studio, kept.get("preset"))
    name = kept.get("name")
    why = gr.skip() if preset is None else f"<p class='hint'>{escape(preset.why)}</p>"
    return [
        *settings_of(studio, form, values), gr.update(value=preset.id if preset else None),
        name[:120] if isinstance(name, str) else "", why,
    ]  # fmt: skip


def _read(text: str) -> dict[str, Any]:
    """What was kept, {} where that is nothing or no JSON object."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARS:
        return {}
    try:
        kept = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _allowed(form: Form, kept: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Nested config values out of what was kept: those that are valid, each and together."""
    found: dict[str, dict[str, Any]] = {}
    try:
        values = config_values(form, kept)
    except (StudioError, TypeError, ValueError):
        return found
    for section, names in values.items():
        for name, value in names.items():
            candidate = {**found, section: {**found.get(section, {}), name: value}}
            try:
                build_config(candidate)
            except StudioError:
                continue
            found = candidate
    return found
