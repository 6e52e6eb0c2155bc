"""A conversation of a source row as turns that can be corrected one by one, and back.

Owns: which values can be shown so (lists of turns in any usual spelling, also as JSON text), what
is shown of a turn that cannot be used, and the value that the corrected turns make. What a turn
must be to be learned is core.turns' business. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.core.examples import TOOL, RowProblem
from studio.core.turns import (
    CALL_ROLES,
    ROLE_SPELLINGS,
    SPEAKER_KEYS,
    SPEECH_KEYS,
    read_turn,
    spelled_role,
)

MAX_TURNS = 200  # of a page; a longer conversation is corrected as JSON
EXTRA_KEYS = ("tool_calls", "function_call", "weight", "name", "tool_call_id")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class EditableTurn:
    """One turn as boxes.

    Attributes:
        role: as the file spells it, "" where the turn has none.
        extras: what else of it is learned or decides it (EXTRA_KEYS), as text or JSON.
        problem: why it cannot be used, "" where it alone can.
        lost: what of it has no box and would be gone, "" for nothing.
    """

    role: str
    text: str
    extras: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    lost: str = ""


@dataclass(frozen=True)
class TurnEdit:
    """A turn as it is to be; `before`: its place among the old ones (from 0), None: a new one."""

    before: int | None
    role: str
    text: str
    extras: Mapping[str, str] = field(default_factory=dict)


def editable_turns(value: Any) -> tuple[EditableTurn, ...] | None:
    """The turns of a value, or None where it does not have the shape of a conversation."""
    items = _items(value)
    if items is None or not 0 < len(items) <= MAX_TURNS:
        return None
    if not all(isinstance(item, str) or _has_boxes(item) for item in items):
        return None
    return tuple(_editable(item, number) for number, item in enumerate(items, 1))


def rebuilt(value: Any, edits: Sequence[TurnEdit]) -> list[Any]:
    """The list of turns that the edits of a value's turns make; what has no box stays.

    Raises:
        RowProblem: a box that holds JSON holds none; a turn is named that is not there.
    """
    items = _items(value) or []
    return [_rebuilt(items, edit, number) for number, edit in enumerate(edits, 1)]


def _items(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def _has_boxes(item: Any) -> bool:
    return isinstance(item, Mapping) and any(key in item for key in (*SPEAKER_KEYS, *SPEECH_KEYS))


def _editable(item: Any, number: int) -> EditableTurn:
    if isinstance(item, str):
        return EditableTurn("", item, problem=f"turn {number} has no role")
    problem = ""
    try:
        read_turn(item, number)
    except RowProblem as found:
        problem = found.reason
    text, lost = _text_of(_first(item, SPEECH_KEYS))
    extras = {key: _written(item[key]) for key in EXTRA_KEYS if item.get(key) is not None}
    return EditableTurn(_written(_first(item, SPEAKER_KEYS)), text, extras, problem, lost)


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _text_of(speech: Any) -> tuple[str, str]:
    """The text of a turn's words, and what of them is no text."""
    if not isinstance(speech, list | tuple):
        return _written(speech), ""
    texts, lost = [], []
    for part in speech:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind in _TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        else:
            lost.append(str(kind)[:40])
    return "".join(texts), ", ".join(sorted(set(lost)))


def _written(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rebuilt(items: Sequence[Any], edit: TurnEdit, number: int) -> dict[str, Any]:
    item: Any = {}
    if edit.before is not None:
        if not 0 <= edit.before < len(items):
            raise RowProblem(f"turn {number} is not in the row", "Open the row again")
        item = items[edit.before]
    if not isinstance(item, Mapping):
        item = {"content": item}
    before = _editable(item, number)
    gone = (*SPEAKER_KEYS, *SPEECH_KEYS, *EXTRA_KEYS)
    turn = {key: value for key, value in item.items() if key not in gone}
    if edit.role.strip():
        turn["role"] = edit.role
    speech = _first(item, SPEECH_KEYS)
    turn["content"] = speech if _stays(speech, edit, before) else edit.text
    for key, text in edit.extras.items():
        if key in EXTRA_KEYS and text.strip():
            same = text == before.extras.get(key)
            turn[key] = item[key] if same else _extra(key, text, number)
    return turn


def _stays(speech: Any, edit: TurnEdit, before: EditableTurn) -> bool:
    """Whether the words stay as the file has them: untouched, and nothing that its text alone
    says as well. An object where a text belongs stays and is refused."""
    if edit.text != before.text or speech is None:
        return speech is None and edit.text == ""
    spelled = spelled_role(edit.role)
    may_be_data = spelled in CALL_ROLES or ROLE_SPELLINGS.get(spelled) == TOOL
    return isinstance(speech, str | Mapping) or (isinstance(speech, list) and may_be_data)


def _extra(key: str, text: str, number: int) -> Any:
    if key in ("name", "tool_call_id"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowProblem(
            f"{key} of turn {number} is not valid JSON: {error}"[:200], "Correct it"
        ) from error
