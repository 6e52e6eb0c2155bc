"""Recognises the format of rows by what they hold, and says why.

Owns: `sniff`, which proposes a format and a column mapping from a sample of rows. The proposal is
shown with its reasons and can be corrected; nothing here changes a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.core.errors import DatasetError
from studio.core.format_cells import Row
from studio.core.format_preferences import is_verdict
from studio.core.formats import FORMATS, Role
from studio.core.turns import is_turn

SAMPLE_ROWS = 200
# A column is taken for a label where so few values share so many rows.
MAX_LABELS = 30
MIN_ROWS_PER_LABEL = 3
MAX_LABEL_CHARS = 60


@dataclass(frozen=True)
class Detected:
    """A proposal: format, role to column, and the sentences that justify it."""

    format: str
    mapping: dict[str, str]
    reasons: list[str] = field(default_factory=list)


class UnknownFormatError(DatasetError):
    """No format fits; `columns` lets the page offer the mapping by hand."""

    def __init__(self, what: str, *, columns: Sequence[str], **parts: Any) -> None:
        self.columns = list(columns)
        super().__init__(what, **parts)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All column names in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def sniff(rows: Sequence[Row], columns: Sequence[str] | None = None) -> Detected:
    """Propose format and mapping from sample rows.

    Raises:
        UnknownFormatError: nothing fits, or the rows are of a kind that cannot be trained on.
    """
    names = list(columns) if columns is not None else columns_of(rows)
    if not names:
        raise UnknownFormatError(
            "The rows have no columns", columns=[],
            remedy="Write each row as an object with names and values",
        )  # fmt: skip
    table = _Table(rows[:SAMPLE_ROWS], names)
    for detect in (
        _sniff_preference, _sniff_kto, _sniff_conversation, _sniff_alpaca,
        _sniff_prompt_completion, _sniff_label_names, _sniff_pairs, _sniff_text,
        _sniff_label_values, _sniff_two_columns,
    ):  # fmt: skip
        found = detect(table)
        if found is not None:
            return found
    raise UnknownFormatError(
        "None of the known formats fits the columns",
        value=", ".join(names)[:200],
        allowed="messages, conversations, instruction + output, prompt + completion, "
        "question + answer, chosen + rejected, text + label, or text",
        remedy="Rename the columns or choose format and mapping by hand",
        columns=names,
    )


def mapping_for(format: str, columns: Sequence[str]) -> dict[str, str]:
    """The mapping that the usual column names suggest for a chosen format; may lack roles."""
    table = _Table((), list(columns))
    found: dict[str, str] = {}
    for role in FORMATS[format].roles:
        column = table.column(role, taken=set(found.values()))
        if column is not None:
            found[role.name] = column
    if len(columns) == 1 and not found:
        found[FORMATS[format].roles[0].name] = columns[0]
    return found


class _Table:
    """Sample rows with their columns looked up without regard to case."""

    def __init__(self, rows: Sequence[Row], columns: list[str]) -> None:
        self.rows = rows
        self.columns = columns
        self._by_name: dict[str, str] = {}
        for column in columns:
            self._by_name.setdefault(column.strip().lower().replace(" ", "_"), column)

    def named(self, *names: str) -> str | None:
        """The first of the names that the table has, in its own spelling."""
        return next((self._by_name[name] for name in names if name in self._by_name), None)

    def column(self, role: Role, taken: set[str] = frozenset()) -> str | None:  # type: ignore[assignment]
        """The column whose name suggests a role, unless another role has it."""
        free = [a for a in role.aliases if a in self._by_name and self._by_name[a] not in taken]
        return self._by_name[free[0]] if free else None

    def values(self, column: str) -> list[Any]:
        """Values that are there: neither missing nor blank."""
        found = (row.get(column) for row in self.rows)
        return [v for v in found if v is not None and not (isinstance(v, str) and not v.strip())]

    def is_text(self, column: str) -> bool:
        """Whether most values are text. True for a column without values: rows will tell."""
        values = self.values(column)
        return sum(isinstance(value, str) for value in values) * 2 >= len(values)

    def with_system(self, mapping: dict[str, str]) -> dict[str, str]:
        """The mapping, with a system column where there is one that is free."""
        column = self.named("system", "system_prompt")
        return mapping if column is None else {**mapping, "system": column}

    def with_extras(self, mapping: dict[str, str], *roles: str) -> dict[str, str]:
        """The mapping with the system column, the tools and the named roles where they are."""
        found = self.with_system(mapping)
        for role in (*roles, "tools"):
            column = self.named("tools", "functions") if role == "tools" else self.named(role)
            if column is not None and column not in found.values():
                found[role] = column
        return found

    def conversation(self) -> str | None:
        """The first column of which most values are lists of turns."""
        for column in self.columns:
            turns = [turn for turn in map(_first_turn, self.values(column)) if turn is not None]
            if turns and len(turns) * 2 >= len(self.values(column)):
                return column
        return None


def _sniff_preference(table: _Table) -> Detected | None:
    roles = FORMATS["preference"].roles
    chosen, rejected, prompt = (table.column(role) for role in roles[:3])
    if chosen is None or rejected is None:
        return None
    mapping = {"chosen": chosen, "rejected": rejected}
    if prompt is not None:
        mapping["prompt"] = prompt
    reason = f"columns {chosen!r} and {rejected!r}: of each comparison the chosen answer is learned"
    return Detected("preference", table.with_extras(mapping, "input"), [reason])


def _sniff_kto(table: _Table) -> Detected | None:
    """Rows that say whether their answer is good: what is bad must not be learned."""
    roles = {role.name: role for role in FORMATS["kto"].roles}
    label = table.column(roles["label"])
    values = table.values(label) if label is not None else []
    if label is None or not values or not all(map(is_verdict, values)):
        return None
    mapping = {"label": label}
    prompt, completion = (table.column(roles[name]) for name in ("prompt", "completion"))
    if prompt is not None and completion is not None:
        mapping |= {"prompt": prompt, "completion": completion}
    elif (messages := table.conversation()) is not None:
        mapping["messages"] = messages
    else:
        return None
    reason = f"column {label!r} is true or false: good answers are learned, bad ones left out"
    return Detected("kto", table.with_extras(mapping, "input"), [reason])


def _sniff_conversation(table: _Table) -> Detected | None:
    # Lists of turns under both names are one row's question and answer, not two conversations.
    halves = ("prompt", "completion") if table.named("prompt") and table.named("completion") else ()
    for column in table.columns:
        if column in map(table.named, halves):
            continue
        turns = [turn for turn in map(_first_turn, table.values(column)) if turn is not None]
        if not turns or len(turns) * 2 < len(table.values(column)):
            continue
        if "from" in turns[0] or "value" in turns[0]:
            reason = f"column {column!r} holds lists of turns with 'from' and 'value'"
            return Detected("sharegpt", table.with_extras({"conversations": column}), [reason])
        reason = f"column {column!r} holds lists of turns with 'role' and 'content'"
        return Detected("messages", table.with_extras({"messages": column}), [reason])
    return None


def _first_turn(value: Any) -> Mapping[str, Any] | None:
    """The first turn if the value is a conversation, written as a list or as JSON in a cell."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, (list, tuple)) or not value or not is_turn(value[0]):
        return None
    turn: Mapping[str, Any] = value[0]
    return turn


def _sniff_alpaca(table: _Table) -> Detected | None:
    instruction, output = FORMATS["alpaca"].roles[0], FORMATS["alpaca"].roles[2]
    first, second = table.column(instruction), table.column(output)
    if first is None or second is None:
        return None
    mapping = {"instruction": first, "output": second}
    for role in ("input", "history"):
        if column := table.named(role):
            mapping[role] = column
    names = ", ".join(repr(column) for column in mapping.values())
    return Detected("alpaca", table.with_system(mapping), [f"columns {names}"])


def _sniff_prompt_completion(table: _Table) -> Detected | None:
    prompt, completion = table.named("prompt"), table.named("completion")
    if prompt is None or completion is None:
        return None
    mapping = table.with_extras({"prompt": prompt, "completion": completion})
    return Detected("prompt_completion", mapping, [f"columns {prompt!r} and {completion!r}"])


def _sniff_label_names(table: _Table) -> Detected | None:
    text, label = (table.column(role) for role in FORMATS["classification"].roles[:2])
    if text is None or label is None or not _is_label(table, label, named=True):
        return None
    words = table.named("label_text", "label_name", "class_name")
    if words is not None and all(str(value).strip().isdigit() for value in table.values(label)):
        label = words  # the names stand beside the numbers
    reason = f"columns {text!r} and {label!r}, with {len(_distinct(table, label))} labels"
    mapping = table.with_system({"text": text, "label": label})
    return Detected("classification", mapping, [reason])


def _sniff_pairs(table: _Table) -> Detected | None:
    question, answer = (table.column(role) for role in FORMATS["pairs"].roles[:2])
    if question is None or answer is None:
        return None
    mapping = table.with_system({"question": question, "answer": answer})
    return Detected("pairs", mapping, [f"columns {question!r} and {answer!r}"])


def _sniff_text(table: _Table) -> Detected | None:
    column = table.column(FORMATS["text"].roles[0])
    others = [name for name in table.columns if name != column and table.is_text(name)]
    if column is not None and table.is_text(column):
        label = next((name for name in others if _is_label(table, name)), None)
        if len(table.columns) == 2 and label is not None:
            return None  # two columns, one of few values: text and label, decided by content
        return Detected("text", {"text": column}, [f"column {column!r} holds text"])
    if len(table.columns) == 1 and table.is_text(table.columns[0]):
        only = table.columns[0]
        return Detected("text", {"text": only}, [f"{only!r} is the only column"])
    return None


def _sniff_label_values(table: _Table) -> Detected | None:
    """Two columns without telling names, one of which has few values: text and label."""
    if len(table.columns) != 2:
        return None
    for label, text in (table.columns[::-1], table.columns):
        if _is_label(table, label) and table.is_text(text) and not _is_label(table, text):
            reason = f"column {label!r} has only {len(_distinct(table, label))} different values"
            return Detected("classification", {"text": text, "label": label}, [reason])
    return None


def _sniff_two_columns(table: _Table) -> Detected | None:
    if len(table.columns) != 2 or not all(map(table.is_text, table.columns)):
        return None
    first, second = table.columns
    reason = f"two text columns: {first!r} taken as question, {second!r} as answer (a guess)"
    return Detected("pairs", {"question": first, "answer": second}, [reason])


def _distinct(table: _Table, column: str) -> set[str]:
    return {str(value).strip() for value in table.values(column)}


def _is_label(table: _Table, column: str, *, named: bool = False) -> bool:
    """Few short values that repeat; less is asked of a column that is named like a label."""
    found = table.values(column)
    values = [value for value in found if not isinstance(value, (Mapping, list, tuple))]
    if not values or len(values) * 2 < len(found):
        return False
    distinct = {str(value).strip() for value in values}
    if named:
        few = len(values) < 2 * MIN_ROWS_PER_LABEL or len(distinct) * 2 <= len(values)
    else:
        few = len(distinct) <= MAX_LABELS and len(distinct) * MIN_ROWS_PER_LABEL <= len(values)
    return few and all(len(value) <= MAX_LABEL_CHARS for value in distinct)
