"""The boxes of a broken conversation: who speaks and what is said, turn by turn.

Owns their HTML and reading what `assets/data_editor.js` sends of them; what the turns become is
decided by core.turn_edits. Knows nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.core.examples import ASSISTANT, SYSTEM, TOOL, USER
from studio.core.turn_edits import EditableTurn, TurnEdit
from studio.core.turns import CALL_ROLES, ROLE_SPELLINGS, spelled_role
from studio.ui.text import clip, escape

_ROLES = (SYSTEM, USER, ASSISTANT, TOOL)
_EXTRA_TITLES = {
    "tool_calls": "Tools it calls (JSON)",
    "function_call": "Tool it calls (JSON)",
    "weight": "Weight (1: learned, 0: read but not learned)",
    "name": "Name",
    "tool_call_id": "Call that it answers",
}
_START = (EditableTurn(USER, ""), EditableTurn(ASSISTANT, ""))


def turns_html(place: int, title: str, turns: Sequence[EditableTurn]) -> str:
    """A conversation's turns, each to be changed, moved or removed, and a button to add one."""
    boxes = "".join(_turn(number, turn, number) for number, turn in enumerate(turns))
    if not turns:
        boxes = "".join(_turn(number, turn, None) for number, turn in enumerate(_START))
    return (
        f"<fieldset class='edit-turns' data-place='{place}'><legend>{escape(title)}</legend>"
        f"<ol>{boxes}</ol><template>{_turn(0, EditableTurn(USER, ''), None)}</template>"
        "<p class='editor-acts'><button type='button' data-turn-act='add'>Add a turn</button></p>"
        "</fieldset>"
    )


def _turn(number: int, turn: EditableTurn, before: int | None) -> str:
    """One turn; `before`: its place among those of the row, None for a new one."""
    place = "" if before is None else before
    said = turn.problem[:1].upper() + turn.problem[1:]
    if turn.lost:
        said = (
            f"It also holds {turn.lost}, which cannot be trained on: saved, the turn keeps its "
            "text alone."
        )
    problem = f"<p class='warn'>{escape(said)}</p>" if said else ""
    extras = "".join(
        f"<label class='edit-turn'><span>{escape(_EXTRA_TITLES.get(key, key))}</span>"
        f"<textarea rows='{_lines(text)}' data-key='{escape(key)}' spellcheck='false'>\n"
        f"{escape(text)}</textarea></label>"
        for key, text in turn.extras.items()
    )
    return (
        f"<li class='one-turn' data-before='{place}'><p class='turn-head'>"
        f"<b class='turn-no'>Turn {number + 1}</b><select class='turn-role' "
        f"aria-label='Speaker of turn {number + 1}'>{_options(turn.role)}</select>"
        "<button type='button' data-turn-act='up'>Up</button>"
        "<button type='button' data-turn-act='remove'>Remove</button></p>"
        f"{problem}<textarea class='turn-text' rows='{_lines(turn.text)}' spellcheck='true' "
        f"aria-label='Text of turn {number + 1}'>\n{escape(turn.text)}</textarea>{extras}</li>"
    )


def _options(role: str) -> str:
    """The four speakers, under the names of the studio; a spelling that is none stays to be
    seen."""
    known = _known(role)
    options = [(name, name) for name in _ROLES]
    if known is None:
        title = f"{clip(role, 40)} (unknown)" if role.strip() else "choose"
        if spelled_role(role) in CALL_ROLES:
            title = f"{clip(role, 40)} (calls a tool)"
        options.insert(0, (role, title))
    chosen = role if known is None else known
    return "".join(
        f"<option value='{escape(value)}'{' selected' if value == chosen else ''}>{escape(title)}"
        "</option>"
        for value, title in options
    )


def _known(role: str) -> str | None:
    return ROLE_SPELLINGS.get(spelled_role(role))


def _lines(text: str) -> int:
    return min(14, max(2, 1 + text.count("\n") + len(text) // 80))


def read_turn_edits(part: Any) -> list[TurnEdit]:
    """The turns that the browser sent for one conversation. Raises ValueError where they are
    none."""
    if not isinstance(part, list):
        raise ValueError("no list of turns")
    return [_read(turn) for turn in part]


def _read(turn: Any) -> TurnEdit:
    if not isinstance(turn, Mapping):
        raise ValueError("no turn")
    before, extras = turn.get("before"), turn.get("extras")
    texts = [turn.get("role"), turn.get("text")]
    texts += extras.values() if isinstance(extras, Mapping) else [None]
    ok = before is None or (isinstance(before, int) and not isinstance(before, bool))
    if not ok or not all(isinstance(text, str) for text in texts):
        raise ValueError("no turn")
    return TurnEdit(before, turn["role"], turn["text"], dict(turn["extras"]))
