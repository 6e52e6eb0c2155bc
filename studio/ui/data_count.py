"""Handlers of the Data tab that count: near-duplicates, and the tokens of all rows.

Both run unasked where they take seconds, and by a button where they take longer. What they find
stands among the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.token_stats import TokenSummary
from studio.services.check_again import needs_checks
from studio.services.dataset_records import DatasetInfo
from studio.services.near_duplicates import (
    find_near_duplicates,
    found_near_duplicates,
    is_automatic,
)
from studio.ui.data_desk import GENERATORS, Desk, need, open_dataset
from studio.ui.data_jobs import IDLE, CancelledFn, ProgressFn, updates_of
from studio.ui.data_look import Look
from studio.ui.data_tokens import epoch_html, lengths_value, speed_of
from studio.ui.data_view import failure_html
from studio.ui.errors import shows_errors, warn
from studio.ui.text import duration, plural

AUTOMATIC_ROWS = 20_000
ROWS_PER_S = 3_000  # tokenized on two busy cores
MAX_TOKENS = 2**20
Search = Callable[[gr.Request, dict[str, Any], bool], Iterator[list[Any]]]  # the last: was it asked


def wire_count(desk: Desk) -> None:
    """Connect both searches."""
    _wire_near(desk)
    _wire_tokens(desk)
    _wire_line(desk)


def asked_or_not(search: Search) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two handlers of one search: for its button, and for what makes it worth doing unasked."""

    def handler(asked: bool) -> Callable[..., Iterator[list[Any]]]:
        @shows_errors
        def on_search(request: gr.Request, **raw: Any) -> Iterator[list[Any]]:
            yield from search(request, raw, asked)

        return on_search

    return handler(True), handler(False)


def long_count(desk: Desk, outputs: list[Any]) -> dict[str, Any]:
    """What the events of both searches have in common."""
    return {
        "inputs_kwargs": desk.picked(), "outputs": outputs, "api_visibility": "private",
        "show_progress": "hidden", "concurrency_limit": GENERATORS,
    }  # fmt: skip


def worth_searching(desk: Desk, info: DatasetInfo, asked: bool) -> bool:
    """Whether near-duplicates are to be looked for now."""
    made = not needs_checks(info) and found_near_duplicates(info.folder) is not None
    return not made and not desk.studio.settings.read_only and (asked or is_automatic(info))


def _wire_near(desk: Desk) -> None:
    tab, studio = desk.tab, desk.studio
    outputs = [tab.checks, tab.near_bar]

    def search(request: gr.Request, raw: dict[str, Any], asked: bool) -> Iterator[list[Any]]:
        info = need(studio, raw.get("value")) if asked else open_dataset(studio, raw.get("value"))
        if info is None or not worth_searching(desk, info, asked):
            yield [gr.skip()] * len(outputs)
            return

        def work(progress: ProgressFn, cancelled: CancelledFn) -> Any:
            checked = studio.datasets.check_again(info.id, progress=progress, cancelled=cancelled)
            find_near_duplicates(checked, progress=progress, cancelled=cancelled)
            return checked

        job = desk.jobs.start(
            work, kind="near", page=request.session_hash, title="Looking for near-duplicates"
        )

        def stopped(error: StudioError) -> list[Any]:
            if not job.by_user:
                warn(error)
            return [gr.skip(), IDLE]

        yield from updates_of(
            job, lambda told: [gr.skip(), told],
            lambda checked: [desk.checks(checked, Look.of(raw), raw.get("opened")), IDLE], stopped,
        )  # fmt: skip

    on_near, on_change = asked_or_not(search)
    long = long_count(desk, outputs)
    tab.checks.near(on_near, **long)
    tab.dataset.change(on_change, trigger_mode="multiple", **long)


def _wire_tokens(desk: Desk) -> None:
    tab, studio = desk.tab, desk.studio
    outputs = [tab.token_bar, tab.token_note, tab.count, tab.lengths, tab.epoch, tab.checks]

    def count(request: gr.Request, raw: dict[str, Any], asked: bool) -> Iterator[list[Any]]:
        info, look = open_dataset(studio, raw.get("value")), Look.of(raw)
        if info is None:
            yield [gr.skip()] * len(outputs)
            return
        known = desk.book.get(info, look) is not None
        if not (asked or known or info.used <= AUTOMATIC_ROWS):
            yield ask_first(desk, info, look, raw)
            return
        job = desk.jobs.start(
            lambda p, c: studio.inspector.token_stats(
                info.folder, look.model_id, look.options(), progress=p, cancelled=c
            ),
            kind="tokens", page=request.session_hash, title="Counting tokens",
        )  # fmt: skip

        def finish(summary: TokenSummary) -> list[Any]:
            desk.book.put(info, look, summary)
            return counted(desk, info, look, raw)

        def stopped(error: StudioError) -> list[Any]:
            said = (
                "<p class='hint'>Counting was cancelled.</p>" if job.by_user else
                failure_html(str(error))
            )  # fmt: skip
            return [IDLE, said, gr.update(visible=True), "", "", gr.skip()]

        skip = gr.skip()
        yield from updates_of(
            job, lambda told: [told, "", gr.update(visible=False), skip, skip, skip], finish,
            stopped,
        )  # fmt: skip

    on_count, on_change = asked_or_not(count)
    long = long_count(desk, outputs)
    controls = desk.form.controls
    gr.on(
        [
            tab.dataset.change, desk.model.change, tab.system_prompt.blur,
            controls["train.loss_on"].change, controls["train.max_length"].change,
        ],
        on_change, trigger_mode="multiple", **long,
    )  # fmt: skip
    tab.count.click(on_count, **long)


def ask_first(desk: Desk, info: Any, look: Look, raw: dict[str, Any]) -> list[Any]:
    """Updates for a data set that takes long: the button, and how long."""
    about = duration(10 + info.used / ROWS_PER_S)
    note = (
        f"<p class='hint'>{plural(info.used, 'row')}: counting their tokens takes about {about} "
        "and can be cancelled. A training then finds them ready.</p>"
    )
    checks = desk.checks(info, look, raw.get("opened"))
    return [IDLE, note, gr.update(visible=True), "", "", checks]


def counted(desk: Desk, info: Any, look: Look, raw: dict[str, Any]) -> list[Any]:
    """Updates once the tokens are counted."""
    summary = desk.book.get(info, look)
    if summary is None:  # 32 others came in between
        return [IDLE, "", gr.update(visible=True), "", "", gr.skip()]
    return [
        IDLE, "", gr.update(visible=False), lengths_value(summary, look, info.base or info.id),
        costs(desk, info, look, look.max_length), desk.checks(info, look, raw.get("opened")),
    ]  # fmt: skip


def costs(desk: Desk, info: Any, look: Look, max_length: int) -> str:
    """What an epoch costs at this cut; empty where the tokens were not counted."""
    summary = desk.book.get(info, look)
    if summary is None:
        return ""
    speed = speed_of(desk.studio.runs.list(), look.model_id)
    return epoch_html(summary, look, max_length, info.num_held_out(look.val_frac), speed)


def _wire_line(desk: Desk) -> None:
    """The cut-off line: what it costs where it stands, and taking it into the form."""
    tab, studio = desk.tab, desk.studio
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    @shows_errors
    def on_cost(event: gr.EventData, **raw: Any) -> Any:
        info = open_dataset(studio, raw.get("value"))
        length = _length(event)
        return gr.skip() if info is None or not length else costs(desk, info, Look.of(raw), length)

    @shows_errors
    def on_use(event: gr.EventData) -> Any:
        return _length(event) or gr.skip()

    @shows_errors
    def on_knob(**raw: Any) -> Any:
        info, look = open_dataset(studio, raw.get("value")), Look.of(raw)
        return gr.skip() if info is None else costs(desk, info, look, look.max_length)

    picked, controls = desk.picked(), desk.form.controls
    tab.lengths.cost(
        on_cost, inputs_kwargs=picked, outputs=tab.epoch, trigger_mode="always_last", **quick
    )
    tab.lengths.use(on_use, None, controls["train.max_length"], **quick)
    knobs = ("data.val_frac", "train.per_device_train_batch_size", "train.packing",
             "train.gradient_accumulation_steps", "train.group_by_length")  # fmt: skip
    gr.on(
        [controls[path].change for path in knobs], on_knob, inputs_kwargs=picked,
        outputs=tab.epoch, trigger_mode="always_last", **quick,
    )  # fmt: skip


def _length(event: gr.EventData) -> int | None:
    """The max length that our script sent; None where it is none."""
    data = event._data
    value = data.get("max_length") if isinstance(data, dict) else None
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if ok and 1 <= value <= MAX_TOKENS else None
