"""Handlers of the Data tab that change a data set: fixes, one row, all rows, undo and redo.

Every change is a step that `services.edits` records; it makes another data set, which is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from studio.core.checks import CHECKS, TOKEN_CHECKS
from studio.core.errors import DatasetError
from studio.services.row_places import nearest_position
from studio.ui.data_checks import excluded_rows
from studio.ui.data_desk import GENERATORS, Desk, need, shown
from studio.ui.data_edit import edit_step, editor_html, whole_number
from studio.ui.data_look import Look
from studio.ui.errors import event_text, shows_errors

MAX_ROWS, MAX_SEED = 1_000_000_000, 2**32 - 1
Change = Callable[..., Any]


def wire_changes(desk: Desk) -> None:
    """Connect everything that changes rows."""
    _wire_fixes(desk)
    _wire_row(desk)
    _wire_all_rows(desk)
    _wire_history(desk)


def _long(desk: Desk) -> dict[str, Any]:
    return {
        "outputs": desk.view(), "api_visibility": "private", "show_progress": "hidden",
        "concurrency_limit": GENERATORS,
    }  # fmt: skip


def run_change(
    desk: Desk, request: gr.Request, change: Change, title: str, look: Look
) -> Iterator[list[Any]]:
    """Make a change in a thread, then show the data set that it made.

    Args:
        change: `change(progress=, cancelled=)`, returns the new data set.
    """
    job = desk.jobs.start(
        lambda p, c: change(progress=p, cancelled=c), kind="change", page=request.session_hash,
        title=title,
    )  # fmt: skip
    yield from desk.work(job, "edit_bar", lambda info: shown(desk, info, look))


def record_step(
    desk: Desk, request: gr.Request, raw: Mapping[str, Any], step: Mapping[str, Any]
) -> Iterator[list[Any]]:
    """Record one more step on the chosen data set."""
    look, info = Look.of(raw), need(desk.studio, raw.get("value"))

    def change(**options: Any) -> Any:
        return desk.studio.edits.apply(
            info.id, step, val_frac=look.val_frac, seed=look.seed, **options
        )

    yield from run_change(desk, request, change, "The change", look)


def _wire_fixes(desk: Desk) -> None:
    @shows_errors
    def on_fix(request: gr.Request, event: gr.EventData, **raw: Any) -> Iterator[list[Any]]:
        info, look = need(desk.studio, raw.get("value")), Look.of(raw)
        yield from record_step(desk, request, raw, fix_step(desk, info, look, event))

    desk.tab.checks.fix(on_fix, inputs_kwargs=desk.picked(), **_long(desk))


def fix_step(desk: Desk, info: Any, look: Look, event: gr.EventData) -> dict[str, Any]:
    """The step of a check's one-click fix. The browser names the check, nothing else."""
    check = event_text(event, "check")
    if check not in CHECKS or CHECKS[check].fix is None:
        raise DatasetError("This check has no one-click fix", value=check or "none")
    if check in TOKEN_CHECKS:
        rows = excluded_rows(info, look, desk.book, check)
        return {"step": "exclude", "check": check, "rows": rows}
    return {"step": CHECKS[check].fix_step, "check": check}


def _wire_row(desk: Desk) -> None:
    """Edit and leave out the row that is shown."""
    tab, studio = desk.tab, desk.studio

    def example_of(value: Any, number: Any) -> dict[str, Any]:
        info = need(studio, value)
        position = nearest_position(info, whole_number(number, "The row", 1, MAX_ROWS))
        found = studio.datasets.rows(info.id, position, 1)
        if not found:
            raise DatasetError("There is no such row", value=str(number))
        return found[0]

    @shows_errors
    def on_edit(value: Any, number: Any) -> str:
        return editor_html(example_of(value, number))

    @shows_errors
    def on_save(request: gr.Request, event: gr.EventData, **raw: Any) -> Iterator[list[Any]]:
        row = event_text(event, "row")
        number = int(row) if row.isdecimal() and len(row) < 10 else 0
        step = edit_step(example_of(raw.get("value"), number), event_text(event, "texts"))
        if step is None:
            gr.Info("The row is as it was: nothing was saved.", duration=8)
            yield desk.updates(editor="")
            return
        yield from record_step(desk, request, raw, step)

    @shows_errors
    def on_leave_out(request: gr.Request, number: Any, **raw: Any) -> Iterator[list[Any]]:
        row = example_of(raw.get("value"), number)["i"]
        step = {"step": "exclude", "rows": [row], "why": f"row {row:,} by hand"}
        yield from record_step(desk, request, raw, step)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    picked = {"value": tab.dataset, "number": tab.row_number}
    tab.edit.click(on_edit, inputs_kwargs=picked, outputs=tab.editor, **private)
    tab.editor.close(lambda: "", None, tab.editor, queue=False, **private)
    tab.editor.save(on_save, inputs_kwargs=desk.picked(), **_long(desk))
    tab.leave_out.click(
        on_leave_out, inputs_kwargs={**desk.picked(), "number": tab.row_number}, **_long(desk)
    )


def _wire_all_rows(desk: Desk) -> None:
    tab = desk.tab

    @shows_errors
    def on_prompt(request: gr.Request, text: Any, replace: Any, **raw: Any) -> Iterator[list[Any]]:
        said = str(text or "").strip()
        if not said and replace is not True:
            raise DatasetError(
                "The system prompt is empty", remedy="Type one, or tick the box below to take the "
                "system prompts away",
            )  # fmt: skip
        step = {"step": "system_prompt", "text": said, "replace": replace is True}
        yield from record_step(desk, request, raw, step)

    @shows_errors
    def on_sample(request: gr.Request, rows: Any, draw: Any, **raw: Any) -> Iterator[list[Any]]:
        count = whole_number(rows, "The number of rows to keep", 1, MAX_ROWS)
        used = need(desk.studio, raw.get("value")).used
        if count >= used:
            raise DatasetError(
                "A sample is smaller than the data set", value=f"{count:,} rows",
                allowed=f"1 to {used - 1:,} rows",
            )  # fmt: skip
        seed = whole_number(draw, "The seed", 0, MAX_SEED)
        yield from record_step(desk, request, raw, {"step": "sample", "n": count, "seed": seed})

    @shows_errors
    def on_shuffle(request: gr.Request, draw: Any, **raw: Any) -> Iterator[list[Any]]:
        seed = whole_number(draw, "The seed", 0, MAX_SEED)
        yield from record_step(desk, request, raw, {"step": "shuffle", "seed": seed})

    @shows_errors
    def on_other(request: gr.Request, other: Any, **raw: Any) -> Iterator[list[Any]]:
        info = need(desk.studio, str(other or "") or None)
        step = {"step": "held_out_file", "dataset": info.id, "fingerprint": info.fingerprint}
        yield from record_step(desk, request, raw, step)

    picked, long = desk.picked(), _long(desk)
    prompt = {"text": tab.prompt_text, "replace": tab.prompt_replace}
    sample = {"rows": tab.sample_rows, "draw": tab.sample_seed}
    tab.prompt_apply.click(on_prompt, inputs_kwargs={**picked, **prompt}, **long)
    tab.sample_apply.click(on_sample, inputs_kwargs={**picked, **sample}, **long)
    tab.shuffle_apply.click(on_shuffle, inputs_kwargs={**picked, "draw": tab.shuffle_seed}, **long)
    tab.other_apply.click(on_other, inputs_kwargs={**picked, "other": tab.other_set}, **long)


def _wire_history(desk: Desk) -> None:
    def move(name: str) -> Callable[..., Iterator[list[Any]]]:
        @shows_errors
        def on_move(request: gr.Request, **raw: Any) -> Iterator[list[Any]]:
            info = need(desk.studio, raw.get("value"))

            def change(**options: Any) -> Any:
                return getattr(desk.studio.edits, name)(info.id, **options)

            yield from run_change(desk, request, change, name.capitalize(), Look.of(raw))

        return on_move

    for name in ("undo", "redo"):
        button = getattr(desk.tab, name)
        button.click(move(name), inputs_kwargs=desk.picked(), **_long(desk))
