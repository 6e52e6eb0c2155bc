"""What the handlers of the Data tab share: the services, the components, and how a data set is
shown.

Owns `Desk` with the outputs that every handler has (`view`), and the updates that show a data set
or the sentence why a file cannot be used. The chosen data set is the value of one dropdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.checks import LEFT_OUT_CHECKS
from studio.core.errors import DatasetError, StudioError
from studio.core.formats import FORMATS
from studio.core.steps import ExcludeStep, SampleStep, describe, parse_steps
from studio.services.left_out_rows import list_excluded
from studio.services.read_options import DETECT
from studio.ui import data_view
from studio.ui.data_checks import Opened, checks_html
from studio.ui.data_edit import history_html
from studio.ui.data_jobs import IDLE, Job, Jobs, updates_of
from studio.ui.data_look import Look, TokenBook, inputs
from studio.ui.data_parts import MAX_ROLES, DataTab
from studio.ui.errors import warn
from studio.ui.form import Form
from studio.ui.text import escape, plural

if TYPE_CHECKING:
    from studio.services.datasets import DatasetInfo
    from studio.services.studio import Studio

SAMPLE_PREFIX = "sample:"
NO_COLUMN = "(none)"
# "Message" is the name of the chat's text box: these two get another word.
ROLE_TITLES = {"messages": "turns", "conversations": "turns"}
VIEW = (
    "dataset", "encoding", "refused", "mapping_box", "format", "roles", "text_unit", "split",
    "facts", "rows", "details",
    "checks", "opened", "changes_box", "history", "undo", "redo", "other_set", "editor",
    "row_number", "rendered", "bar", "edit_bar", "near_bar",
)  # fmt: skip
GENERATORS = 16  # pages whose long work is shown at a time


@dataclass(frozen=True)
class Desk:
    """Services, components and what is kept between events. `model`: the Train tab's choice."""

    studio: Studio
    tab: DataTab
    form: Form
    model: Any
    book: TokenBook = field(default_factory=TokenBook)
    jobs: Jobs = field(default_factory=Jobs)

    def view(self) -> list[Any]:
        """The outputs of `updates`."""
        return self.tab.named(VIEW)

    def updates(self, **changed: Any) -> list[Any]:
        """An update for each output of `view`; those that are not named stay as they are."""
        found: list[Any] = []
        for name in VIEW:
            if name == "roles":
                found += changed.get(name) or [gr.skip()] * MAX_ROLES
            else:
                found.append(changed.get(name, gr.skip()))
        return found

    def picked(self) -> dict[str, Any]:
        """Inputs of nearly every handler: the data set and how it is looked at."""
        return {"value": self.tab.dataset, "opened": self.tab.opened,
                **inputs(self.form, self.model)}  # fmt: skip

    def checks(self, info: DatasetInfo, look: Look, opened: Any = "") -> str:
        """The checks panel."""
        panel = checks_html(
            info,
            look,
            self.book,
            Opened.read(opened),
            can_change=not self.studio.settings.read_only,
            excluded=self.excluded,
        )
        if info.left_out and not any(e["id"] in LEFT_OUT_CHECKS for e in info.checks):
            return data_view.problems_html(info.problems, info.left_out) + panel
        return panel

    def excluded(self, info: DatasetInfo, start: int, count: int) -> list[dict[str, Any]]:
        """A page of the rows that changes have left out."""
        return list(list_excluded(self.studio.datasets, info, start, count))

    def work(
        self, job: Job, bar: str, finish: Callable[[Any], list[Any]],
        failed: Callable[[StudioError], list[Any]] | None = None,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Updates while a job runs and when it is over. A job that was cancelled or replaced
        changes nothing."""

        def stopped(error: StudioError) -> list[Any]:
            if job.by_user:
                gr.Info(f"{job.title} was cancelled. Nothing has changed.", duration=8)
            elif failed is not None:
                return failed(error)
            else:
                warn(error)
            return self.updates(**{bar: IDLE})

        yield from updates_of(job, lambda told: self.updates(**{bar: told}), finish, stopped)


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


def need(studio: Studio, value: str | None) -> DatasetInfo:
    """The chosen data set. Raises DatasetError where none is."""
    info = open_dataset(studio, value)
    if info is None:
        raise DatasetError("No data set is chosen", remedy="Drop a file or pick a sample first")
    return info


def reasons_of(info: DatasetInfo) -> list[tuple[int, str]]:
    """Why rows are left out, in a few words each: first what the file lacks, then what was left
    out by hand."""
    found = [
        (entry["count"], data_view.short_reason(entry["id"], entry["count"]))
        for entry in info.checks
        if entry["id"] in LEFT_OUT_CHECKS
    ]
    told = set()
    for step in parse_steps(info.steps):
        if not isinstance(step, ExcludeStep | SampleStep):
            continue
        text = describe(step)
        number = info.problem_reasons.get(text, 0)
        if text in told or not number:
            continue
        told.add(text)
        check = step.check if isinstance(step, ExcludeStep) else None
        by_hand = "not in the sample" if isinstance(step, SampleStep) else "by hand"
        found.append((number, data_view.short_reason(check, number) if check else by_hand))
    return found


def facts_of(info: DatasetInfo, look: Look) -> str:
    """The counts of a data set with this share held out, and what was understood."""
    why = "; ".join(info.reasons)
    title = FORMATS[info.format].title if info.format in FORMATS else info.format
    note = f"<b>{escape(title)}</b>" + (f": {escape(why)}" if why else "")
    note += "".join(f"<br>{escape(remark)}" for remark in info.notes)
    return data_view.facts_html(
        rows=info.rows, used=info.used, left_out=info.left_out,
        held_out=info.num_held_out(look.val_frac), note=note, name=info.name,
        reasons=reasons_of(info),
    )  # fmt: skip


def role_updates(info: DatasetInfo, format_name: str, mapping: Mapping[str, str]) -> list[Any]:
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


def shown(desk: Desk, info: DatasetInfo, look: Look, **more: Any) -> list[Any]:
    """Updates of `Desk.view` for a data set, and of `more` of its parts."""
    studio, choices = desk.studio, dataset_choices(desk.studio)
    history = studio.edits.history(info.id)
    can, options = not studio.settings.read_only, info.source.get("options") or {}
    return desk.updates(
        dataset=gr.update(choices=choices, value=info.id),
        mapping_box=gr.update(visible=True),
        format=gr.update(value=info.format),
        roles=role_updates(info, info.format, info.mapping),
        encoding=options.get("encoding", DETECT),
        refused="",
        text_unit=options.get("text_unit", DETECT),
        split=options.get("split", ""),
        facts=facts_of(info, look),
        rows=data_view.rows_html(studio.datasets.rows(info.id, 0, data_view.PREVIEW_ROWS)),
        details=gr.update(visible=True),
        checks=desk.checks(info, look),
        opened="",
        changes_box=gr.update(visible=True),
        history=history_html(history),
        undo=gr.update(interactive=can and bool(history.done)),
        redo=gr.update(interactive=can and bool(history.undone)),
        other_set=gr.update(choices=[c for c in choices if c[1] != info.id]),
        editor="", bar=IDLE, edit_bar=IDLE, near_bar=IDLE, **more,
    )  # fmt: skip


def failed(desk: Desk, error: StudioError, **more: Any) -> list[Any]:
    """Updates of `Desk.view` for a file that cannot be used: the sentence stands there."""
    return desk.updates(
        **more, facts=data_view.failure_html(str(error)), rows="", rendered="", editor="",
        details=gr.update(visible=False), changes_box=gr.update(visible=False),
        bar=IDLE, edit_bar=IDLE,
    )  # fmt: skip
