"""Handlers of the Data tab that change one row: edit it, leave it out, put it back.

Owns how any change is recorded and shown (`run_change`, `record_step`), too. A row that is left out
is opened by its number or from the checks' lists: as the imported set holds it, or, where the
import could not use it, read again from the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from studio.core.errors import DatasetError
from studio.services.left_out_rows import excluded_row, is_excluded, read_unused
from studio.services.row_correction import corrected
from studio.services.row_places import numbers_of
from studio.ui.data_desk import GENERATORS, Desk, need, shown
from studio.ui.data_edit import (
    edit_step,
    editor_html,
    mending_html,
    require_editable,
    sent_parts,
    whole_number,
)
from studio.ui.data_jobs import IDLE, Work
from studio.ui.data_look import Look
from studio.ui.errors import event_text, shows_errors

if TYPE_CHECKING:
    from studio.services.dataset_records import DatasetInfo

MAX_ROWS = 1_000_000_000
Change = Callable[..., Any]
Raw = Mapping[str, Any]
# The row card comes into sight where a check's row was asked for; inputs go on as they are.
TO_THE_ROW = """(...values) => {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  document.getElementById('row-card')?.scrollIntoView({behavior: calm ? 'auto' : 'smooth'});
  return values; }"""


def long_event(desk: Desk) -> dict[str, Any]:
    """What the events of all changes have in common."""
    return {
        "outputs": desk.view(), "api_visibility": "private", "show_progress": "hidden",
        "concurrency_limit": GENERATORS,
    }  # fmt: skip


def run_change(
    desk: Desk, request: gr.Request, change: Change, title: str, look: Look, **more: Any
) -> Iterator[list[Any]]:
    """Make a change in a thread, then show the data set that it made.

    Args:
        change: `change(progress=, cancelled=)`, returns the new data set.
        more: updates of other parts of the view.
    """
    job = desk.jobs.start(
        lambda p, c: change(progress=p, cancelled=c), kind="change", page=request.session_hash,
        title=title,
    )  # fmt: skip
    yield from desk.work(job, "edit_bar", lambda info: shown(desk, info, look, **more))


def record_step(
    desk: Desk, request: gr.Request, raw: Raw, step: Mapping[str, Any], **more: Any
) -> Iterator[list[Any]]:
    """Record one more step on the chosen data set."""
    look, info = Look.of(raw), need(desk.studio, raw.get("value"))

    def change(**options: Any) -> Any:
        return desk.studio.edits.apply(
            info.id, step, val_frac=look.val_frac, seed=look.seed, **options
        )

    yield from run_change(desk, request, change, "The change", look, **more)


def example_of(desk: Desk, info: DatasetInfo, number: int) -> dict[str, Any] | None:
    """Row `number` as it trains; None where it is left out."""
    at = np.flatnonzero(numbers_of(info) == number)
    return desk.studio.datasets.rows(info.id, int(at[0]), 1)[0] if len(at) else None


def wire_row_edits(desk: Desk) -> None:
    """Connect the buttons of the row, its editor, and the lists of rows that are left out."""
    tab, long = desk.tab, long_event(desk)

    @shows_errors
    def on_edit(request: gr.Request, number: Any, **raw: Any) -> Iterator[list[Any]]:
        yield from opened(desk, request, raw, whole_number(number, "The row", 1, MAX_ROWS))

    @shows_errors
    def on_mend(request: gr.Request, event: gr.EventData, **raw: Any) -> Iterator[list[Any]]:
        yield from opened(desk, request, raw, _number(event_text(event, "check")))

    @shows_errors
    def on_save(request: gr.Request, event: gr.EventData, **raw: Any) -> Iterator[list[Any]]:
        number = _number(event_text(event, "row"))
        yield from saved(desk, request, raw, number, event_text(event, "texts"))

    @shows_errors
    def on_leave_out(request: gr.Request, number: Any, **raw: Any) -> Iterator[list[Any]]:
        row = whole_number(number, "The row", 1, MAX_ROWS)
        if example_of(desk, need(desk.studio, raw.get("value")), row) is None:
            raise DatasetError("This row is left out already", value=row)
        step = {"step": "exclude", "rows": [row], "why": f"row {row:,} by hand"}
        yield from record_step(desk, request, raw, step)

    picked = {**desk.picked(), "number": tab.row_number}
    tab.edit.click(on_edit, inputs_kwargs=picked, **long)
    tab.checks.mend(on_mend, inputs_kwargs=desk.picked(), js=TO_THE_ROW, **long)
    tab.editor.close(
        lambda: "", None, tab.editor, queue=False, api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
    tab.editor.save(on_save, inputs_kwargs=desk.picked(), **long)
    tab.leave_out.click(on_leave_out, inputs_kwargs=picked, **long)


def opened(desk: Desk, request: gr.Request, raw: Raw, number: int) -> Iterator[list[Any]]:
    """The editor of a row, whether it trains or not."""
    info = need(desk.studio, raw.get("value"))
    example = example_of(desk, info, number)
    if example is not None:
        require_editable(example)
        yield desk.updates(editor=editor_html(example))
    elif is_excluded(desk.studio.datasets, info, number):
        row = excluded_row(desk.studio.datasets, info, number).to_dict()
        require_editable(row)
        yield desk.updates(editor=editor_html(row, left_out=True))
    else:
        yield from _with_source_row(
            desk, request, info, number,
            lambda found: desk.updates(editor=mending_html(found, info), edit_bar=IDLE),
        )  # fmt: skip


def saved(desk: Desk, request: gr.Request, raw: Raw, number: int, sent: str) -> Iterator[list[Any]]:
    """What the editor sent becomes a step: an edit, or a row that is put back."""
    info, datasets = need(desk.studio, raw.get("value")), desk.studio.datasets
    example = example_of(desk, info, number)
    if example is not None:
        step = edit_step(example, sent)
        if step is None:
            gr.Info("The row is as it was: nothing was saved.", duration=8)
            yield desk.updates(editor="")
            return
        yield from record_step(desk, request, raw, step)
        return
    if is_excluded(datasets, info, number):
        changed = edit_step(excluded_row(datasets, info, number).to_dict(), sent) or {}
        step = {**changed, "step": "restore", "row": number}
        yield from record_step(desk, request, raw, step, row_number=number)
        return
    parts = sent_parts(sent)

    def restore(progress: Any, cancelled: Any) -> Any:
        found = read_unused(
            info, number, desk.studio.settings.tmp, progress=progress, cancelled=cancelled
        )
        step = {"step": "restore", "row": number, "source": corrected(info, found, parts),
                "check": found.check, "reason": found.reason}  # fmt: skip
        return desk.studio.edits.apply(info.id, step, progress=progress, cancelled=cancelled)

    yield from run_change(desk, request, restore, "The change", Look.of(raw), row_number=number)


def _with_source_row(
    desk: Desk, request: gr.Request, info: DatasetInfo, number: int,
    finish: Callable[[Any], list[Any]],
) -> Iterator[list[Any]]:  # fmt: skip
    """Read a row of the source in a thread, with progress."""
    if desk.studio.settings.read_only:  # reading it needs a folder of its own for a moment
        raise DatasetError(
            "This studio is read-only, so the row cannot be put back",
            remedy="Use the studio that holds the workspace",
        )
    read = partial(read_unused, info, number, desk.studio.settings.tmp)
    work: Work = lambda p, c: read(progress=p, cancelled=c)  # noqa: E731 - a job's two arguments
    job = desk.jobs.start(
        work, kind="row", page=request.session_hash, title=f"Reading row {number:,}"
    )
    yield from desk.work(job, "edit_bar", finish)


def _number(text: str) -> int:
    """The row that our script named; 0, which is none, for anything else."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0
