"""What is corrected of a row that the import could not use, and the row that it becomes.

Owns the row as it was read again, its parts that can be corrected, and the example that corrected
parts make, as strict as the import: what is sent back unchanged is refused again. Pure; the source
is read by services.left_out_rows.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import Example, RowProblem
from studio.core.formats import normalise
from studio.core.turn_edits import EditableTurn, TurnEdit, editable_turns, rebuilt
from studio.services.dataset_records import DatasetInfo
from studio.services.json_rows import JsonParser, parse_line
from studio.services.source_row_child import LOST

_SCALARS = (bool, int, float, type(None))
_CONVERSATIONS = ("messages", "conversations")
_WITH_TURNS = (*_CONVERSATIONS, "prompt", "completion", "chosen", "rejected")
_STRUCTURED = (*_WITH_TURNS, "history", "tools")  # roles that may hold something else than text
# What comes back for a cell: its text, or the turns of its conversation.
Part = str | Sequence[TurnEdit]


@dataclass(frozen=True)
class Cell:
    """One part of a source row that can be corrected: a column, or the whole line (no column).

    Attributes:
        turns: of a conversation its turns, () where it has none yet; None for any other cell,
            which is corrected as text.
        is_json: a list or an object, corrected as JSON.
    """

    title: str
    text: str
    column: str | None = None
    turns: tuple[EditableTurn, ...] | None = None
    is_json: bool = False


@dataclass(frozen=True)
class LeftOutRow:
    """A row that the import could not use, as it stands in the source.

    Attributes:
        row: its columns, None where no row could be made of it. raw: then its line, if known.
        guessed: characters of it are broken in the file; they are shown as they may have been.
    """

    i: int
    line: int | None
    check: str
    reason: str
    row: dict[str, Any] | None
    raw: str | None
    guessed: bool = False

    def cells(self, info: DatasetInfo) -> list[Cell]:
        """What of it is shown to be corrected: the columns that the mapping names."""
        if self.row is None and self.raw is not None and self.raw.lstrip()[:1] in ("{", "["):
            return [Cell("line of the file", self.raw)]
        row = self.row or {}
        return [_cell(role, column, row.get(column)) for role, column in info.mapping.items()]


def _cell(role: str, column: str, value: Any) -> Cell:
    title = role if role == column else f"{role} ({column})"
    turns = editable_turns(value) if role in _WITH_TURNS else None
    if turns is None and role in _CONVERSATIONS and _is_blank(value):
        turns = ()
    is_json = role in _STRUCTURED and isinstance(value, list | dict)
    return Cell(title, _shown(value), column, turns, is_json)


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def corrected(info: DatasetInfo, found: LeftOutRow, parts: Sequence[Part]) -> dict[str, Any]:
    """The row as data.jsonl holds it, with these texts and turns in the place of its cells'.

    Raises:
        DatasetError: it could not be trained on; the sentence says why.
    """
    cells = found.cells(info)
    alike = len(parts) == len(cells) and all(
        isinstance(part, str) == (cell.turns is None)
        for part, cell in zip(parts, cells, strict=True)
    )
    if not alike:
        raise DatasetError(
            "The page sent no edit of this row", remedy="Open the row again and repeat the edit"
        )
    try:
        rows = _rows(found.row or {}, cells, parts)
        example = _first_good(info, rows)
        if found.guessed and LOST in example.to_json():
            raise RowProblem(
                f"it still holds a lost character ({LOST})", "Write what stood there instead"
            )
    except RowProblem as problem:
        raise DatasetError(
            f"Row {found.i} cannot be saved so: {problem.reason}", remedy=problem.remedy
        ) from problem
    return replace(example, i=found.i, line=found.line).to_dict()


def _first_good(info: DatasetInfo, rows: Sequence[Mapping[str, Any]]) -> Example:
    """The first of these readings that can be used. Raises RowProblem."""
    for row in rows[:-1]:
        with contextlib.suppress(RowProblem):
            return normalise(row, info.format, info.mapping)
    return normalise(rows[-1], info.format, info.mapping)


def _rows(
    row: Mapping[str, Any], cells: Sequence[Cell], parts: Sequence[Part]
) -> list[dict[str, Any]]:
    """The corrected source row. Of a cell that held a number or true and false there are two
    readings: as such, and as text."""
    if cells and cells[0].column is None:
        return [_object(str(parts[0]))]
    plain, typed = dict(row), dict(row)
    for cell, text in zip(cells, parts, strict=True):
        before = row.get(cell.column)
        if not isinstance(text, str):
            if cell.turns or any(turn.text.strip() for turn in text):
                plain[cell.column] = typed[cell.column] = rebuilt(before, text)
        elif cell.is_json:
            plain[cell.column] = typed[cell.column] = _value(cell.title, text)
        elif text != cell.text or not (before is None or _is_no_text(before)):
            plain[cell.column] = typed[cell.column] = text
            if isinstance(before, _SCALARS) and before is not None:
                typed[cell.column] = _scalar(text)
    return [typed] if typed == plain else [typed, plain]


def _is_no_text(value: Any) -> bool:
    """Whether nobody means a value by its JSON text: lists, objects, NaN and infinity."""
    return isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value))


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, _SCALARS) else text


def _value(title: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{title} is not valid JSON: {error}"[:200]
        raise RowProblem(reason, "Correct it, or discard the edit") from error


def _object(text: str) -> dict[str, Any]:
    """The row of a line, read as strictly as the import reads it."""
    row = parse_line(text, JsonParser())
    if isinstance(row, RowProblem):
        raise row
    return row


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
