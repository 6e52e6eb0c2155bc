"""Changes to data sets: derived sets, undo, redo, the list of steps.

A data set is immutable. A change makes a derived one: the base (the imported set) with a list of
steps (core.steps), written out by a limited child so that training and the page read it like any
other. Undo goes to the same base with one step fewer. The list of data sets shows the current one
of a family; runs keep what they used. The source file is never touched.

Owns `base`, `steps` and `held_out` in dataset.json of derived sets and edits.json in the folder of
their base: {"current": id, "undone": [steps, the next to redo last]}. Thread safe; methods block
while rows are written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import RowProblem, clean_text
from studio.core.runs import read_json
from studio.core.steps import (
    EditStep,
    HeldOutFileStep,
    RestoreStep,
    Step,
    SystemPromptStep,
    check_edit,
    describe,
    held_out_file,
    parse_step,
    parse_steps,
    restored_rows,
    to_records,
)
from studio.hardware.platforms import make_folder, store_error, write_json
from studio.services.check_lists import rows_of_check
from studio.services.dataset_records import DatasetInfo, dataset_id
from studio.services.datasets import DatasetStore, put_in_place
from studio.services.findings import LEFT_OUT, PLACES
from studio.services.import_process import CancelledFn, Job, Limits, ProgressFn, run_job
from studio.services.left_out_rows import excluded_row, unused_record
from studio.services.row_places import numbers_of

RECORD, FAMILY = "dataset.json", "edits.json"
_FACTS = ("fingerprint", "data_bytes", "offsets", "system_prompt_share")
GARBAGE_AFTER_S = 3600.0  # a page or a run that is being made may still read it


@dataclass(frozen=True)
class History:
    """The changes of a data set.

    Attributes:
        base: the imported set. current: the set that is shown.
        done: steps of the current set, as {"step": record, "text": sentence}, oldest first.
        undone: steps that redo brings back, the next one first.
    """

    base: str
    current: str
    done: list[dict[str, Any]]
    undone: list[dict[str, Any]]


class Edits:
    """Changes to the data sets of one workspace.

    Args:
        store: reads data sets.
        workspace: its root folder.
    """

    def __init__(self, store: DatasetStore, workspace: Path) -> None:
        self._store = store
        self._datasets = workspace / "datasets"
        self._tmp = workspace / "tmp"
        self._runs = workspace / "runs"
        self._lock = threading.Lock()

    def history(self, id: str) -> History:
        """The steps of a data set and those that can be done again."""
        base, steps = self._family(self._store.get(id))
        kept = read_json(self._datasets / base / FAMILY) or {}
        undone = list(kept.get("undone") or []) if kept.get("current", base) == id else []
        return History(base, id, _told(steps), _told(reversed(undone)))

    def apply(
        self,
        id: str,
        step: Mapping[str, Any],
        *,
        val_frac: float | None = None,
        seed: int = 42,
        progress: ProgressFn | None = None,
        cancelled: CancelledFn | None = None,
    ) -> DatasetInfo:
        """Make one more change to a data set and return the derived one.

        Args:
            step: a step's record; an exclude step may name a check instead of rows.
            val_frac, seed: of the split, for the check held_out_overlap alone.

        Raises:
            DatasetError: the change cannot be made; nothing has changed.
        """  # fmt: skip
        with self._lock:
            info = self._store.get(id)
            base, steps = self._family(info)
            chosen = self._settled(info, dict(step), val_frac, seed)
            after = [*steps, *to_records([chosen])]
            return self._move(info, base, after, [], progress, cancelled)

    def undo(
        self, id: str, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
    ) -> DatasetInfo:
        """Take the last change back."""
        with self._lock:
            info = self._store.get(id)
            base, steps = self._family(info)
            if not steps:
                raise DatasetError("There is no change to undo", value=info.name)
            kept = read_json(self._datasets / base / FAMILY) or {}
            undone = list(kept.get("undone") or []) if kept.get("current") == id else []
            return self._move(info, base, steps[:-1], [*undone, steps[-1]], progress, cancelled)

    def redo(
        self, id: str, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
    ) -> DatasetInfo:
        """Make the change again that was undone last."""
        with self._lock:
            info = self._store.get(id)
            base, steps = self._family(info)
            kept = read_json(self._datasets / base / FAMILY) or {}
            undone = list(kept.get("undone") or [])
            if not undone or kept.get("current") != id:
                raise DatasetError("There is no change to redo", value=info.name)
            return self._move(info, base, [*steps, undone[-1]], undone[:-1], progress, cancelled)

    def collect_garbage(self, base: str, *, older_than_s: float = GARBAGE_AFTER_S) -> list[str]:
        """Delete derived sets of a base that are neither shown, nor one undo away, nor used by a
        run; returns their ids."""
        family = read_json(self._datasets / base / FAMILY) or {}
        steps = self._steps_of(str(family.get("current") or base))
        kept = {base, family.get("current"), self._id(base, steps[:-1])}
        kept |= self._used_by_runs() | self._held_out_by_others()
        gone = []
        for file in self._datasets.glob(f"*/{RECORD}"):
            record = read_json(file) or {}
            if record.get("base") != base or file.parent.name in kept:
                continue
            if time.time() - file.stat().st_mtime >= older_than_s:
                shutil.rmtree(file.parent, ignore_errors=True)
                gone.append(file.parent.name)
        return gone

    # ---------------------------------------------------------------- inside

    def _family(self, info: DatasetInfo) -> tuple[str, list[dict[str, Any]]]:
        base = info.base or info.id
        self._store.get(base)
        return base, list(info.steps)

    def _steps_of(self, id: str) -> list[dict[str, Any]]:
        return list((read_json(self._datasets / id / RECORD) or {}).get("steps") or [])

    def _used_by_runs(self) -> set[str]:
        records = (read_json(file) or {} for file in self._runs.glob("*/run.json"))
        return {str((record.get("dataset") or {}).get("id")) for record in records}

    def _held_out_by_others(self) -> set[str]:
        """The sets whose rows other sets hold out, or did and may again."""
        found = set()
        for file in (*self._datasets.glob(f"*/{RECORD}"), *self._datasets.glob(f"*/{FAMILY}")):
            record = read_json(file) or {}
            for step in (*(record.get("steps") or ()), *(record.get("undone") or ())):
                found.add(str(step.get("dataset")))
        return found

    def _settled(
        self, info: DatasetInfo, record: dict[str, Any], val_frac: float | None, seed: int
    ) -> Step:
        """The step with everything in it that it needs to be done again alone."""
        if record.get("step") == "exclude" and not record.get("rows") and record.get("check"):
            rows = rows_of_check(info, str(record["check"]), val_frac=val_frac, seed=seed)
            if not rows:
                raise DatasetError("This check names no row", value=str(record["check"]))
            record["rows"] = rows
        if record.get("step") == "held_out_file":
            other = self._store.get(str(record.get("dataset") or ""))
            own = self._store.get(info.base or info.id).rows
            record.update(fingerprint=other.fingerprint, name=other.name, after=own)
        step = parse_step(record)
        if isinstance(step, RestoreStep):
            return check_edit(self._restorable(info, step))
        if isinstance(step, HeldOutFileStep) and step.fingerprint == info.fingerprint:
            raise DatasetError(
                "A data set cannot be held out from itself", value=step.name,
                remedy="Choose another data set",
            )  # fmt: skip
        if isinstance(step, SystemPromptStep) and step.text.strip():
            try:
                clean_text(step.text, "the system prompt")
            except RowProblem as problem:
                raise DatasetError(problem.reason, remedy=problem.remedy) from problem
        return check_edit(step) if isinstance(step, EditStep) else step

    def _restorable(self, info: DatasetInfo, step: RestoreStep) -> RestoreStep:
        """The step with the reason of the import in it, where that had left the row out."""
        if step.row in numbers_of(info):
            raise DatasetError(
                "This row is not left out", value=step.row, remedy="Edit it like any other row"
            )
        if step.source is None:
            excluded_row(self._store, info, step.row)  # says no where there is none
            return step
        held_out = info.held_out or {}
        if held_out.get("dataset") and held_out.get("after") is None:
            raise DatasetError(
                "This row may have the number of a held-out row of another data set",
                value=step.row, remedy=f"Hold out the rows of {held_out.get('name')} once more, "
                "then put this row back",
            )  # fmt: skip
        known = unused_record(info, step.row)
        if known is None:  # no list names it: what was found when it was read again
            return step
        return step.model_copy(update={"check": known["check"], "reason": known["reason"]})

    def _move(
        self, info: DatasetInfo, base: str, steps: list[dict[str, Any]],
        undone: list[dict[str, Any]], progress: ProgressFn | None, cancelled: CancelledFn | None,
    ) -> DatasetInfo:  # fmt: skip
        """Make the set of these steps the current one of its family."""
        id = self._id(base, steps)
        if not self._store.has(id):
            self._materialise(self._store.get(base), id, steps, progress, cancelled)
        if id != info.id:
            _supersede(info.folder, id)
        _supersede(self._datasets / id, None)
        write_json(self._datasets / base / FAMILY, {"current": id, "undone": undone})
        self.collect_garbage(base)
        return self._store.get(id)

    def _id(self, base: str, steps: Sequence[Mapping[str, Any]]) -> str:
        if not steps:
            return base
        chosen = json.dumps([base, list(steps)], sort_keys=True)
        digest = hashlib.sha256(chosen.encode()).hexdigest()
        return dataset_id(digest, base.partition("-")[2], "auto", None)

    def _materialise(
        self, base: DatasetInfo, id: str, steps: list[dict[str, Any]],
        progress: ProgressFn | None, cancelled: CancelledFn | None,
    ) -> None:  # fmt: skip
        """Write the derived set beside the others and rename it into place."""
        make_folder(self._tmp)
        stage = Path(tempfile.mkdtemp(prefix="edit-", dir=self._tmp))
        try:
            write_json(stage / "steps.json", steps)
            facts = run_job(self._job(base, stage, steps), progress=progress, cancelled=cancelled)
            _carry_over(base, stage, set(restored_rows(parse_steps(steps))))
            record = self._record(base, id, steps, facts)
            (stage / "steps.json").unlink()
            put_in_place(stage, self._datasets / id, record)
        except OSError as error:
            raise store_error(self._datasets / id, error) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _job(self, base: DatasetInfo, stage: Path, steps: list[dict[str, Any]]) -> Job:
        other, held_out = held_out_file(parse_steps(steps)), None
        if other is not None:
            data = self._store.get(other.dataset).data_file
            held_out = {"data": str(data), "after": other.after}
        return _job(base, stage, held_out)

    def _record(
        self, base: DatasetInfo, id: str, steps: list[dict[str, Any]], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """dataset.json: the base's, with what the steps have changed."""
        before = read_json(base.folder / RECORD) or {}
        restored = [
            step for step in parse_steps(steps)
            if isinstance(step, RestoreStep) and step.source is not None
        ]  # fmt: skip
        reasons = Counter(before.get("problem_reasons") or {})
        reasons.subtract(step.reason for step in restored)
        back = {step.row for step in restored}
        by_hand = []
        for entry in facts["removed"]:
            reasons[entry["text"]] += entry["count"]
            by_hand.append({
                "line": None, "row": 0, "reason": entry["text"], "count": entry["count"],
                "remedy": "Undo the change to have them back",
            })  # fmt: skip
        used, held_out = facts["used"], _held_out(steps, facts["held_out"])
        others = facts["others"]  # rows of another data set; those that are left are held out
        kept = len(held_out["rows"]) if held_out and others else 0
        return {
            **before, **{key: facts[key] for key in _FACTS},
            "id": id, "base": base.id, "steps": steps, "superseded_by": None,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "counts": {
                "rows": base.rows + others, "used": used + kept,
                "left_out": base.rows - used + others - kept,
            },
            "problems": [*(p for p in base.problems if p["row"] not in back), *by_hand],
            "problem_reasons": {reason: count for reason, count in reasons.items() if count > 0},
            "checks": [*_still_left_out(before.get("checks") or [], restored), *facts["checks"]],
            "held_out": held_out,
        }  # fmt: skip


def _held_out(steps: list[dict[str, Any]], positions: list[int] | None) -> dict[str, Any] | None:
    """What is held out by choice: {"rows": positions} and, of another data set, its "dataset",
    "fingerprint", "name" and "after"; its rows stand at the end."""
    other = held_out_file(parse_steps(steps))
    if positions is None:
        return None
    named = {} if other is None else other.model_dump(exclude={"step"})
    return {"rows": positions, **named}


def _told(steps: Any) -> list[dict[str, Any]]:
    return [{"step": record, "text": describe(parse_step(record))} for record in steps]


def _supersede(folder: Path, by: str | None) -> None:
    record = read_json(folder / RECORD)
    if record is not None and record.get("superseded_by") != by:
        write_json(folder / RECORD, {**record, "superseded_by": by})


def _still_left_out(
    checks: Sequence[Mapping[str, Any]], restored: Sequence[RestoreStep]
) -> Iterator[dict[str, Any]]:
    """The base's checks of rows that the import left out, without those that were put back."""
    for entry in checks:
        back = {step.row for step in restored if step.check == entry["id"]}
        left = entry["count"] - len(back)
        if entry.get("left_out") and left > 0:
            first = [hit for hit in entry["first"] if hit["i"] not in back]
            listed = min(entry["listed"], left)
            yield {**entry, "count": left, "listed": listed, "first": first}


def _carry_over(base: DatasetInfo, stage: Path, back: Set[int]) -> None:
    """The list of left-out rows, without those that were put back, and the source file: a link
    where the disk has links."""
    if (base.folder / LEFT_OUT).is_file():
        with (base.folder / LEFT_OUT).open("rb") as old, (stage / LEFT_OUT).open("wb") as new:
            new.writelines(line for line in old if not back or json.loads(line)["i"] not in back)
    stored = str(base.source.get("stored") or "")
    if stored and (base.folder / stored).is_file():
        try:
            os.link(base.folder / stored, stage / stored)
        except OSError:  # no links here (FAT, some network disks): a copy serves as well
            shutil.copyfile(base.folder / stored, stage / stored)


def _job(base: DatasetInfo, stage: Path, held_out: dict[str, Any] | None) -> Job:
    places = base.folder / PLACES
    request = {
        "data": str(base.data_file),
        "places": str(places) if places.is_file() else None,
        "steps": str(stage / "steps.json"),
        "held_out": held_out,
    }
    size_bytes = base.data_file.stat().st_size
    limits = Limits(
        memory_bytes=4 * 2**30 + 2 * size_bytes,
        cpu_s=900 + base.used // 1000,
        wall_s=1800.0 + base.used / 500,
    )
    return Job("studio.services.edit_child", stage, base.name, request, limits)
