"""Handlers of the Data tab that look at rows: which one is shown, and the rows of a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import StudioError
from studio.services.row_places import nearest_position, next_flagged
from studio.ui.data_checks import Opened
from studio.ui.data_desk import Desk, dataset_choices, facts_of, open_dataset
from studio.ui.data_look import Look
from studio.ui.data_row_edits import TO_THE_ROW
from studio.ui.data_tokens import rendered_html
from studio.ui.data_view import failure_html
from studio.ui.errors import event_text, shows_errors

if TYPE_CHECKING:
    from studio.services.datasets import DatasetInfo
    from studio.services.studio import Studio

FURTHEST = 10**9


def row_of(number: Any) -> int:
    """A row number out of its box; what is none is the first."""
    ok = isinstance(number, int | float) and not isinstance(number, bool)
    return int(number) if ok and 1 <= number < FURTHEST else 1


def render_row(studio: Studio, info: DatasetInfo, number: int, look: Look) -> str:
    """Row `number` as the chosen model's template renders it, or the sentence why it cannot be."""
    found = studio.datasets.rows(info.id, nearest_position(info, number), 1)
    if not found:
        return ""
    row, line = int(found[0]["i"]), found[0].get("line")
    other = (
        "" if row == number else
        f"<p class='warn'>Row {number:,} is left out; Edit opens it. This is row {row:,}.</p>"
        if number <= info.rows else
        f"<p class='warn'>There is no row {number:,}; this is row {row:,}.</p>"
    )  # fmt: skip
    try:
        result = studio.inspector.render(look.model_id, found[0], look.options())
    except StudioError as error:
        said = f"Row {row:,} cannot be rendered. {error}"
        return other + failure_html(said)
    return other + rendered_html(result, row, line=line, model=look.model_id)


def wire_rows(desk: Desk) -> None:
    """Connect the row picker, and the checks' lists."""
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    _wire_render(desk, quick)
    _wire_moves(desk, quick)
    _wire_lists(desk, quick)
    _wire_share(desk, quick)


def _wire_render(desk: Desk, quick: dict[str, Any]) -> None:
    """The row is rendered again when it, the model or what decides its tokens changes."""
    tab, controls = desk.tab, desk.form.controls

    @shows_errors
    def on_render(number: Any, **raw: Any) -> str:
        info = open_dataset(desk.studio, raw.get("value"))
        return "" if info is None else render_row(desk.studio, info, row_of(number), Look.of(raw))

    gr.on(
        [
            tab.dataset.change, tab.row_number.input, desk.model.change, tab.system_prompt.blur,
            controls["train.loss_on"].change, controls["train.max_length"].change,
        ],
        on_render, inputs_kwargs={**desk.picked(), "number": tab.row_number}, outputs=tab.rendered,
        trigger_mode="always_last", **quick,
    )  # fmt: skip


def _wire_moves(desk: Desk, quick: dict[str, Any]) -> None:
    """Previous, next, next flagged, and a row that a check's list names."""
    tab, studio = desk.tab, desk.studio
    stay = [gr.skip(), gr.skip(), gr.skip()]

    def at(info: DatasetInfo, position: int, raw: dict[str, Any]) -> list[Any]:
        found = studio.datasets.rows(info.id, position, 1)
        if not found:
            return stay
        number = int(found[0]["i"])
        return [number, render_row(studio, info, number, Look.of(raw)), ""]

    def move(by: int) -> Callable[..., list[Any]]:
        @shows_errors
        def on_move(number: Any, **raw: Any) -> list[Any]:
            info = open_dataset(studio, raw.get("value"))
            if info is None:
                return stay
            place = nearest_position(info, row_of(number)) + by
            return at(info, min(max(place, 0), info.used - 1), raw)

        return on_move

    @shows_errors
    def on_flagged(number: Any, **raw: Any) -> list[Any]:
        info = open_dataset(studio, raw.get("value"))
        place = None
        if info is not None:
            place = next_flagged(info, nearest_position(info, row_of(number)))
        if info is None or place is None:
            gr.Info("No check names a row that trains.", duration=8)
            return stay
        return at(info, place, raw)

    @shows_errors
    def on_row(event: gr.EventData, **raw: Any) -> list[Any]:
        info = open_dataset(studio, raw.get("value"))
        text = event_text(event, "check")
        asked = row_of(int(text) if text.isdecimal() and len(text) < 10 else 1)
        return stay if info is None else at(info, nearest_position(info, asked), raw)

    shown = [tab.row_number, tab.rendered, tab.editor]
    picked = {**desk.picked(), "number": tab.row_number}
    for button, by in ((tab.back, -1), (tab.forth, 1)):
        # Straight to the handler: the queue costs a second request.
        button.click(move(by), inputs_kwargs=picked, outputs=shown, queue=False, **quick)
    tab.flagged.click(on_flagged, inputs_kwargs=picked, outputs=shown, **quick)
    tab.checks.row(on_row, inputs_kwargs=desk.picked(), outputs=shown, js=TO_THE_ROW, **quick)


def _wire_lists(desk: Desk, quick: dict[str, Any]) -> None:
    tab, studio = desk.tab, desk.studio

    def listed(raw: dict[str, Any], opened: Opened) -> list[Any]:
        info = open_dataset(studio, raw.get("value"))
        if info is None:
            return [gr.skip(), gr.skip()]
        return [desk.checks(info, Look.of(raw), str(opened)), str(opened)]

    @shows_errors
    def on_show(event: gr.EventData, **raw: Any) -> list[Any]:
        return listed(raw, Opened.read(event_text(event, "check")))

    @shows_errors
    def on_hide(**raw: Any) -> list[Any]:
        return listed(raw, Opened())

    panel = [tab.checks, tab.opened]
    tab.checks.show(on_show, inputs_kwargs=desk.picked(), outputs=panel, **quick)
    tab.checks.hide(on_hide, inputs_kwargs=desk.picked(), outputs=panel, **quick)


def _wire_share(desk: Desk, quick: dict[str, Any]) -> None:
    """What follows the share of held-out rows, and the Train tab's data set, which follows ours."""
    tab, studio = desk.tab, desk.studio

    @shows_errors
    def on_share(**raw: Any) -> list[Any]:
        info, look = open_dataset(studio, raw.get("value")), Look.of(raw)
        if info is None:
            return [gr.skip(), gr.skip()]
        return [facts_of(info, look), desk.checks(info, look, raw.get("opened"))]

    @shows_errors
    def on_dataset(value: str | None) -> Any:
        return gr.update(choices=dataset_choices(studio), value=value)

    tab.val_frac.change(
        on_share, inputs_kwargs=desk.picked(), outputs=[tab.facts, tab.checks],
        trigger_mode="always_last", **quick,
    )  # fmt: skip
    tab.dataset.change(
        on_dataset, inputs_kwargs={"value": tab.dataset},
        outputs=desk.form.controls["data.path"], **quick,
    )  # fmt: skip
