"""The shapes that rows of a data file come in, and how each becomes an `Example`.

Owns: the list of formats with their roles (which column plays which part) and `normalise`. How a
format is recognised stands in core.sniff. Knows nothing of files: a row is a plain mapping of
column name to value, whatever it was read from.

Column formats (alpaca, pairs, ...) become a user turn and an assistant turn, so one path through
the chat template serves all of them; blanks around a column's text are removed there, because a
leading space of a completion would be learned as part of the answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import (
    ASSISTANT,
    SYSTEM,
    USER,
    Example,
    Message,
    RowProblem,
    clean_text,
    conversation,
)

Row = Mapping[str, Any]
ColumnMap = Mapping[str, str]

# How files call the three speakers; lower case. What is not here is an unknown role.
ROLE_SPELLINGS = {
    "system": SYSTEM, "developer": SYSTEM, "instruction": SYSTEM,
    "user": USER, "human": USER, "prompter": USER, "customer": USER, "question": USER,
    "assistant": ASSISTANT, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "ai": ASSISTANT,
    "agent": ASSISTANT, "answer": ASSISTANT,
}  # fmt: skip
TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "tool_response"})
SPEAKER_KEYS = ("role", "from", "speaker")
SPEECH_KEYS = ("content", "value", "text")


@dataclass(frozen=True)
class Role:
    """One part a column can play in a format.

    Attributes:
        name: key in a mapping.
        aliases: usual column names, lower case, best first.
        required: whether the format cannot do without it.
    """

    name: str
    aliases: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Format:
    """A row shape: its roles and the function that turns a row into an Example."""

    id: str
    title: str
    roles: tuple[Role, ...]
    build: Callable[[Row, ColumnMap], Example]

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(role.name for role in self.roles if role.required)


def normalise(
    row: Row, format: str, mapping: ColumnMap, *, i: int = 0, line: int | None = None
) -> Example:
    """Turn one row into an Example, or raise RowProblem.

    Args:
        format: a key of FORMATS.
        mapping: role to column; must name every required role (`check_mapping`).
        i: number of the row in its file, from 1.
        line: line of the file where the row begins, where that is known.
    """
    return replace(FORMATS[format].build(row, mapping), i=i, line=line)


def check_mapping(format: str, mapping: ColumnMap, columns: Sequence[str]) -> None:
    """Raise DatasetError unless `mapping` fits the format and the file's columns."""
    if format not in FORMATS:
        raise DatasetError("Unknown format", value=format, allowed=", ".join(FORMATS))
    shape = FORMATS[format]
    names = [role.name for role in shape.roles]
    for role in mapping:
        if role not in names:
            raise DatasetError(
                f"The format {format} has no role of this name", value=role,
                allowed=", ".join(names),
            )  # fmt: skip
    for role in shape.required:
        if not mapping.get(role):
            raise DatasetError(
                f"The format {format} needs a column for {role!r}",
                allowed=f"columns {', '.join(columns)}",
                remedy="Choose the column in the mapping",
            )
    for role, column in mapping.items():
        if column not in columns:
            raise DatasetError(
                f"The mapping gives {role!r} a column that the file does not have", value=column,
                allowed=f"columns {', '.join(columns)}",
            )  # fmt: skip


def read_turns(value: Any, what: str) -> list[tuple[str, str]]:
    """(role, content) pairs from a list of message objects in any usual spelling."""
    if isinstance(value, str):
        value = _parse_cell(value, what)
    if value is None:
        raise RowProblem(f"{what} is missing", "Fill it in or remove the row")
    if not isinstance(value, (list, tuple)):
        raise RowProblem(f"{what} is not a list of messages", "Write a list of messages")
    if not value:
        raise RowProblem(f"{what} is an empty list", "Add the turns or remove the row")
    return [_turn(item, number) for number, item in enumerate(value, 1)]


def _parse_cell(text: str, what: str) -> Any:
    """A list written as JSON in a table's cell."""
    if not text.strip():
        raise RowProblem(f"{what} is empty", "Fill it in or remove the row")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowProblem(
            f"{what} is text, not a list of messages", "Write it as a JSON list"
        ) from None


def _turn(item: Any, number: int) -> tuple[str, str]:
    if not isinstance(item, Mapping):
        raise RowProblem(f"turn {number} is not an object", "Give each turn a role and a content")
    role = _role(item, number)
    if item.get("tool_calls") or item.get("function_call"):
        raise RowProblem(
            f"turn {number} calls a tool, which this version cannot train on",
            "Remove the tool calls or leave the row out",
        )
    if item.get("weight") == 0:
        raise RowProblem(
            f"turn {number} has weight 0, which this version cannot follow",
            "Remove the weight or leave the row out",
        )
    speech = next((item[key] for key in SPEECH_KEYS if item.get(key) is not None), None)
    return role, clean_text(_joined_parts(speech, number), f"the {role} text of turn {number}")


def _role(item: Mapping[str, Any], number: int) -> str:
    raw = next((item[key] for key in SPEAKER_KEYS if item.get(key) is not None), None)
    if not isinstance(raw, str):
        raise RowProblem(f"turn {number} has no role", "Give each turn a role and a content")
    spelled = raw.strip().lower()
    if spelled in TOOL_ROLES:
        raise RowProblem(
            f"turn {number} has the role {raw[:40]!r}; this version cannot train on tool use",
            "Remove the tool turns or leave the row out",
        )
    if spelled not in ROLE_SPELLINGS:
        raise RowProblem(
            f"turn {number} has an unknown role {raw[:40]!r}", "Use system, user or assistant"
        )
    return ROLE_SPELLINGS[spelled]


def _joined_parts(value: Any, number: int) -> Any:
    """OpenAI's list of content parts as one text; other values as they are."""
    if not isinstance(value, (list, tuple)):
        return value
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str):
            raise RowProblem(
                f"turn {number} has a part of type {str(kind)[:40]!r}; only text can be trained on",
                "Remove pictures, sound and files from the row",
            )
        texts.append(text)
    return "".join(texts)


def _cell(row: Row, mapping: ColumnMap, role: str) -> Any:
    column = mapping.get(role)
    return row.get(column) if column else None


def _required(row: Row, mapping: ColumnMap, role: str) -> str:
    value = _cell(row, mapping, role)
    return clean_text(value, f"{role!r} (column {mapping[role]!r})").strip()


def _optional(row: Row, mapping: ColumnMap, role: str) -> str:
    value = _cell(row, mapping, role)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return clean_text(value, f"{role!r} (column {mapping[role]!r})").strip()


def _with_system(row: Row, mapping: ColumnMap, turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    system = _optional(row, mapping, "system")
    if system and turns[0][0] == SYSTEM:
        raise RowProblem(
            "there are two system prompts, a column and a message", "Keep one of the two"
        )
    return conversation([(SYSTEM, system), *turns] if system else turns)


def _from_messages(row: Row, mapping: ColumnMap) -> Example:
    role = "messages" if "messages" in mapping else "conversations"
    turns = read_turns(_cell(row, mapping, role), f"{role!r} (column {mapping[role]!r})")
    return Example(messages=_with_system(row, mapping, turns))


def _from_alpaca(row: Row, mapping: ColumnMap) -> Example:
    instruction = _required(row, mapping, "instruction")
    extra = _optional(row, mapping, "input")
    turns = _history(_cell(row, mapping, "history"))
    turns.append((USER, f"{instruction}\n\n{extra}" if extra else instruction))
    turns.append((ASSISTANT, _required(row, mapping, "output")))
    return Example(messages=_with_system(row, mapping, turns))


def _history(value: Any) -> list[tuple[str, str]]:
    """Earlier rounds of an Alpaca row: a list of [question, answer] pairs."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    rounds = _parse_cell(value, "'history'") if isinstance(value, str) else value
    turns: list[tuple[str, str]] = []
    for number, pair in enumerate(rounds if isinstance(rounds, (list, tuple)) else [None], 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowProblem(
                f"round {number} of 'history' is not a pair", "Write [[question, answer], ...]"
            )
        turns.append((USER, clean_text(pair[0], f"the question of round {number}").strip()))
        turns.append((ASSISTANT, clean_text(pair[1], f"the answer of round {number}").strip()))
    return turns


def _from_prompt_completion(row: Row, mapping: ColumnMap) -> Example:
    """Prompt and completion as texts, or both as lists of messages (TRL's conversational kind)."""
    prompt, completion = _cell(row, mapping, "prompt"), _cell(row, mapping, "completion")
    turns: list[tuple[str, str]] = []
    for role, value, speaker in (("prompt", prompt, USER), ("completion", completion, ASSISTANT)):
        if isinstance(value, (list, tuple)):
            turns += read_turns(value, f"{role!r}")
        else:
            turns.append((speaker, _required(row, mapping, role)))
    return Example(messages=_with_system(row, mapping, turns))


def _from_pair(row: Row, mapping: ColumnMap) -> Example:
    turns = [
        (USER, _required(row, mapping, "question")),
        (ASSISTANT, _required(row, mapping, "answer")),
    ]
    return Example(messages=_with_system(row, mapping, turns))


def _from_label(row: Row, mapping: ColumnMap) -> Example:
    value = _cell(row, mapping, "label")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowProblem("'label' is not a finite number", "Fill it in or remove the row")
    if isinstance(value, (int, float)):  # bool too: True becomes the label "True"
        value = str(value)
    label = clean_text(value, f"'label' (column {mapping['label']!r})").strip()
    turns = [(USER, _required(row, mapping, "text")), (ASSISTANT, label)]
    return Example(messages=_with_system(row, mapping, turns), label=label)


def _from_text(row: Row, mapping: ColumnMap) -> Example:
    value = _cell(row, mapping, "text")
    return Example(text=clean_text(value, f"'text' (column {mapping['text']!r})"))


SYSTEM_ROLE = Role("system", ("system", "system_prompt"), required=False)
QUESTION_NAMES = (
    "question", "query", "q", "problem", "ask", "user", "human", "input", "source", "src",
    "request", "prompt", "instruction", "front", "article", "document", "text",
)  # fmt: skip
ANSWER_NAMES = (
    "answer", "response", "reply", "a", "solution", "assistant", "bot", "output", "target", "tgt",
    "completion", "result", "back", "summary", "translation", "rewrite", "corrected",
)  # fmt: skip
TEXT_NAMES = (
    "text", "content", "sentence", "review", "document", "body", "message", "comment", "tweet",
    "title", "story", "paragraph",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "sentiment", "intent", "topic", "target", "tag",
    "label_text", "emotion",
)  # fmt: skip

FORMATS: dict[str, Format] = {
    shape.id: shape
    for shape in (
        Format("messages", "OpenAI messages",
               (Role("messages", ("messages", "conversation", "conversations", "chat", "dialog",
                                  "dialogue", "turns")), SYSTEM_ROLE), _from_messages),
        Format("sharegpt", "ShareGPT conversations",
               (Role("conversations", ("conversations", "conversation", "messages")), SYSTEM_ROLE),
               _from_messages),
        Format("alpaca", "Alpaca instructions",
               (Role("instruction", ("instruction",)), Role("input", ("input",), required=False),
                Role("output", ("output", "response", "answer", "completion")), SYSTEM_ROLE,
                Role("history", ("history",), required=False)), _from_alpaca),
        Format("prompt_completion", "Prompt and completion",
               (Role("prompt", ("prompt",)), Role("completion", ("completion",)), SYSTEM_ROLE),
               _from_prompt_completion),
        Format("pairs", "Question and answer",
               (Role("question", QUESTION_NAMES), Role("answer", ANSWER_NAMES), SYSTEM_ROLE),
               _from_pair),
        Format("classification", "Text and label",
               (Role("text", TEXT_NAMES), Role("label", LABEL_NAMES), SYSTEM_ROLE), _from_label),
        Format("text", "Plain text", (Role("text", TEXT_NAMES),), _from_text),
    )
}  # fmt: skip
