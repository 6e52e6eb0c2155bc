"""Changes to a data set as recorded steps, and the pure functions that apply them.

Owns the step models (what is written into a derived data set's record), `apply_steps`, and the
sentence that describes each step. A data set itself never changes: a derived one is its base plus
a list of steps, so undo is the same list with one step fewer. Rows are named by `i`, their number
in the source file, which every step keeps. Knows nothing of files and processes.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from studio.core.checks import CHECKS
from studio.core.errors import DatasetError
from studio.core.examples import ASSISTANT, SYSTEM, Example, Message, RowProblem
from studio.core.formats import normalise
from studio.core.text_checks import CLEANERS

Rows = tuple[Annotated[int, Field(ge=0)], ...]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExcludeStep(_Step):
    """Leave rows out. `check` says which check named them; `why` is the user's own reason."""

    step: Literal["exclude"] = "exclude"
    rows: Rows = Field(min_length=1)
    check: str | None = None
    why: str = ""


class EditStep(_Step):
    """Put another conversation or text in the place of a row's own."""

    step: Literal["edit"] = "edit"
    row: int = Field(ge=0)
    messages: tuple[dict[str, Any], ...] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> EditStep:
        if (self.messages is None) == (self.text is None):
            raise ValueError("exactly one of messages and text is to be given")
        return self


class RestoreStep(_Step):
    """Put a row back that was left out: as it was, with other texts, or as read from the source.

    Attributes:
        messages, text: in the place of the row's own, as of an edit.
        source: the whole row, as data.jsonl would hold it, where the import could not use it.
        check, reason: of the import, why it could not.
    """

    step: Literal["restore"] = "restore"
    row: int = Field(ge=0)
    messages: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    source: dict[str, Any] | None = None
    check: str | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _at_most_one(self) -> RestoreStep:
        if sum(part is not None for part in (self.messages, self.text, self.source)) > 1:
            raise ValueError("at most one of messages, text and source is to be given")
        return self


class SystemPromptStep(_Step):
    """Give a system prompt to all conversations, or only to those without one.

    An empty text with `replace` takes the system prompts away.
    """

    step: Literal["system_prompt"] = "system_prompt"
    text: str
    replace: bool = False

    @model_validator(mode="after")
    def _does_something(self) -> SystemPromptStep:
        if not self.text.strip() and not self.replace:
            raise ValueError("the system prompt is empty")
        return self


class CleanStep(_Step):
    """Repair or replace, in all rows, what a check finds inside texts."""

    step: Literal["clean"] = "clean"
    check: str

    @model_validator(mode="after")
    def _can_be_cleaned(self) -> CleanStep:
        if self.check not in CLEANERS:
            raise ValueError(f"one of {', '.join(CLEANERS)} is to be given")
        return self


class SampleStep(_Step):
    """Keep n rows, drawn with the seed, in their order."""

    step: Literal["sample"] = "sample"
    n: int = Field(ge=1)
    seed: Seed = 42


class ShuffleStep(_Step):
    """Put the rows into another order."""

    step: Literal["shuffle"] = "shuffle"
    seed: Seed = 42


class HeldOutStep(_Step):
    """Hold out exactly these rows, instead of a share drawn by chance."""

    step: Literal["held_out"] = "held_out"
    rows: Rows = Field(min_length=1)


class HeldOutFileStep(_Step):
    """Hold out the rows of another data set; all rows of this one train.

    Attributes:
        after: the number behind which its rows are numbered: the rows of the base's source. None
            in records from before it was kept: then the last row that can be used.
    """

    step: Literal["held_out_file"] = "held_out_file"
    dataset: str
    fingerprint: str
    name: str = ""
    after: int | None = Field(None, ge=0)


Step = Annotated[
    ExcludeStep | EditStep | RestoreStep | SystemPromptStep | CleanStep | SampleStep | ShuffleStep
    | HeldOutStep | HeldOutFileStep,
    Field(discriminator="step"),
]  # fmt: skip
_STEP: TypeAdapter[Step] = TypeAdapter(Step)


def parse_step(record: Mapping[str, Any]) -> Step:
    """A step from its record. Raises DatasetError that says what is wrong with it."""
    try:
        return _STEP.validate_python(dict(record))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise DatasetError(
            f"This change cannot be made: {place + ': ' if place else ''}{first['msg']}",
            value=str(record.get("step")),
            allowed="exclude, edit, restore, system_prompt, clean, sample, shuffle, held_out, "
            "held_out_file",
        ) from error


def parse_steps(records: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Steps from their records."""
    return tuple(parse_step(record) for record in records)


def to_records(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """The inverse of `parse_steps`, as JSON values."""
    return [step.model_dump(mode="json", exclude_none=True) for step in steps]


def chosen_rows(numbers: Iterable[int], steps: Sequence[Step]) -> list[int]:
    """Which of the rows remain, by their `i`, in their new order.

    Rows are ranked by `random()`, the one method whose sequence Python promises to keep between
    versions; so the same seed gives the same rows on every machine.
    """
    left = list(numbers)
    for step in steps:
        if isinstance(step, ExcludeStep):
            gone = set(step.rows)
            left = [number for number in left if number not in gone]
        elif isinstance(step, SampleStep) and step.n < len(left):
            kept = sorted(_ranked(len(left), step.seed)[: step.n])
            left = [left[at] for at in kept]
        elif isinstance(step, ShuffleStep):
            left = [left[at] for at in _ranked(len(left), step.seed)]
        elif isinstance(step, RestoreStep) and step.row not in left:
            insort(left, step.row) if left == sorted(left) else left.append(step.row)
    return left


def _ranked(count: int, seed: int) -> list[int]:
    draw = random.Random(seed).random
    return sorted(range(count), key=[draw() for _ in range(count)].__getitem__)


def edited(example: Example, steps: Sequence[Step]) -> Example:
    """The row as the steps leave its texts, in the order of the steps."""
    for step in steps:
        if isinstance(step, EditStep | RestoreStep) and step.row == example.i:
            example = _rewritten(example, step)
        elif isinstance(step, SystemPromptStep) and example.messages is not None:
            example = replace(example, messages=_prompted(example.messages, step))
        elif isinstance(step, CleanStep):
            example = _cleaned(example, step)
    return example


def apply_steps(rows: Iterable[Example], steps: Sequence[Step]) -> Iterator[Example]:
    """The rows of the derived data set. `i` and `line` stay those of the source row."""
    by_number = {example.i: example for example in rows} | restored_rows(steps)
    for number in chosen_rows(by_number, steps):
        yield edited(by_number[number], steps)


def restored_rows(steps: Sequence[Step]) -> dict[int, Example]:
    """The rows by number that steps have read from the source, where the import could not."""
    return {
        step.row: Example.from_dict(step.source)
        for step in steps
        if isinstance(step, RestoreStep) and step.source is not None
    }


def check_edit(step: EditStep | RestoreStep) -> EditStep | RestoreStep:
    """The step with its texts as they will be stored.

    Raises:
        DatasetError: the row could not be trained on after the edit.
    """
    try:
        if step.text is not None:
            built = normalise({"text": step.text}, "text", {"text": "text"})
            return step.model_copy(update={"text": built.text})
        if step.messages is None:
            return step
        built = normalise(
            {"messages": list(step.messages or ())}, "messages", {"messages": "messages"}
        )
        return step.model_copy(update={"messages": built.messages})
    except RowProblem as problem:
        raise DatasetError(
            f"Row {step.row} cannot be saved so: {problem.reason}", remedy=problem.remedy
        ) from problem


def _rewritten(example: Example, step: EditStep | RestoreStep) -> Example:
    if step.text is not None:
        return replace(example, text=step.text, messages=None)
    if step.messages is None:
        return example
    messages = tuple(dict(message) for message in step.messages or ())
    label = example.label
    if label is not None:  # a classification answers with its label
        label = str(messages[-1].get("content") or "")
    return replace(example, messages=messages, text=None, label=label)


def _prompted(messages: tuple[Message, ...], step: SystemPromptStep) -> tuple[Message, ...]:
    has_one = bool(messages) and messages[0]["role"] == SYSTEM
    if has_one and not step.replace:
        return messages
    body = messages[1:] if has_one else messages
    text = step.text.strip()
    return ({"role": SYSTEM, "content": text}, *body) if text else body


def _cleaned(example: Example, step: CleanStep) -> Example:
    clean = CLEANERS[step.check]
    if example.messages is None:
        return replace(example, text=_kept(clean(example.text or ""), example.text))
    messages = tuple(
        {**message, "content": _kept(clean(content), content)}
        if (content := message.get("content"))
        else message
        for message in example.messages
    )
    label = example.label
    if label is not None and messages[-1]["role"] == ASSISTANT:
        label = messages[-1]["content"]
    return replace(example, messages=messages, label=label)


def _kept(clean: str, before: str | None) -> str:
    """The cleaned text; a text of which nothing would be left stays, and its check names it."""
    return clean if clean.strip() else before or ""


def held_out_rows(steps: Sequence[Step]) -> frozenset[int] | None:
    """The rows that are held out by choice, by `i`; None where chance decides."""
    last = _last_held_out(steps)
    return frozenset(last.rows) if isinstance(last, HeldOutStep) else None


def held_out_file(steps: Sequence[Step]) -> HeldOutFileStep | None:
    """The data set that is held out; None where there is none."""
    last = _last_held_out(steps)
    return last if isinstance(last, HeldOutFileStep) else None


def _last_held_out(steps: Sequence[Step]) -> Step | None:
    """The later choice replaces the earlier."""
    chosen = [step for step in steps if isinstance(step, HeldOutStep | HeldOutFileStep)]
    return chosen[-1] if chosen else None


def steps_of_others(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps as they change the rows of the data set that is held out: what was done to all
    rows, and what was done to single ones since it is held out."""
    last = held_out_file(steps)
    if last is None:
        return ()
    at = max(place for place, step in enumerate(steps) if step is last)
    early = [step for step in steps[:at] if isinstance(step, SystemPromptStep | CleanStep)]
    return (*early, *steps[at + 1 :])


def kept_others(numbers: Iterable[int], steps: Sequence[Step]) -> list[int]:
    """Of the rows of the data set that is held out, by number, those that are not left out."""
    every, gone = list(numbers), set[int]()
    for step in steps_of_others(steps):
        if isinstance(step, ExcludeStep):
            gone.update(step.rows)
        elif isinstance(step, RestoreStep):
            gone.discard(step.row)
    return [number for number in every if number not in gone]


def own_steps(steps: Sequence[Step], others: Set[int]) -> list[Step]:
    """The steps without those that put a row of the held-out data set back."""
    return [
        step
        for step in steps
        if not (isinstance(step, RestoreStep) and step.source is None and step.row in others)
    ]


def describe(step: Step) -> str:
    """What a step does, as a line of the list of changes."""
    if isinstance(step, ExcludeStep):
        what = f"Left out {_rows(len(step.rows))}"
        reason = step.why or (CHECKS[step.check].title if step.check in CHECKS else "")
        return f"{what}: {reason}" if reason else what
    if isinstance(step, EditStep):
        return f"Edited row {step.row:,}"
    if isinstance(step, RestoreStep):
        as_it_was = step.messages is None and step.text is None and step.source is None
        return f"Put row {step.row:,} back" + ("" if as_it_was else ", edited")
    if isinstance(step, SystemPromptStep):
        if not step.text.strip():
            return "Took the system prompts away"
        whom = "all rows" if step.replace else "rows without one"
        return f"System prompt for {whom}: {step.text[:60]!r}"
    if isinstance(step, CleanStep):
        return _CLEANED[step.check]
    if isinstance(step, SampleStep):
        return f"Kept {_rows(step.n)}, drawn with seed {step.seed}"
    if isinstance(step, ShuffleStep):
        return f"Shuffled with seed {step.seed}"
    if isinstance(step, HeldOutStep):
        return f"Hold out {_rows(len(step.rows))} by choice"
    return f"Hold out the rows of {step.name or step.dataset}"


_CLEANED = {
    "control_characters": "Removed control characters",
    "broken_encoding": "Repaired broken encodings",
    "secret": "Replaced likely secrets",
    "email": "Replaced e-mail addresses",
}


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
