"""Handlers of the Data tab that bring a data set in: a file, a sample, the hub, another mapping.

Each is a generator: the work runs in a thread with a limited child, the page shows its progress
and can cancel it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import DatasetError, StudioError
from studio.core.formats import FORMATS
from studio.services.hub_datasets import HubDatasets, HubLook
from studio.services.known_mappings import known_mapping
from studio.ui.data_desk import (
    GENERATORS,
    NO_COLUMN,
    SAMPLE_PREFIX,
    Desk,
    facts_of,
    failed,
    need,
    open_dataset,
    role_updates,
    shown,
)
from studio.ui.data_edit import whole_number
from studio.ui.data_jobs import IDLE, CancelledFn, ProgressFn, Work, updates_of
from studio.ui.data_look import Look
from studio.ui.data_parts import MAX_HUB_ROWS, MAX_ROLES
from studio.ui.data_view import PREVIEW_ROWS, failure_html, hub_html, rows_html
from studio.ui.errors import event_text, shows_errors
from studio.ui.text import clip, plural

if TYPE_CHECKING:
    from studio.services.datasets import DatasetInfo
    from studio.services.studio import Studio

AGAIN = "Reading it again"
# On a narrow page what became of the file stands below the fold.
TO_THE_VIEW = """() => {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const view = document.getElementById('data-view');
  if (view && view.getBoundingClientRect().top > innerHeight - 80)
    view.scrollIntoView({behavior: calm ? 'auto' : 'smooth'}); }"""
REFUSED = "upload"  # value of the tab's `refused` while the dropped file could not be read
FILE_TYPES = [
    ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".gz", ".zip",
]  # fmt: skip


def import_upload(
    studio: Studio, path: str, progress: ProgressFn | None = None,
    cancelled: CancelledFn | None = None, options: Mapping[str, Any] | None = None,
) -> DatasetInfo:  # fmt: skip
    """Import what the browser sent, read with these options. Raises StudioError, first of all for
    a kind that we cannot read.

    A mapping that was chosen by hand for a file with the same columns is used again.
    """
    name = Path(path).name
    if not name.lower().endswith(tuple(FILE_TYPES)):
        raise DatasetError(
            f"The studio cannot read files of the kind {Path(name).suffix or 'without an ending'}",
            value=clip(name, 80), allowed=", ".join(FILE_TYPES),
            remedy="Save it as CSV or JSON Lines, then drop that file",
        )  # fmt: skip
    info = studio.datasets.import_file(
        path, options=options, progress=progress, cancelled=cancelled
    )
    known = known_mapping(studio.datasets, info)
    if known is None:
        return info
    return studio.datasets.remap(
        info.id, known.format, known.mapping, progress=progress, cancelled=cancelled
    )


def read_again(
    studio: Studio, info: DatasetInfo, format: str, mapping: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Work:  # fmt: skip
    """The work of reading a data set's file in another way."""

    def work(progress: ProgressFn, cancelled: CancelledFn) -> DatasetInfo:
        return studio.datasets.remap(
            info.id, format, mapping, options=options, progress=progress, cancelled=cancelled
        )

    return work


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
    _wire_choice(desk, bring_in, long)
    _wire_hub(desk, bring_in, long)
    _wire_hub_look(desk)
    _wire_mapping(desk, bring_in, long)
    _wire_cancel(desk)


def _wire_files(desk: Desk, bring_in: Callable[..., Any], long: dict[str, Any]) -> None:
    """A file that was dropped, and the encoding it is read in."""
    tab, studio = desk.tab, desk.studio

    def bring_upload(
        request: gr.Request, path: str, options: dict[str, Any], raw: dict[str, Any]
    ) -> Iterator[list[Any]]:
        title = f"Import of {clip(Path(path).name, 60)}"
        yield from bring_in(
            request, partial(import_upload, studio, path, options=options), title, raw,
            lambda error: refused_upload(desk, error, raw),
        )  # fmt: skip

    @shows_errors
    def on_upload(request: gr.Request, path: str | None, **raw: Any) -> Iterator[list[Any]]:
        if path:
            yield from bring_upload(request, path, {}, raw)
        else:
            yield desk.updates()

    @shows_errors
    def on_encoding(
        request: gr.Request, path: str | None, encoding: Any, refused: Any, **raw: Any
    ) -> Iterator[list[Any]]:
        chosen = {"encoding": encoding}
        if path and refused == REFUSED:  # this file was not to be read as it is
            yield from bring_upload(request, path, chosen, raw)
            return
        info = open_dataset(studio, raw.get("value"))
        if info is None:
            yield desk.updates()
            return
        options = {**(info.source.get("options") or {}), **chosen}
        # Names of columns with other letters than ASCII are others in another encoding.
        same = "".join(info.columns).isascii()
        shape = (info.format, info.mapping) if same else ("auto", None)
        yield from bring_in(request, read_again(studio, info, *shape, options), AGAIN, raw)

    picked = desk.picked()
    ended = tab.upload.upload(on_upload, inputs_kwargs={"path": tab.upload, **picked}, **long)
    ended.then(None, js=TO_THE_VIEW, api_visibility="private", show_progress="hidden")
    reading = {"path": tab.upload, "encoding": tab.encoding, "refused": tab.refused}
    tab.encoding.input(on_encoding, inputs_kwargs={**reading, **picked}, **long)


def refused_upload(desk: Desk, error: StudioError, raw: Mapping[str, Any]) -> list[Any]:
    """Updates for a dropped file that cannot be used. The data set that is chosen stays in sight
    below the sentence: it is what would train."""
    studio, value = desk.studio, str(raw.get("value") or "")
    if not studio.datasets.has(value):
        return failed(desk, error, refused=REFUSED)
    info = studio.datasets.get(value)
    still = "<p class='hint still'>The data set from before is still chosen:</p>"
    return desk.updates(
        refused=REFUSED, facts=failure_html(str(error)) + still + facts_of(info, Look.of(raw)),
        rows=rows_html(studio.datasets.rows(info.id, 0, PREVIEW_ROWS)),
        details=gr.update(visible=True), changes_box=gr.update(visible=True),
        bar=IDLE, edit_bar=IDLE,
    )  # fmt: skip


def _wire_choice(desk: Desk, bring_in: Callable[..., Any], long: dict[str, Any]) -> None:
    """A data set or a sample that was picked."""
    tab, studio = desk.tab, desk.studio

    @shows_errors
    def on_pick(request: gr.Request, **raw: Any) -> Iterator[list[Any]]:
        value = raw.get("value")
        if not value:
            yield desk.updates()
            return
        if not value.startswith(SAMPLE_PREFIX):
            try:
                yield shown(desk, studio.datasets.get(value), Look.of(raw))
            except StudioError as error:
                yield failed(desk, error)
            return
        sample = value.removeprefix(SAMPLE_PREFIX)
        yield from bring_in(
            request, lambda p, c: studio.datasets.import_sample(sample, progress=p, cancelled=c),
            "Import of the sample", raw,
        )  # fmt: skip

    tab.dataset.input(on_pick, inputs_kwargs=desk.picked(), **long)


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


def _wire_hub_look(desk: Desk) -> None:
    """What a hub's data set offers: its subsets, the splits with their rows, the first rows."""
    tab, hub = desk.tab, HubDatasets(desk.studio.settings.workspace)
    outputs = [tab.bar, tab.hub_config, tab.hub_split, tab.hub_note]

    def ask(hub_id: str, config: str | None, split: str, cancelled: CancelledFn) -> tuple[Any, Any]:
        look = hub.look(hub_id, config, cancelled=cancelled)
        names = [entry["name"] for entry in look.splits]
        chosen = split if split in names else next(iter(names), "train")
        return look, hub.preview(hub_id, look.config, chosen, rows=5, cancelled=cancelled)

    @shows_errors
    def on_look(request: gr.Request, hub_id: Any, config: Any, split: Any) -> Iterator[list[Any]]:
        asked, subset = str(hub_id or "").strip(), str(config or "").strip() or None
        wanted = str(split or "").strip()
        job = desk.jobs.start(
            lambda p, c: ask(asked, subset, wanted, c), kind="import", page=request.session_hash,
            title=f"Looking at {clip(asked, 60)}",
        )  # fmt: skip
        skip = gr.skip()

        def finish(found: tuple[HubLook, Any]) -> list[Any]:
            return [IDLE, *hub_choices(found[0], wanted), hub_html(*found)]

        def stopped(error: StudioError) -> list[Any]:
            return [IDLE, skip, skip, "" if job.by_user else failure_html(str(error))]

        yield from updates_of(job, lambda told: [told, skip, skip, skip], finish, stopped)

    asked = {"hub_id": tab.hub_id, "config": tab.hub_config, "split": tab.hub_split}
    gr.on(
        [tab.hub_look.click, tab.hub_config.input], on_look, inputs_kwargs=asked, outputs=outputs,
        api_visibility="private", show_progress="hidden", concurrency_limit=GENERATORS,
    )  # fmt: skip


def hub_choices(look: HubLook, wanted: str) -> list[Any]:
    """Updates of the two dropdowns: subsets, and splits with their rows where the hub says."""
    splits = [
        (f"{s['name']} ({plural(s['rows'], 'row')})" if s.get("rows") else s["name"], s["name"])
        for s in look.splits
    ]
    names = [name for _, name in splits]
    chosen = wanted if wanted in names else next(iter(names), None)
    return [
        gr.update(choices=look.configs, value=look.config),
        gr.update(choices=splits, value=chosen),
    ]


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

        yield from bring_in(request, read_again(studio, info, format_name), AGAIN, raw, refused)

    @shows_errors
    def on_mapping(request: gr.Request, format_name: str, **raw: Any) -> Iterator[list[Any]]:
        info = need(studio, raw.get("value"))
        chosen = mapping_of(format_name, [raw[f"role_{i}"] for i in range(MAX_ROLES)])
        yield from bring_in(request, read_again(studio, info, format_name, chosen), AGAIN, raw)

    @shows_errors
    def on_options(request: gr.Request, unit: Any, split: Any, **raw: Any) -> Iterator[list[Any]]:
        info = open_dataset(studio, raw.get("value"))
        if info is None:
            yield desk.updates()
            return
        chosen = {
            **(info.source.get("options") or {}),
            "text_unit": unit, "split": str(split or "").strip() or None,
        }  # fmt: skip
        work = read_again(studio, info, info.format, info.mapping, chosen)
        yield from bring_in(request, work, AGAIN, raw)

    picked = {"format_name": tab.format, **desk.picked()}
    reading = {"unit": tab.text_unit, "split": tab.split}
    gr.on(
        [tab.text_unit.input, tab.split.submit], on_options,
        inputs_kwargs={**reading, **desk.picked()}, **long,
    )  # fmt: skip
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
