"""Handlers of the Data tab that change a data set: fixes, all rows, undo and redo.

Every change is a step that `services.edits` records; it makes another data set, which is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from studio.core.checks import CHECKS, TOKEN_CHECKS
from studio.core.errors import DatasetError
from studio.ui.data_checks import excluded_rows
from studio.ui.data_desk import Desk, need
from studio.ui.data_edit import whole_number
from studio.ui.data_look import Look
from studio.ui.data_row_edits import long_event, record_step, run_change, wire_row_edits
from studio.ui.errors import event_text, shows_errors

MAX_ROWS, MAX_SEED = 1_000_000_000, 2**32 - 1


def wire_changes(desk: Desk) -> None:
    """Connect everything that changes rows."""
    _wire_fixes(desk)
    wire_row_edits(desk)
    _wire_all_rows(desk)
    _wire_history(desk)


def _wire_fixes(desk: Desk) -> None:
    @shows_errors
    def on_fix(request: gr.Request, event: gr.EventData, **raw: Any) -> Iterator[list[Any]]:
        info, look = need(desk.studio, raw.get("value")), Look.of(raw)
        yield from record_step(desk, request, raw, fix_step(desk, info, look, event))

    desk.tab.checks.fix(on_fix, inputs_kwargs=desk.picked(), **long_event(desk))


def fix_step(desk: Desk, info: Any, look: Look, event: gr.EventData) -> dict[str, Any]:
    """The step of a check's one-click fix. The browser names the check, nothing else."""
    check = event_text(event, "check")
    if check not in CHECKS or CHECKS[check].fix is None:
        raise DatasetError("This check has no one-click fix", value=check or "none")
    if check in TOKEN_CHECKS:
        rows = excluded_rows(info, look, desk.book, check)
        return {"step": "exclude", "check": check, "rows": rows}
    return {"step": CHECKS[check].fix_step, "check": check}


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

    picked, long = desk.picked(), long_event(desk)
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
        button.click(move(name), inputs_kwargs=desk.picked(), **long_event(desk))
