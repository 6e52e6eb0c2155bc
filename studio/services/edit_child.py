"""Writes a derived data set: the base's rows with the steps applied, in a process with limits.

    python -m studio.services.edit_child REQUEST.json

Owns the order in which rows are fetched, so that a shuffled million is written in bounded memory:
the base is mapped, and of each row only its place is kept. Leaves data.jsonl, the files of
services.findings, result.json and progress.json in the request's folder.

REQUEST.json: {data, places (or null), steps (a file), held_out (null, or of another set {data, its
data.jsonl; after, the number behind which its rows are numbered, or null}), name, folder, limits}.
"""

from __future__ import annotations

import json
import mmap
import sys
from array import array
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from studio.core.errors import DatasetError
from studio.core.examples import Example
from studio.core.steps import (
    ExcludeStep,
    RestoreStep,
    SampleStep,
    Step,
    chosen_rows,
    describe,
    edited,
    held_out_rows,
    kept_others,
    own_steps,
    parse_steps,
    restored_rows,
    steps_of_others,
)
from studio.services.example_file import ExampleFile
from studio.services.job_child import Words, run_child
from studio.services.progress_file import ProgressFile

WORDS = Words("changing it", "Take a sample of the rows first", "the changed rows cannot be stored")


class BaseRows:
    """The rows of the base by number, read where they lie."""

    def __init__(self, data: Path, places: str | None) -> None:
        with data.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._begins = array("Q", [0])
        while self._map.readline():
            self._begins.append(self._map.tell())
        if places is None:
            found = [json.loads(self.line(at))["i"] for at in range(len(self._begins) - 1)]
        else:
            found = np.load(places, allow_pickle=False)[:, 0].tolist()
        self.numbers: list[int] = found
        self._position = {number: position for position, number in enumerate(found)}

    def line(self, position: int) -> bytes:
        return self._map[self._begins[position] : self._begins[position + 1]]

    def row(self, number: int) -> bytes:
        """The stored line of the row of this number."""
        return self.line(self._position[number])


def removed_by(
    numbers: Sequence[int], steps: Sequence[Step], others: Set[int] = frozenset()
) -> list[dict[str, Any]]:
    """What each step that leaves rows out has left out, without those that were put back:
    {"text", "count"}. `others`: the rows of the data set that is held out, by number."""
    left, found = list(numbers), []
    on_others = steps_of_others(steps)
    for step in steps:
        after = chosen_rows(left, own_steps([step], others))
        if isinstance(step, ExcludeStep | SampleStep):
            gone = set(left).difference(after)
            if isinstance(step, ExcludeStep) and any(step is one for one in on_others):
                gone |= others.intersection(step.rows)
            found.append((describe(step), gone))
        elif isinstance(step, RestoreStep):
            for _, gone in found:
                gone.discard(step.row)
        left = after
    return [{"text": text, "count": len(gone)} for text, gone in found if gone]


def write_derived(request: dict[str, Any]) -> dict[str, Any]:
    """Write the derived rows; the facts that differ from the base's."""
    folder = Path(request["folder"])
    steps = parse_steps(json.loads(Path(request["steps"]).read_text(encoding="utf-8")))
    rows, restored = BaseRows(Path(request["data"]), request["places"]), restored_rows(steps)
    others = OtherRows.of(request["held_out"], [*rows.numbers, *restored])
    chosen = chosen_rows(rows.numbers, own_steps(steps, others.numbers))
    if not chosen:
        raise DatasetError("No row would be left", remedy="Leave out fewer rows")
    held_out = held_out_rows(steps)
    positions: list[int] = []
    told = ProgressFile(folder)
    with ExampleFile(folder) as target:
        for done, number in enumerate(chosen):
            told.tell(done / len(chosen), f"{done:,} rows written")
            line = None if number in restored else rows.row(number)
            before = restored[number] if line is None else Example.from_dict(json.loads(line))
            after = edited(before, steps)
            target.add(after, line if after is before else None)
            if held_out is not None and number in held_out:
                positions.append(done)
        if others.data is not None:
            positions = list(others.added_to(target, steps))
        facts = target.finish()
    if held_out is not None and not 0 < len(positions) < len(chosen):
        raise DatasetError(
            "The held-out rows leave nothing to " + ("train on" if positions else "measure on"),
            value=f"{len(positions):,} of {len(chosen):,} rows are held out",
            remedy="Hold out other rows",
        )
    return {
        **facts, "used": len(chosen), "removed": removed_by(rows.numbers, steps, others.numbers),
        "held_out": positions or None, "others": len(others.numbers),
    }  # fmt: skip


@dataclass(frozen=True)
class OtherRows:
    """The rows of another data set that are held out.

    Attributes:
        after: the number behind which they are numbered.
        numbers: theirs, in the derived set.
    """

    data: Path | None
    after: int
    numbers: frozenset[int]

    @classmethod
    def of(cls, asked: dict[str, Any] | None, own: Sequence[int]) -> OtherRows:
        """Those of the request; `own`: the numbers of the base's rows."""
        if asked is None:
            return cls(None, 0, frozenset())
        after = max(own) if asked["after"] is None else int(asked["after"])
        data = Path(asked["data"])
        with data.open("rb") as file:
            numbers = frozenset(after + json.loads(line)["i"] for line in file)
        return cls(data, after, numbers)

    def added_to(self, target: ExampleFile, steps: Sequence[Step]) -> Iterator[int]:
        """Append those that no change has left out; yields their positions.

        They get the system prompt and the cleaning that the others got.
        """
        kept, changes = set(kept_others(self.numbers, steps)), steps_of_others(steps)
        if not kept:
            raise DatasetError(
                "No row of the held-out data set would be left",
                remedy="Leave out fewer rows, or undo the change that holds them out",
            )
        with Path(self.data or "").open("rb") as file:
            for line in file:
                example = Example.from_dict(json.loads(line))
                example = replace(example, i=self.after + example.i, line=None)
                if example.i in kept:
                    yield target.used
                    target.add(edited(example, changes))


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, write_derived, WORDS))
