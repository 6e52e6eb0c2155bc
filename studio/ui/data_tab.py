"""The Data tab: a file becomes a data set, its mapping can be corrected, the result is shown.

Owns the layout and the handlers; HTML comes from `data_view`, the work is done by
`services.datasets` and `services.inspect`. The chosen data set is the value of one dropdown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import DatasetError, StudioError
from studio.core.formats import FORMATS
from studio.core.split import num_held_out
from studio.ui import data_view
from studio.ui.errors import shows_errors
from studio.ui.form import Form, FreeDropdown
from studio.ui.text import clip, escape, plural

if TYPE_CHECKING:
    from studio.services.datasets import DatasetInfo
    from studio.services.studio import Studio

SAMPLE_PREFIX = "sample:"
FILE_TYPES = [".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".gz"]
MAX_ROLES = max(len(form.roles) for form in FORMATS.values())
NO_COLUMN = "(none)"
# "Message" is the name of the chat's text box: these two get another word.
ROLE_TITLES = {"messages": "turns", "conversations": "turns"}


@dataclass(frozen=True)
class DataTab:
    """The tab's components."""

    upload: gr.File
    hub_id: gr.Textbox
    hub_import: gr.Button
    dataset: FreeDropdown
    mapping_box: gr.Column
    format: FreeDropdown
    roles: list[FreeDropdown]
    val_frac: Any
    system_prompt: Any
    facts: gr.HTML
    problems: gr.HTML
    rows: gr.HTML
    row_number: gr.Number
    rendered: gr.HTML
    row_box: gr.Row

    def view(self) -> list[Any]:
        """Outputs of `shown`."""
        return [
            self.dataset, self.mapping_box, self.format, *self.roles, self.facts, self.problems,
            self.rows, self.row_box, self.rendered,
        ]  # fmt: skip


def build_data_tab(studio: Studio, form: Form) -> DataTab:
    """Lay the tab out."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            with gr.Column(elem_classes="card"):
                gr.Markdown(
                    "## Your examples\nNothing leaves this machine.", elem_classes="eyebrow"
                )
                # No file_types: gradio's own refusal names neither the cause nor what would do.
                upload = gr.File(
                    label="Training file", height=148, elem_id="upload", elem_classes="keep",
                    interactive=not studio.settings.read_only,
                )  # fmt: skip
                dataset = FreeDropdown(
                    dataset_choices(studio), value=None, label="Data set", interactive=True,
                    info="Uploaded files and the samples that come with the studio.",
                    elem_id="dataset",
                )  # fmt: skip
                with gr.Accordion("From Hugging Face", open=False, elem_classes="quiet"):
                    hub_id = gr.Textbox(
                        label="Hugging Face data set", interactive=True, max_lines=1,
                        placeholder="owner/name", info="Fetches up to 10,000 rows. Needs network.",
                    )  # fmt: skip
                    hub_import = gr.Button(
                        "Fetch rows", size="md", interactive=not studio.settings.read_only
                    )
            with gr.Column(elem_classes="card"):
                gr.Markdown("## Reading it", elem_classes="eyebrow")
                with gr.Column(visible=False, elem_classes="plain") as mapping_box:
                    format_box, roles = _mapping_controls()
                val_frac = form.add("data.val_frac", maximum=0.5, step=0.01)
                system_prompt = form.add("data.system_prompt", lines=2)
        with gr.Column(scale=3, min_width=320, elem_classes="card", elem_id="data-view"):
            facts = gr.HTML(data_view.EMPTY)
            problems = gr.HTML()
            rows = gr.HTML()
            with gr.Row(visible=False, elem_classes="row-pick") as row_box:
                row_number = gr.Number(
                    1, label="Row to render", minimum=1, step=1, interactive=True, min_width=120,
                    scale=0,
                )  # fmt: skip
            rendered = gr.HTML()
    return DataTab(
        upload, hub_id, hub_import, dataset, mapping_box, format_box, roles, val_frac,
        system_prompt, facts, problems, rows, row_number, rendered, row_box,
    )  # fmt: skip


def _mapping_controls() -> tuple[FreeDropdown, list[FreeDropdown]]:
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
    return format_box, roles


def dataset_choices(studio: Studio) -> list[tuple[str, str]]:
    """Data sets of the workspace, then samples that were not imported yet."""
    infos = studio.datasets.list()
    have = {info.name for info in infos if info.sample}
    own = [(f"{info.name} ({plural(info.used, 'row')})", info.id) for info in infos]
    samples = [
        (f"Sample: {sample['title']}", SAMPLE_PREFIX + sample["id"])
        for sample in studio.datasets.samples()
        if sample["file"] not in have
    ]
    return own + samples


def open_dataset(studio: Studio, value: str | None) -> DatasetInfo | None:
    """The data set a dropdown's value means; a sample is imported now. None for an empty choice."""
    if not value:
        return None
    if value.startswith(SAMPLE_PREFIX):
        return studio.datasets.import_sample(value.removeprefix(SAMPLE_PREFIX))
    return studio.datasets.get(value)


def import_upload(studio: Studio, path: str) -> DatasetInfo:
    """Import what the browser sent. Raises StudioError, first of all for a kind that we cannot
    read."""
    name = Path(path).name
    if not name.lower().endswith(tuple(FILE_TYPES)):
        raise DatasetError(
            f"The studio cannot read files of the kind {Path(name).suffix or 'without an ending'}",
            value=clip(name, 80), allowed=", ".join(FILE_TYPES),
            remedy="Save it as CSV or JSON Lines, then drop that file",
        )  # fmt: skip
    return studio.datasets.import_file(path)


def facts_of(info: DatasetInfo, val_frac: Any) -> str:
    """The counts of a data set with this share held out."""
    share = val_frac if isinstance(val_frac, int | float) and 0 <= val_frac <= 0.5 else 0.0
    why = "; ".join(info.reasons)
    title = FORMATS[info.format].title if info.format in FORMATS else info.format
    note = f"<b>{escape(title)}</b>" + (f": {escape(why)}" if why else "")
    note += "".join(f"<br>{escape(remark)}" for remark in info.notes)
    return data_view.facts_html(
        rows=info.rows, used=info.used, left_out=info.left_out,
        held_out=num_held_out(info.used, share), note=note, name=info.name,
    )  # fmt: skip


def role_updates(info: DatasetInfo, format_name: str, mapping: dict[str, str]) -> list[Any]:
    """One dropdown a role of the format, the others hidden."""
    roles = FORMATS[format_name].roles if format_name in FORMATS else ()
    updates = []
    for index in range(MAX_ROLES):
        if index >= len(roles):
            updates.append(gr.update(visible=False, value=None))
            continue
        role = roles[index]
        choices = info.columns if role.required else [NO_COLUMN, *info.columns]
        title = ROLE_TITLES.get(role.name, role.name)
        label = title if role.required else f"{title} (optional)"
        value = mapping.get(role.name) or (None if role.required else NO_COLUMN)
        updates.append(gr.update(visible=True, choices=choices, label=label, value=value))
    return updates


def shown(studio: Studio, info: DatasetInfo, val_frac: Any, rendered: Any = None) -> list[Any]:
    """Updates of `DataTab.view` for a data set."""
    return [
        gr.update(choices=dataset_choices(studio), value=info.id),
        gr.update(visible=True),
        gr.update(value=info.format),
        *role_updates(info, info.format, info.mapping),
        facts_of(info, val_frac),
        data_view.problems_html(info.problems, info.left_out),
        data_view.rows_html(studio.datasets.rows(info.id, 0, data_view.PREVIEW_ROWS)),
        gr.update(visible=True),
        rendered if rendered is not None else gr.skip(),
    ]


def failed(tab: DataTab, error: StudioError) -> list[Any]:
    """Updates of `DataTab.view` for a file that cannot be used: the sentence stands there."""
    updates = [gr.skip() for _ in tab.view()]
    index = tab.view().index(tab.facts)
    updates[index] = data_view.failure_html(str(error))
    for part in (tab.problems, tab.rows, tab.rendered):
        updates[tab.view().index(part)] = ""
    updates[tab.view().index(tab.row_box)] = gr.update(visible=False)
    return updates


def present(studio: Studio, tab: DataTab, find: Callable[[], Any], val_frac: Any) -> list[Any]:
    """Updates for the data set that `find` brings; its sentence where it fails."""
    try:
        info = find()
    except StudioError as error:
        return failed(tab, error)
    return [gr.skip() for _ in tab.view()] if info is None else shown(studio, info, val_frac)


def wire_data_tab(studio: Studio, tab: DataTab, form: Form, *, model: Any, train_data: Any) -> None:
    """Connect the tab. `model` renders the row, `train_data` follows the chosen data set."""
    view = tab.view()
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [tab.facts]}

    @shows_errors
    def on_upload(path: str | None, val_frac: Any) -> list[Any]:
        if not path:
            return [gr.skip() for _ in view]
        return present(studio, tab, lambda: import_upload(studio, path), val_frac)

    @shows_errors
    def on_pick(value: str | None, val_frac: Any) -> list[Any]:
        return present(studio, tab, lambda: open_dataset(studio, value), val_frac)

    @shows_errors
    def on_hub(hub_id: str, val_frac: Any) -> list[Any]:
        return present(
            studio, tab, lambda: studio.datasets.import_hub((hub_id or "").strip()), val_frac
        )

    share = {"val_frac": tab.val_frac}
    tab.upload.upload(
        on_upload, inputs_kwargs={"path": tab.upload, **share}, outputs=view, **private
    )
    tab.dataset.input(
        on_pick, inputs_kwargs={"value": tab.dataset, **share}, outputs=view, **private
    )
    gr.on(
        [tab.hub_import.click, tab.hub_id.submit], on_hub,
        inputs_kwargs={"hub_id": tab.hub_id, **share}, outputs=view, **private,
    )  # fmt: skip
    _wire_mapping(studio, tab)
    _wire_preview(studio, tab, form, model=model, train_data=train_data)


def _wire_mapping(studio: Studio, tab: DataTab) -> None:
    """Another format or other columns: the file is read again."""
    view = tab.view()
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [tab.facts]}

    @shows_errors
    def on_format(value: str, format_name: str, val_frac: Any) -> list[Any]:
        info = _need(studio, value)
        try:
            return shown(studio, studio.datasets.remap(info.id, format_name), val_frac)
        except StudioError as error:
            updates = failed(tab, error)
            first = view.index(tab.roles[0])
            updates[first : first + MAX_ROLES] = role_updates(info, format_name, {})
            return updates

    @shows_errors
    def on_mapping(value: str, format_name: str, val_frac: Any, **columns: Any) -> list[Any]:
        info = _need(studio, value)
        chosen = mapping_of(format_name, [columns[f"role_{i}"] for i in range(MAX_ROLES)])
        return present(
            studio, tab, lambda: studio.datasets.remap(info.id, format_name, chosen), val_frac
        )

    share = {"val_frac": tab.val_frac}
    roles = {f"role_{i}": role for i, role in enumerate(tab.roles)}
    picked = {"value": tab.dataset, "format_name": tab.format}
    tab.format.input(on_format, inputs_kwargs={**picked, **share}, outputs=view, **private)
    gr.on(
        [role.input for role in tab.roles], on_mapping,
        inputs_kwargs={**picked, **share, **roles}, outputs=view, **private,
    )  # fmt: skip


def _wire_preview(studio: Studio, tab: DataTab, form: Form, *, model: Any, train_data: Any) -> None:
    """What follows from the chosen data set: counts, the rendered row, the Train tab's choice."""

    @shows_errors
    def on_share(value: str | None, val_frac: Any) -> Any:
        info = open_dataset(studio, value)
        return facts_of(info, val_frac) if info else gr.skip()

    @shows_errors
    def on_render(value: str | None, number: Any, model_id: Any, **options: Any) -> Any:
        info = open_dataset(studio, value)
        return "" if info is None else render_row(studio, info, number, model_id, options)

    @shows_errors
    def on_dataset(value: str | None) -> Any:
        return gr.update(choices=dataset_choices(studio), value=value)

    picked = {"value": tab.dataset}
    tab.val_frac.change(
        on_share, inputs_kwargs={**picked, "val_frac": tab.val_frac}, outputs=tab.facts,
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
    tab.dataset.change(
        on_dataset, inputs_kwargs=picked, outputs=train_data, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    render = {
        **picked,
        "number": tab.row_number,
        "model_id": model,
        "system_prompt": tab.system_prompt,
    }
    render |= {
        "loss_on": form.controls["train.loss_on"],
        "max_length": form.controls["train.max_length"],
    }
    gr.on(
        [tab.dataset.change, tab.row_number.change, model.change, tab.system_prompt.blur],
        on_render, inputs_kwargs=render, outputs=tab.rendered, show_progress="minimal",
        trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip


def render_row(
    studio: Studio, info: DatasetInfo, number: Any, model_id: Any, options: dict[str, Any]
) -> str:
    """One row as the chosen model's template renders it, or the sentence why it cannot be."""
    index = int(number) if isinstance(number, int | float) and 1 <= number <= info.used else 1
    found = studio.datasets.rows(info.id, index - 1, 1)
    if not found:
        return ""
    try:
        result = studio.inspector.render(str(model_id or "starter"), found[0], options)
    except StudioError as error:
        return data_view.failure_html(f"The row cannot be rendered. {error}")
    return data_view.rendered_html(result, index)


def mapping_of(format_name: str, columns: list[Any]) -> dict[str, str]:
    """Role by column from the dropdowns, in the order of the format's roles."""
    if format_name not in FORMATS:
        raise DatasetError("Unknown format", value=str(format_name), allowed=", ".join(FORMATS))
    roles = FORMATS[format_name].roles
    return {
        role.name: str(column)
        for role, column in zip(roles, columns, strict=False)
        if column and column != NO_COLUMN
    }


def _need(studio: Studio, value: str | None) -> DatasetInfo:
    info = open_dataset(studio, value)
    if info is None:
        raise DatasetError("No data set is chosen", remedy="Drop a file or pick a sample first")
    return info
