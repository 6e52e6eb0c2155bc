"""The one shape of a training example, as it stands in a data set's `data.jsonl`.

Owns: `Example`, its JSON line, and what makes a conversation or a text usable. Every source format
(core.formats) ends here, and the trainer and the page read nothing else. Knows nothing of files,
tokenizers or chat templates.

    {"i": 3, "line": 4, "messages": [{"role": "user", "content": "..."}, ...]}
    {"i": 3, "line": 4, "text": "..."}            plain text: every token is learned
    {"i": 3, "line": 4, "messages": [...], "label": "spam"}     classification
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


class RowProblem(ValueError):
    """One row cannot be used. It is counted and shown, never dropped in silence.

    Args:
        reason: what is wrong with the row, a clause without a final full stop.
        remedy: what to do about it, an imperative clause.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}. {remedy}.")


def shown(text: str) -> str:
    """A text from outside, fit for a sentence: no line breaks, no hidden or broken characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


@dataclass(frozen=True)
class Example:
    """A conversation or a plain text; exactly one of `messages` and `text` is set."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    label: str | None = None
    i: int = 0
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record of `data.jsonl`."""
        record: dict[str, Any] = {"i": self.i, "line": self.line}
        if self.messages is not None:
            record["messages"] = [dict(message) for message in self.messages]
        else:
            record["text"] = self.text
        if self.label is not None:
            record["label"] = self.label
        return record

    def to_json(self) -> str:
        """One line without line end."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Example:
        """The inverse of `to_dict`; trusts the record, which this program wrote."""
        messages = record.get("messages")
        return cls(
            messages=None if messages is None else tuple(dict(m) for m in messages),
            text=record.get("text"),
            label=record.get("label"),
            i=int(record.get("i") or 0),
            line=record.get("line"),
        )


def clean_text(value: Any, what: str) -> str:
    """A non-blank string that can be encoded, or RowProblem naming `what`."""
    if value is None:
        raise RowProblem(f"{what} is missing", "Fill it in or remove the row")
    if not isinstance(value, str):
        raise RowProblem(
            f"{what} is a {_kind(value)}, not text", "Write it as text or correct the mapping"
        )
    if not value.strip():
        raise RowProblem(f"{what} is empty", "Fill it in or remove the row")
    if "\0" in value:
        raise RowProblem(f"{what} holds a NUL character", "Remove the character or the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowProblem(
            f"{what} holds broken characters", "Save the file again as UTF-8"
        ) from None
    return value


def conversation(turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """Checked messages from (role, content) pairs whose contents are clean already.

    Chat templates of several model families refuse anything but: an optional system message, then
    user and assistant in turns. The last word is the assistant's, for only answers are learned.
    """
    roles = [role for role, _ in turns]
    if ASSISTANT not in roles:
        raise RowProblem("there is no assistant turn", "Add the answer that is to be learned")
    body = roles[1:] if roles[0] == SYSTEM else roles
    if SYSTEM in body:
        raise RowProblem(
            "a system message stands after the first place",
            "Keep one system message, as the first of the conversation",
        )
    expected = [USER if index % 2 == 0 else ASSISTANT for index in range(len(body))]
    if body != expected:
        at = next(index for index, role in enumerate(body) if role != expected[index])
        raise RowProblem(
            f"the roles are out of order: turn {at + 1 + len(roles) - len(body)} is "
            f"{body[at]}, expected {expected[at]}",
            "Let user and assistant speak in turns, the user first",
        )
    if body[-1] != ASSISTANT:
        raise RowProblem(
            "the conversation ends with the user", "End each conversation with the answer"
        )
    return tuple({"role": role, "content": content} for role, content in turns)


def _kind(value: Any) -> str:
    """The JSON name of a value's type, for sentences."""
    if isinstance(value, bool):
        return "true/false value"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, Mapping):
        return "nested object"
    if isinstance(value, (list, tuple)):
        return "list"
    return type(value).__name__
