"""Changes to a data set: the list of steps, the editor of one row, what a saved row becomes.

Owns their HTML and the records of the steps that the page's tools make. Changes are recorded by
`services.edits`; the source file is never touched, and the page says so. The boxes of a broken
conversation stand in `data_turns`. Knows nothing of gradio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studio.core.errors import DatasetError
from studio.ui.data_turns import read_turn_edits, turns_html
from studio.ui.text import escape, plural

if TYPE_CHECKING:
    from studio.services.dataset_records import DatasetInfo
    from studio.services.edits import History
    from studio.services.row_correction import LeftOutRow, Part

MAX_EDIT_CHARS = 1_000_000
MAX_SENT_CHARS = 2 * MAX_EDIT_CHARS  # as JSON, where each quote and line end takes two
UNTOUCHED = "Your file stays as it is: changes are kept beside it and can be undone."


def history_html(history: History | None) -> str:
    """The steps, oldest first, and those that can be done again."""
    if history is None or not (history.done or history.undone):
        return f"<p class='hint'>Nothing was changed. {UNTOUCHED}</p>"
    done = "".join(f"<li>{escape(step['text'])}</li>" for step in history.done)
    undone = "".join(f"<li class='undone'>{escape(step['text'])}</li>" for step in history.undone)
    count = plural(len(history.done), "change")
    listed = f"<ol class='steps' aria-label='Changes'>{done}{undone}</ol>"
    return f"<p class='hint'><b>{count}.</b> {UNTOUCHED}</p>{listed}"


def editor_html(example: Mapping[str, Any], *, left_out: bool = False) -> str:
    """A text box a message, with Save and Discard; a row that is left out is put back."""
    messages = example.get("messages")
    if messages is None:
        boxes = _box(0, "text", str(example.get("text") or ""))
    else:
        boxes = "".join(
            _box(place, str(m.get("role", "")), str(m.get("content") or ""))
            for place, m in enumerate(messages)
        )
    note = "A change has left this row out; saved, it trains again." if left_out else ""
    return _editor(int(example.get("i") or 0), boxes, note, left_out)


def mending_html(found: LeftOutRow, info: DatasetInfo) -> str:
    """The editor of a row that the import could not use: a text box a column, and of a
    conversation speaker and words of each turn."""
    boxes = "".join(
        _box(place, cell.title, cell.text) if cell.turns is None else
        turns_html(place, cell.title, cell.turns)
        for place, cell in enumerate(found.cells(info))
    )  # fmt: skip
    raw = ""
    if found.row is None and found.raw is not None and len(found.cells(info)) > 1:
        raw = f"<p class='hint'>Its line in the file:</p><pre class='raw'>{escape(found.raw)}</pre>"
    place = f"Line {found.line:,}: " if found.line is not None else ""
    note = f"{place}{found.reason}. Corrected and saved, the row trains."
    if found.guessed:
        note += (
            " The file holds bytes there that are no characters; they are shown as they may have "
            "been meant: read them before you save."
        )
    return _editor(found.i, raw + boxes, note, left_out=True)


def _editor(number: int, boxes: str, note: str, left_out: bool) -> str:
    title = f"Put row {number:,} back" if left_out else f"Edit row {number:,}"
    save = "Put row back" if left_out else "Save row"
    said = f"<p class='warn'>{escape(note)}</p>" if note else ""
    return (
        f"<form class='editor' data-row='{number}' aria-label='{title}'>"
        f"<h3>{title}</h3>{said}{boxes}<p class='editor-acts'>"
        f"<button type='submit' class='save'>{save}</button>"
        "<button type='button' data-act='close'>Discard</button>"
        f"<span class='muted'>{UNTOUCHED}</span></p></form>"
    )


def _box(place: int, role: str, text: str) -> str:
    lines = min(14, max(2, 1 + text.count("\n") + len(text) // 80))
    # A line end right behind <textarea> is not part of the text.
    return (
        f"<label class='edit-turn {escape(role)}'><span>{escape(role)}</span>"
        f"<textarea rows='{lines}' data-place='{place}' spellcheck='true'>\n{escape(text)}"
        "</textarea></label>"
    )


def edit_step(example: Mapping[str, Any], sent: str) -> dict[str, Any] | None:
    """The step for the texts that the editor sent; None where nothing was changed.

    Only texts come from the browser; roles, tool calls and all else stay those of the row.

    Raises:
        DatasetError: what was sent is not a text for each message.
    """
    texts = sent_texts(sent)
    messages = example.get("messages")
    if messages is None:
        if len(texts) != 1:
            raise _no_edit()
        if texts[0] == example.get("text"):
            return None
        return {"step": "edit", "row": example["i"], "text": texts[0]}
    if len(texts) != len(messages):
        raise _no_edit()
    changed = [
        message if text == str(message.get("content") or "") else {**message, "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]
    if changed == list(messages):
        return None
    return {"step": "edit", "row": example["i"], "messages": changed}


def sent_texts(sent: str) -> Sequence[str]:
    """The texts of the editor's boxes, as our script sends them. Raises DatasetError."""
    texts = _sent(sent)
    if not all(isinstance(text, str) for text in texts):
        raise _no_edit()
    return texts


def sent_parts(sent: str) -> list[Part]:
    """Texts and turns of the editor of a broken row. Raises DatasetError."""
    try:
        return [part if isinstance(part, str) else read_turn_edits(part) for part in _sent(sent)]
    except ValueError as error:
        raise _no_edit() from error


def require_editable(example: Mapping[str, Any]) -> None:
    """Raise DatasetError for a row that is too long for text boxes, before any is made."""
    messages = example.get("messages") or ({"content": example.get("text")},)
    if sum(len(str(message.get("content") or "")) for message in messages) > MAX_EDIT_CHARS:
        raise _too_long()


def _too_long() -> DatasetError:
    return DatasetError(
        "The row is too long to be edited here", allowed=f"{MAX_EDIT_CHARS:,} characters",
        remedy="Edit it in the file and import that again",
    )  # fmt: skip


def _sent(sent: str) -> list[Any]:
    if len(sent) > MAX_SENT_CHARS:
        raise _too_long()
    try:
        parts = json.loads(sent)
    except (ValueError, RecursionError) as error:
        raise _no_edit() from error
    if not isinstance(parts, list):
        raise _no_edit()
    return parts


def _no_edit() -> DatasetError:
    return DatasetError(
        "The page sent no edit of this row", remedy="Open the row again and repeat the edit"
    )


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    """A whole number out of a number box. Raises DatasetError."""
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or value != int(value) or not least <= value <= most:
        raise DatasetError(
            f"{name} is not a whole number in range", value="" if value is None else str(value),
            allowed=f"{least:,} to {most:,}",
        )  # fmt: skip
    return int(value)
