"""Values of a row by the role that their column plays.

Owns: looking a role up through the mapping, and texts with the blanks around them removed. Knows
nothing of formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.core.examples import clean_text

Row = Mapping[str, Any]
ColumnMap = Mapping[str, str]


def cell(row: Row, mapping: ColumnMap, role: str) -> Any:
    """The value of a role; None where the role has no column or the row no value."""
    column = mapping.get(role)
    return row.get(column) if column else None


def required(row: Row, mapping: ColumnMap, role: str) -> str:
    """The text of a role, or RowProblem."""
    value = row.get(mapping[role])
    if type(value) is str and value.isascii() and "\0" not in value and (text := value.strip()):
        return text  # what clean_text would find fine, without its questions
    return clean_text(value, f"{role!r} (column {mapping[role]!r})").strip()


def optional(row: Row, mapping: ColumnMap, role: str) -> str:
    """The text of a role, empty where there is none; RowProblem where it is no text."""
    value = cell(row, mapping, role)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        return ""
    return clean_text(value, f"{role!r} (column {mapping[role]!r})").strip()
