"""Rows of a data set's source that do not train: which they are, why, and how they come back.

Two kinds: rows that a change has left out, which the imported set still holds, and rows that the
import could not use, of which the data set keeps number, reason and beginning, and which are read
again from its source. What is corrected of one stands in services.row_correction; the step that
puts it back is recorded by services.edits. Thread safe; reading the source blocks.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.core.checks import left_out_check
from studio.core.errors import DatasetError
from studio.core.examples import Example, RowProblem
from studio.core.formats import normalise
from studio.core.steps import (
    ExcludeStep,
    SampleStep,
    Step,
    describe,
    edited,
    parse_steps,
    restored_rows,
    steps_of_others,
)
from studio.hardware.platforms import make_folder
from studio.services.dataset_records import DatasetInfo
from studio.services.datasets import DatasetStore
from studio.services.findings import LEFT_OUT
from studio.services.import_process import CancelledFn, Job, Limits, ProgressFn, run_job
from studio.services.row_correction import LeftOutRow
from studio.services.row_places import numbers_of

EXCLUDED = "excluded"  # beside the checks of core.checks: what changes have left out
FEW_ROWS = 50


def excluded_numbers(store: DatasetStore, info: DatasetInfo) -> NDArray[np.int64]:
    """The rows, by `i` and in their order, that changes have left out."""
    if not info.base:
        return np.empty(0, np.int64)
    every = [numbers_of(store.get(info.base)), list(restored_rows(parse_steps(info.steps)))]
    if (others := _others(store, info)) is not None:
        every.append(others[1] + numbers_of(others[0]))
    return np.setdiff1d(np.concatenate(every).astype(np.int64), numbers_of(info))


def _others(store: DatasetStore, info: DatasetInfo) -> tuple[DatasetInfo, int] | None:
    """The data set whose rows this one holds out, and the number behind which they stand."""
    held_out = info.held_out or {}
    if not store.has(str(held_out.get("dataset"))):
        return None
    after = held_out.get("after")
    if after is None:
        own = numbers_of(store.get(str(info.base)))
        after = max(int(own.max()), *restored_rows(parse_steps(info.steps)), 0)
    return store.get(held_out["dataset"]), int(after)


def list_excluded(
    store: DatasetStore, info: DatasetInfo, start: int = 0, count: int | None = None
) -> Iterator[dict[str, Any]]:
    """Those rows with the change that has left each out: i, line, detail and what they hold."""
    numbers = excluded_numbers(store, info)
    numbers = numbers[start : None if count is None else start + count]
    if not len(numbers):
        return
    steps = parse_steps(info.steps)
    reasons, changes = _reasons(steps), _changes(store, info)
    for example in _excluded_examples(store, info, numbers, restored_rows(steps)):
        example = changes(example)
        said = example.text if example.messages is None else "\n".join(
            str(message.get("content") or "") for message in example.messages
        )  # fmt: skip
        detail = next((why for rows, why in reasons if rows is None or example.i in rows), "")
        yield {"i": example.i, "line": example.line, "preview": said, "detail": detail}


def _reasons(steps: Sequence[Step]) -> list[tuple[frozenset[int] | None, str]]:
    """Which rows a change has left out, the last one first, and its sentence; None: any row."""
    found: list[tuple[frozenset[int] | None, str]] = [
        (frozenset(step.rows), describe(step))
        for step in reversed(steps) if isinstance(step, ExcludeStep)
    ]  # fmt: skip
    return found + [(None, describe(step)) for step in steps if isinstance(step, SampleStep)]


def _excluded_examples(
    store: DatasetStore, info: DatasetInfo, numbers: NDArray[np.int64],
    restored: Mapping[int, Example],
) -> Iterator[Example]:  # fmt: skip
    """The rows of these numbers as their files hold them; many are read in one pass."""
    sources = _sources(store, info)
    if len(numbers) <= FEW_ROWS:
        for number in numbers.tolist():
            example = restored.get(number) or _row_of(store, sources, number)
            if example is not None:
                yield example
        return
    for source, after in sources:
        places = set(np.flatnonzero(np.isin(after + numbers_of(source), numbers)).tolist())
        with source.data_file.open("rb") as file:
            for place, line in enumerate(file):
                if place in places:
                    example = Example.from_dict(json.loads(line))
                    yield _numbered(example, after)
    yield from (restored[number] for number in numbers.tolist() if number in restored)


def _sources(store: DatasetStore, info: DatasetInfo) -> list[tuple[DatasetInfo, int]]:
    """The data sets that the rows are read from, and what is added to their numbers."""
    others = _others(store, info)
    return [(store.get(str(info.base)), 0), *([] if others is None else [others])]


def _row_of(
    store: DatasetStore, sources: Sequence[tuple[DatasetInfo, int]], number: int
) -> Example | None:
    for source, after in sources:
        at = np.flatnonzero(numbers_of(source) == number - after)
        if len(at) and (found := store.rows(source.id, int(at[0]), 1)):
            return _numbered(Example.from_dict(found[0]), after)
    return None


def _numbered(example: Example, after: int) -> Example:
    """As it stands in the derived set; rows of another data set have no line there."""
    return replace(example, i=after + example.i, line=None) if after else example


def _changes(store: DatasetStore, info: DatasetInfo) -> Callable[[Example], Example]:
    """What gives a row the texts that the changes give it."""
    steps, others = parse_steps(info.steps), _others(store, info)
    on_others = steps_of_others(steps)
    last = math.inf if others is None else others[1]
    return lambda example: edited(example, steps if example.i <= last else on_others)


def excluded_row(store: DatasetStore, info: DatasetInfo, number: int) -> Example:
    """A row that a change has left out, with the texts that the other changes give it.

    Raises:
        DatasetError: there is no such row among them.
    """
    example = restored_rows(parse_steps(info.steps)).get(number)
    if example is None and info.base:
        example = _row_of(store, _sources(store, info), number)
    if example is None:
        raise DatasetError(
            "No change has left this row out", value=number, remedy="Choose another row"
        )
    return _changes(store, info)(example)


def is_excluded(store: DatasetStore, info: DatasetInfo, number: int) -> bool:
    """Whether a change has left the row out."""
    return number in excluded_numbers(store, info)


def unused_record(info: DatasetInfo, number: int) -> dict[str, Any] | None:
    """What is known of a row that the import could not use: check, i, line, reason, remedy. None
    for one that stands behind the end of its check's list.

    Raises:
        DatasetError: there is no such row.
    """
    path = info.folder / LEFT_OUT
    if path.is_file():
        mark = f'"i": {number},'
        with path.open(encoding="utf-8") as file:
            for line in file:
                if mark in line and (record := json.loads(line))["i"] == number:
                    return record
    own = (info.held_out or {}).get("after") or info.rows
    if 0 < number <= own and number not in numbers_of(info):
        return None
    raise _no_such_row(info, number)


def _no_such_row(info: DatasetInfo, number: int) -> DatasetError:
    return DatasetError(
        "There is no such row among those that are left out", value=number,
        allowed=f"1 to {info.rows:,}", remedy="Choose a row from the lists of the checks",
    )  # fmt: skip


def read_unused(
    info: DatasetInfo, number: int, tmp: Path, *, progress: ProgressFn | None = None,
    cancelled: CancelledFn | None = None,
) -> LeftOutRow:  # fmt: skip
    """A row that the import could not use, read again from the source by a limited child.

    Raises:
        DatasetError: there is none, or it cannot be shown.
    """
    record = unused_record(info, number)
    source = info.folder / str(info.source.get("stored") or "")
    if not source.is_file():
        raise DatasetError(
            "The data set's copy of its file is gone", value=info.name,
            remedy="Import the file again",
        )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="row-", dir=make_folder(tmp)))
    try:
        request = {"source": str(source), "options": info.source.get("options") or {},
                   "i": number, "line": None if record is None else record["line"]}  # fmt: skip
        limits = Limits.for_file(source.stat().st_size)
        facts = run_job(
            Job("studio.services.source_row_child", folder, info.name, request, limits),
            progress=progress, cancelled=cancelled,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if record is None:
        record = _judged(info, number, facts)
    return LeftOutRow(
        number, record["line"], record["check"], record["reason"], facts["row"], facts["raw"],
        facts["guessed"],
    )  # fmt: skip


def _judged(info: DatasetInfo, number: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Why a row that no list names cannot be used. Raises DatasetError where it can."""
    if facts["reason"] is not None:
        return facts
    if facts["row"] is not None:
        try:
            normalise(facts["row"], info.format, info.mapping)
        except RowProblem as problem:
            return {**facts, "check": left_out_check(problem), "reason": problem.reason}
    raise _no_such_row(info, number)
