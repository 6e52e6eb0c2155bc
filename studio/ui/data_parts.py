"""The Data tab's components and where they stand. No handler, no service is asked for anything
but the list of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from studio.core.formats import FORMATS
from studio.services.read_options import DETECT, ENCODINGS
from studio.ui import data_view
from studio.ui.data_edit import history_html
from studio.ui.data_jobs import build_bar
from studio.ui.form import Form, FreeDropdown, build_control
from studio.ui.header import asset
from studio.ui.live import PLOTLY_URL

MAX_ROLES = max(len(form.roles) for form in FORMATS.values())
DEFAULT_SEED = 42
MAX_HUB_ROWS = 100_000


@dataclass(frozen=True)
class DataTab:
    """The tab's components."""

    upload: gr.File
    dataset: FreeDropdown
    bar: gr.HTML
    encoding: FreeDropdown
    refused: gr.Textbox
    hub_id: gr.Textbox
    hub_config: FreeDropdown
    hub_split: FreeDropdown
    hub_rows: gr.Number
    hub_look: gr.Button
    hub_import: gr.Button
    hub_note: gr.HTML
    mapping_box: gr.Column
    format: FreeDropdown
    roles: list[FreeDropdown]
    text_unit: Any
    split: Any
    val_frac: Any
    system_prompt: Any
    changes_box: gr.Column
    history: gr.HTML
    undo: gr.Button
    redo: gr.Button
    prompt_text: gr.Textbox
    prompt_replace: gr.Checkbox
    prompt_apply: gr.Button
    sample_rows: gr.Number
    sample_seed: gr.Number
    sample_apply: gr.Button
    shuffle_seed: gr.Number
    shuffle_apply: gr.Button
    other_set: FreeDropdown
    other_apply: gr.Button
    edit_bar: gr.HTML
    facts: gr.HTML
    rows: gr.HTML
    details: gr.Column
    checks: gr.HTML
    opened: gr.Textbox
    near_bar: gr.HTML
    row_number: gr.Number
    back: gr.Button
    forth: gr.Button
    flagged: gr.Button
    edit: gr.Button
    leave_out: gr.Button
    editor: gr.HTML
    rendered: gr.HTML
    token_note: gr.HTML
    count: gr.Button
    token_bar: gr.HTML
    lengths: gr.HTML
    epoch: gr.HTML

    def named(self, names: Sequence[str]) -> list[Any]:
        """The components of these names; `roles` are several."""
        found: list[Any] = []
        for name in names:
            part = getattr(self, name)
            found += part if isinstance(part, list) else [part]
        return found


def build_data_tab(choices: Sequence[tuple[str, str]], form: Form, *, read_only: bool) -> DataTab:
    """Lay the tab out."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            with gr.Column(elem_classes="card"):
                parts |= _source(choices, read_only)
            with gr.Column(elem_classes="card"):
                gr.Markdown("## Reading it", elem_classes="eyebrow")
                with gr.Column(visible=False, elem_classes="plain") as mapping_box:
                    parts |= _mapping()
                    with gr.Accordion("How the file is read", open=False, elem_classes="quiet"):
                        parts |= _reading(form)
                parts["mapping_box"] = mapping_box
                parts["val_frac"] = form.add("data.val_frac", maximum=0.5, step=0.01)
                parts["system_prompt"] = form.add("data.system_prompt", lines=2)
            with gr.Column(elem_classes="card", visible=False, elem_id="changes") as box:
                parts |= _changes(choices, read_only)
            parts["changes_box"] = box
        with gr.Column(scale=3, min_width=320, elem_id="data-view"):
            with gr.Column(elem_classes="card"):
                parts["facts"] = gr.HTML(data_view.EMPTY)
                parts["rows"] = gr.HTML()
            with gr.Column(visible=False, elem_classes="data-details") as details:
                parts |= _details(read_only)
            parts["details"] = details
    # In a column that is shown later it would be shown with it.
    parts["opened"] = gr.Textbox("", visible="hidden", label="Opened check")
    parts["refused"] = gr.Textbox("", visible="hidden", label="Refused file")
    return DataTab(**{field.name: parts[field.name] for field in fields(DataTab)})


def _source(choices: Sequence[tuple[str, str]], read_only: bool) -> dict[str, Any]:
    gr.Markdown("## Your examples\nNothing leaves this machine.", elem_classes="eyebrow")
    # No file_types: gradio's own refusal names neither the cause nor what would do.
    upload = gr.File(
        label="Training file", height=148, elem_id="upload", elem_classes="keep",
        interactive=not read_only,
    )  # fmt: skip
    bar = build_bar("import-bar", "Import")
    dataset = FreeDropdown(
        list(choices), value=None, label="Data set", interactive=True, elem_id="dataset",
        info="Uploaded files and the samples that come with the studio.",
    )  # fmt: skip
    with gr.Accordion("Wrong letters?", open=False, elem_classes="quiet"):
        encoding = FreeDropdown(
            [("Told from the bytes", DETECT), *((title, key) for key, title in ENCODINGS.items())],
            value=DETECT, label="Encoding of the file", interactive=not read_only,
            elem_id="knob-data-encoding",
            info="How the file was saved. Choose it where letters look wrong or a file is refused "
            "for its characters.",
        )  # fmt: skip
    with gr.Accordion("From Hugging Face", open=False, elem_classes="quiet"):
        parts = _hub(read_only)
    return {"upload": upload, "bar": bar, "dataset": dataset, "encoding": encoding, **parts}


def _hub(read_only: bool) -> dict[str, Any]:
    hub_id = gr.Textbox(
        label="Hugging Face data set", interactive=True, max_lines=1, placeholder="owner/name",
        info="Needs network.",
    )  # fmt: skip
    with gr.Row(elem_classes="tight"):
        config = FreeDropdown(
            [], value=None, label="Subset", interactive=True, allow_custom_value=True,
            min_width=130, info="Empty: the default one.",
        )  # fmt: skip
        split = FreeDropdown(
            ["train"], value="train", label="Split", interactive=True, allow_custom_value=True,
            min_width=130, info="Which part of it.",
        )  # fmt: skip
    rows = gr.Number(
        10_000, label="Rows to fetch", minimum=1, maximum=MAX_HUB_ROWS, step=1, interactive=True,
        info=f"From the first, up to {MAX_HUB_ROWS:,} rows.",
    )  # fmt: skip
    with gr.Row(elem_classes="tight"):
        look = gr.Button("Look at it", size="md", min_width=120)
        fetch = gr.Button("Fetch rows", size="md", min_width=120, interactive=not read_only)
    return {
        "hub_id": hub_id, "hub_config": config, "hub_split": split, "hub_rows": rows,
        "hub_look": look, "hub_import": fetch, "hub_note": gr.HTML(),
    }  # fmt: skip


def _mapping() -> dict[str, Any]:
    titles = [(form.title, name) for name, form in FORMATS.items()]
    format_box = FreeDropdown(
        titles, value=None, label="Format", interactive=True,
        info="Detected from the content; correct it here if it is wrong.", elem_id="format",
    )  # fmt: skip
    with gr.Row(elem_classes="tight"):
        roles = [
            FreeDropdown(
                [], label=f"Column {i + 1}", visible=False, interactive=True, min_width=130
            )
            for i in range(MAX_ROLES)
        ]
    return {"format": format_box, "roles": roles}


def _reading(form: Form) -> dict[str, Any]:
    """Not of the form: they belong to a data set, and a run names the data set that it uses."""
    unit, split = (form.knobs[path] for path in ("data.text_unit", "data.split"))
    return {
        "text_unit": build_control(unit, form.abilities),
        "split": build_control(split, form.abilities, max_lines=1),
    }


def _changes(choices: Sequence[tuple[str, str]], read_only: bool) -> dict[str, Any]:
    can = {"interactive": not read_only, "size": "md"}
    gr.Markdown("## Changes", elem_classes="eyebrow")
    history = gr.HTML(history_html(None))
    with gr.Row(elem_classes="tight"):
        undo = gr.Button("Undo", min_width=90, size="md", interactive=False)
        redo = gr.Button("Redo", min_width=90, size="md", interactive=False)
    bar = build_bar("edit-bar", "Change")
    with gr.Accordion("Change all rows", open=False, elem_classes="quiet"):
        prompt = gr.Textbox(
            label="System prompt to write into the rows", lines=2, max_lines=6, interactive=True,
            info="Becomes part of the data, unlike the one above, which is used in training only.",
        )  # fmt: skip
        replace = gr.Checkbox(
            False, label="Also where a row has one already", interactive=True,
            info="An empty text then takes the system prompts away.",
        )  # fmt: skip
        prompt_apply = gr.Button("Write it into the rows", **can)
        with gr.Row(elem_classes="tight"):
            rows = gr.Number(
                1000, label="Rows to keep", minimum=1, step=1, interactive=True, min_width=120,
                info="Drawn by chance.",
            )  # fmt: skip
            seed = gr.Number(
                DEFAULT_SEED, label="Seed of the sample", minimum=0, step=1, interactive=True,
                min_width=120, info="Same seed, same rows.",
            )  # fmt: skip
        sample_apply = gr.Button("Keep a sample", **can)
        shuffle_seed = gr.Number(
            DEFAULT_SEED, label="Seed of the shuffle", minimum=0, step=1, interactive=True,
            info="Puts the rows into another order.",
        )  # fmt: skip
        shuffle_apply = gr.Button("Shuffle the rows", **can)
        other = FreeDropdown(
            list(choices), value=None, label="Held-out file", interactive=True,
            info="Measure on the rows of another data set; all rows of this one train.",
        )  # fmt: skip
        other_apply = gr.Button("Hold out its rows", **can)
    return {
        "history": history, "undo": undo, "redo": redo, "edit_bar": bar, "prompt_text": prompt,
        "prompt_replace": replace, "prompt_apply": prompt_apply, "sample_rows": rows,
        "sample_seed": seed, "sample_apply": sample_apply, "shuffle_seed": shuffle_seed,
        "shuffle_apply": shuffle_apply, "other_set": other, "other_apply": other_apply,
    }  # fmt: skip


def _details(read_only: bool) -> dict[str, Any]:
    with gr.Column(elem_classes="card", elem_id="checks-card"):
        gr.Markdown("## Checks", elem_classes="eyebrow")
        checks = gr.HTML(js_on_load=asset("data_checks.js"), elem_id="checks")
        near_bar = build_bar("near-bar", "Search for near-duplicates")
    with gr.Column(elem_classes="card", elem_id="row-card"):
        parts = _row_card(read_only)
    with gr.Column(elem_classes="card", elem_id="lengths-card"):
        gr.Markdown(
            "## Token lengths\nWhat max length cuts off, and what an epoch costs.",
            elem_classes="eyebrow",
        )
        token_bar = build_bar("token-bar", "Counting tokens")
        note = gr.HTML()
        count = gr.Button("Count tokens", size="md", visible=False)
        script = f'const PLOTLY_URL = "{PLOTLY_URL}";\n' + asset("data_lengths.js")
        lengths = gr.HTML(
            "", html_template=asset("data_lengths.html"), js_on_load=script, elem_id="lengths"
        )
        epoch = gr.HTML()
    return {
        "checks": checks, "near_bar": near_bar, **parts, "token_bar": token_bar,
        "token_note": note, "count": count, "lengths": lengths, "epoch": epoch,
    }  # fmt: skip


def _row_card(read_only: bool) -> dict[str, Any]:
    gr.Markdown(
        "## What the model sees\nRendered with the chosen model's own chat template.",
        elem_classes="eyebrow",
    )
    with gr.Row(elem_classes="tight row-pick"):
        number = gr.Number(
            1, label="Row", minimum=1, step=1, interactive=True, min_width=96, scale=0,
            elem_id="row-number",
        )  # fmt: skip
        back = gr.Button("Previous", size="md", min_width=88, scale=0)
        forth = gr.Button("Next", size="md", min_width=66, scale=0)
        flagged = gr.Button("Next flagged", size="md", min_width=116, scale=0)
        edit = gr.Button("Edit", size="md", min_width=66, scale=0, interactive=not read_only)
        out = gr.Button("Leave out", size="md", min_width=92, scale=0, interactive=not read_only)
    editor = gr.HTML(js_on_load=asset("data_editor.js"), elem_id="editor")
    rendered = gr.HTML(js_on_load=asset("data_tokens.js"), elem_id="rendered")
    return {
        "row_number": number, "back": back, "forth": forth, "flagged": flagged, "edit": edit,
        "leave_out": out, "editor": editor, "rendered": rendered,
    }  # fmt: skip
