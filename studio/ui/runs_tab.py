"""The Runs tab: all runs as a table, and what can be done with the chosen one.

Owns layout and handlers. The chosen run is the value of a hidden text box; the table is HTML from
`runs_view`. Everything is read from the run folders each time: nothing is kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import StoreError
from studio.ui import runs_view
from studio.ui.errors import event_text, shows_errors
from studio.ui.header import asset
from studio.ui.run_memory import memory_html

if TYPE_CHECKING:
    from studio.services.studio import Studio


@dataclass(frozen=True)
class RunsTab:
    """The tab's components."""

    table: gr.HTML
    chosen: gr.Textbox
    details: gr.HTML
    panel: gr.Column
    open: gr.Button
    chat: gr.Button
    again: gr.Button
    name: gr.Textbox
    rename: gr.Button
    delete: gr.Button
    undo: gr.Button
    trashed: gr.Textbox
    upload: gr.UploadButton
    refresh: gr.Button
    note: gr.HTML

    def view(self) -> list[Any]:
        """Outputs of `shown`."""
        return [
            self.table, self.chosen, self.details, self.panel, self.name, self.note, self.chat,
            self.again,
        ]  # fmt: skip


def build_runs_tab(studio: Studio) -> RunsTab:
    """Lay the tab out."""
    can_write = not studio.settings.read_only
    with gr.Column(elem_classes="card"):
        with gr.Row(elem_classes="runs-head"):
            gr.Markdown("## Runs\nEach is a folder that holds all it takes to repeat it.",
                        elem_classes="eyebrow")  # fmt: skip
            # No file_types: gradio's own refusal names neither the cause nor what would do.
            upload = gr.UploadButton(
                "Open a run zip", size="md", scale=0, min_width=150, elem_id="open-zip",
                interactive=can_write,
            )  # fmt: skip
            refresh = gr.Button("Refresh", size="md", scale=0, min_width=110)
        note = gr.HTML()
        table = gr.HTML(
            runs_view.table_html(studio.runs.list(), ""), js_on_load=asset("runs.js"),
            elem_id="runs-table",
        )  # fmt: skip
        undo = gr.Button("Undo delete", size="md", visible=False)
    chosen = gr.Textbox("", visible="hidden", label="Chosen run")
    trashed = gr.Textbox("", visible="hidden", label="Deleted run")
    with gr.Column(elem_classes="card", visible=False, elem_id="run-panel") as panel:
        details = gr.HTML()
        with gr.Row(elem_classes="tight"):
            open_run = gr.Button("Open", variant="primary", size="md", min_width=110)
            chat = gr.Button("Chat", size="md", min_width=110)
            again = gr.Button("Use these settings again", size="md", min_width=190)
            delete = gr.Button(
                "Delete", size="md", variant="stop", min_width=110, interactive=can_write
            )
        with gr.Row(elem_classes="tight rename"):
            name = gr.Textbox(
                label="Name", show_label=False, max_lines=1, interactive=True, max_length=120,
                scale=4,
            )  # fmt: skip
            rename = gr.Button("Rename", size="md", scale=0, min_width=110, interactive=can_write)
    return RunsTab(
        table, chosen, details, panel, open_run, chat, again, name, rename, delete, undo, trashed,
        upload, refresh, note,
    )  # fmt: skip


def shown(studio: Studio, run_id: str, note: str = "") -> list[Any]:
    """Updates of `RunsTab.view` with this run chosen ("" = none)."""
    runs = studio.runs.list()
    run = next((run for run in runs if run.id == run_id), None)
    if run is None:
        hidden = gr.update(visible=False)
        return [runs_view.table_html(runs, ""), "", "", hidden, "", note, gr.skip(), gr.skip()]
    return [
        runs_view.table_html(runs, run.id), run.id,
        runs_view.details_html(run) + memory_html(studio.measured.of_run(run.id)),
        gr.update(visible=True), run.name, note, gr.update(interactive=run.can_chat),
        gr.update(interactive=run.is_usable),
    ]  # fmt: skip


def wire_runs_tab(studio: Studio, tab: RunsTab) -> None:
    """Connect what stays inside the tab; opening and chatting is wired in `page`."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    chosen = {"run_id": tab.chosen}
    can_undo = [*tab.view(), tab.undo, tab.trashed]

    @shows_errors
    def on_choose(event: gr.EventData) -> list[Any]:
        return shown(studio, event_text(event, "run"))

    @shows_errors
    def on_refresh(run_id: str) -> list[Any]:
        return shown(studio, run_id)

    @shows_errors
    def on_rename(run_id: str, name: str) -> list[Any]:
        studio.runs.rename(run_id, name or "")
        return shown(studio, run_id, runs_view.note_html("Renamed."))

    @shows_errors
    def on_delete(run_id: str) -> list[Any]:
        name = studio.runs.get(run_id).name
        token = studio.runs.delete(run_id)
        note = runs_view.note_html(f"\u201c{name}\u201d is in the trash.")
        return [*shown(studio, "", note), gr.update(visible=True), token]

    @shows_errors
    def on_undo(token: str) -> list[Any]:
        run_id = studio.runs.undo_delete(token or "")
        back = shown(studio, run_id, runs_view.note_html("It is back."))
        return [*back, gr.update(visible=False), ""]

    @shows_errors
    def on_zip(path: Any) -> list[Any]:
        if not path:
            raise StoreError("No file was chosen", allowed="a run zip")
        run_id = studio.runs.open_zip(path)
        return shown(studio, run_id, runs_view.note_html("Opened, read-only."))

    tab.table.choose(on_choose, None, tab.view(), **private)
    tab.refresh.click(on_refresh, inputs_kwargs=chosen, outputs=tab.view(), **private)
    gr.on(
        [tab.rename.click, tab.name.submit], on_rename,
        inputs_kwargs={**chosen, "name": tab.name}, outputs=tab.view(), **private,
    )  # fmt: skip
    tab.delete.click(on_delete, inputs_kwargs=chosen, outputs=can_undo, **private)
    tab.undo.click(on_undo, inputs_kwargs={"token": tab.trashed}, outputs=can_undo, **private)
    tab.upload.upload(on_zip, inputs_kwargs={"path": tab.upload}, outputs=tab.view(), **private)
