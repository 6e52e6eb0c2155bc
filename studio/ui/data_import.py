"""Handlers of the Data tab that bring a data set in: a file, a sample, the hub, another mapping.

Each is a generator: the work runs in a thread with a limited child, the page shows its progress
and can cancel it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import DatasetError, StudioError
from studio.core.formats import FORMATS
from studio.ui.data_desk import (
    GENERATORS,
    NO_COLUMN,
    SAMPLE_PREFIX,
    Desk,
    failed,
    need,
    role_updates,
    shown,
)
from studio.ui.data_edit import whole_number
from studio.ui.data_jobs import CancelledFn, ProgressFn, Work
from studio.ui.data_look import Look
from studio.ui.data_parts import MAX_HUB_ROWS, MAX_ROLES
from studio.ui.errors import event_text, shows_errors
from studio.ui.text import clip

if TYPE_CHECKING:
    from studio.services.datasets import DatasetInfo
    from studio.services.studio import Studio

FILE_TYPES = [
    ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".gz", ".zip",
]  # fmt: skip


def import_upload(
    studio: Studio, path: str, progress: ProgressFn | None = None,
    cancelled: CancelledFn | None = None,
) -> DatasetInfo:  # fmt: skip
    """Import what the browser sent. Raises StudioError, first of all for a kind that we cannot
    read."""
    name = Path(path).name
    if not name.lower().endswith(tuple(FILE_TYPES)):
        raise DatasetError(
            f"The studio cannot read files of the kind {Path(name).suffix or 'without an ending'}",
            value=clip(name, 80), allowed=", ".join(FILE_TYPES),
            remedy="Save it as CSV or JSON Lines, then drop that file",
        )  # fmt: skip
    return studio.datasets.import_file(path, progress=progress, cancelled=cancelled)


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


def wire_import(desk: Desk) -> None:
    """Connect file, data set, hub, format and columns."""
    long: dict[str, Any] = {
        "outputs": desk.view(),
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_limit": GENERATORS,
    }

    def bring_in(
        request: gr.Request, work: Work, title: str, raw: dict[str, Any],
        refused: Callable[[StudioError], list[Any]] | None = None,
    ) -> Iterator[list[Any]]:  # fmt: skip
        look = Look.of(raw)
        job = desk.jobs.start(work, kind="import", page=request.session_hash, title=title)
        yield from desk.work(
            job, "bar", lambda info: shown(desk, info, look),
            refused or (lambda error: failed(desk, error)),
        )  # fmt: skip

    _wire_files(desk, bring_in, long)
    _wire_hub(desk, bring_in, long)
    _wire_mapping(desk, bring_in, long)
    _wire_cancel(desk)


def _wire_files(desk: Desk, bring_in: Callable[..., Any], long: dict[str, Any]) -> None:
    """A file that was dropped, a data set or sample that was picked."""
    tab, studio = desk.tab, desk.studio

    @shows_errors
    def on_upload(request: gr.Request, path: str | None, **raw: Any) -> Iterator[list[Any]]:
        if path:
            title = f"Import of {clip(Path(path).name, 60)}"
            work = partial(import_upload, studio, path)
            yield from bring_in(request, work, title, raw)

    @shows_errors
    def on_pick(request: gr.Request, **raw: Any) -> Iterator[list[Any]]:
        value = raw.get("value")
        if not value:
            return
        if not value.startswith(SAMPLE_PREFIX):
            try:
                yield shown(desk, studio.datasets.get(value), Look.of(raw))
            except StudioError as error:
                yield failed(desk, error)
            return
        sample = value.removeprefix(SAMPLE_PREFIX)
        yield from bring_in(
            request, lambda p, c: studio.datasets.import_sample(sample, progress=p),
            "Import of the sample", raw,
        )  # fmt: skip

    picked = desk.picked()
    tab.upload.upload(on_upload, inputs_kwargs={"path": tab.upload, **picked}, **long)
    tab.dataset.input(on_pick, inputs_kwargs=picked, **long)


def _wire_hub(desk: Desk, bring_in: Callable[..., Any], long: dict[str, Any]) -> None:
    """Rows of a Hugging Face data set."""
    tab, studio = desk.tab, desk.studio

    @shows_errors
    def on_hub(
        request: gr.Request, hub_id: Any, config: Any, split: Any, rows: Any, **raw: Any
    ) -> Iterator[list[Any]]:
        count = whole_number(rows, "The number of rows", 1, MAX_HUB_ROWS)
        asked = str(hub_id or "").strip()
        yield from bring_in(
            request,
            lambda p, c: studio.datasets.import_hub(
                asked, config=str(config or "").strip() or None,
                split=str(split or "").strip() or "train", max_rows=count,
                progress=p, cancelled=c,
            ),
            f"Fetching {clip(asked, 60)}", raw,
        )  # fmt: skip

    hub = {"hub_id": tab.hub_id, "config": tab.hub_config, "split": tab.hub_split,
           "rows": tab.hub_rows}  # fmt: skip
    gr.on(
        [tab.hub_import.click, tab.hub_id.submit], on_hub,
        inputs_kwargs={**hub, **desk.picked()}, **long,
    )  # fmt: skip


def _wire_mapping(desk: Desk, bring_in: Callable[..., Any], long: dict[str, Any]) -> None:
    """Another format or other columns: the file is read again."""
    tab, studio = desk.tab, desk.studio

    @shows_errors
    def on_format(request: gr.Request, format_name: str, **raw: Any) -> Iterator[list[Any]]:
        info = need(studio, raw.get("value"))

        def refused(error: StudioError) -> list[Any]:
            updates = failed(desk, error)
            first = desk.view().index(tab.roles[0])
            updates[first : first + MAX_ROLES] = role_updates(info, format_name, {})
            return updates

        yield from bring_in(
            request, lambda p, c: studio.datasets.remap(info.id, format_name, progress=p),
            "Reading it again", raw, refused,
        )  # fmt: skip

    @shows_errors
    def on_mapping(request: gr.Request, format_name: str, **raw: Any) -> Iterator[list[Any]]:
        info = need(studio, raw.get("value"))
        chosen = mapping_of(format_name, [raw[f"role_{i}"] for i in range(MAX_ROLES)])
        yield from bring_in(
            request, lambda p, c: studio.datasets.remap(info.id, format_name, chosen, progress=p),
            "Reading it again", raw,
        )  # fmt: skip

    picked = {"format_name": tab.format, **desk.picked()}
    roles = {f"role_{i}": role for i, role in enumerate(tab.roles)}
    tab.format.input(on_format, inputs_kwargs=picked, **long)
    gr.on([role.input for role in tab.roles], on_mapping, inputs_kwargs={**picked, **roles}, **long)


def _wire_cancel(desk: Desk) -> None:
    """The Cancel buttons of all bars."""

    @shows_errors
    def on_cancel(event: gr.EventData) -> None:
        desk.jobs.cancel(event_text(event, "job"))

    for bar in (desk.tab.bar, desk.tab.edit_bar, desk.tab.near_bar, desk.tab.token_bar):
        bar.cancel(on_cancel, api_visibility="private", show_progress="hidden", queue=False)
