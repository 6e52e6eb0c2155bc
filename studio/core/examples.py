"""The one shape of a training example, as it stands in a data set's `data.jsonl`.

Owns: `Example`, its JSON line, and what makes a conversation or a text usable. Every source format
(core.formats) ends here, and the trainer and the page read nothing else. Knows nothing of files,
tokenizers or chat templates.

    {"i": 3, "line": 4, "messages": [{"role": "user", "content": "..."}, ...]}
    {"i": 3, "line": 4, "text": "..."}            plain text: every token is learned
    {"i": 3, "line": 4, "messages": [...], "label": "spam"}     classification
    {"i": 3, "line": 4, "messages": [...], "tools": [{"type": "function", ...}]}

A message has `role` and `content`. An answer that calls tools has `tool_calls` too and may have an
empty content; an answer with `"weight": 0` is read and not learned; a tool's message may have
`name` and `tool_call_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = (SYSTEM, USER, ASSISTANT)


# Without blanks, as services.plain_rows writes the same rows with another encoder.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class RowProblem(ValueError):
    """One row cannot be used. It is counted and shown, never dropped in silence.

    Args:
        reason: what is wrong with the row, a clause without a final full stop.
        remedy: what to do about it, an imperative clause.
        code: the check of core.checks that the row counts for, where the reason alone is vague.
    """

    def __init__(self, reason: str, remedy: str, *, code: str | None = None) -> None:
        self.reason = reason
        self.remedy = remedy
        self.code = code
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
    tools: tuple[dict[str, Any], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record of `data.jsonl`."""
        record: dict[str, Any] = {"i": self.i, "line": self.line}
        if self.messages is not None:
            record["messages"] = list(self.messages)
        else:
            record["text"] = self.text
        if self.label is not None:
            record["label"] = self.label
        if self.tools:
            record["tools"] = list(self.tools)
        return record

    def to_json(self) -> str:
        """One line without line end."""
        return _ENCODER.encode(self.to_dict())

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
            tools=tuple(record["tools"]) if record.get("tools") else None,
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


def conversation(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, checked for their order; their contents are clean already.

    Chat templates of several model families refuse anything but: an optional system message, then
    user and assistant in turns, where an answer may be followed by what tools said to it. The last
    word is the assistant's, for only answers are learned.
    """
    roles = [turn["role"] for turn in turns]
    if ASSISTANT not in roles:
        raise RowProblem(
            "there is no assistant turn", "Add the answer that is to be learned", code="no_answer"
        )
    first = 1 if roles[0] == SYSTEM else 0
    if SYSTEM in roles[first:]:
        raise RowProblem(
            "a system message stands after the first place",
            "Keep one system message, as the first of the conversation", code="roles",
        )  # fmt: skip
    wanted: tuple[str, ...] = (USER,)
    for number, turn in enumerate(turns[first:], first + 1):
        if turn["role"] not in wanted:
            raise RowProblem(
                f"the roles are out of order: turn {number} is {turn['role']}, "
                f"expected {wanted[0]}",
                "Let user and assistant speak in turns, the user first", code="roles",
            )  # fmt: skip
        wanted = _FOLLOWERS[turn["role"]]
        if turn.get("tool_calls"):
            wanted = (TOOL,)
    if roles[-1] != ASSISTANT:
        who = "the user" if roles[-1] == USER else "a tool"
        raise RowProblem(
            f"the conversation ends with {who}", "End each conversation with the answer",
            code="no_answer",
        )  # fmt: skip
    if all("weight" in turn for turn in turns if turn["role"] == ASSISTANT):
        raise RowProblem(
            "every answer has weight 0, so nothing is learned",
            "Give an answer weight 1 or leave the row out", code="no_answer",
        )  # fmt: skip
    return tuple(turns)


# Who may speak behind whom; the first is named where it is somebody else. Models that write their
# calls into the text have no tool_calls, so a tool may follow any answer.
_FOLLOWERS = {
    USER: (ASSISTANT,),
    ASSISTANT: (USER, TOOL),
    TOOL: (ASSISTANT, TOOL),
}


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
