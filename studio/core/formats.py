"""The shapes that rows of a data file come in, and how each becomes an `Example`.

Owns: the list of formats with their roles (which column plays which part) and `normalise`. How a
conversation is read stands in core.turns, answers that were compared in core.format_preferences,
how a format is recognised in core.sniff. Knows nothing of files: a row is a plain mapping of
column name to value, whatever it was read from.

Column formats (alpaca, pairs, ...) become a user turn and an assistant turn, so one path through
the chat template serves all of them; blanks around a column's text are removed there, because a
leading space of a completion would be learned as part of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from studio.core.format_cells import ColumnMap, Row, cell, optional, required
from studio.core.format_preferences import from_kto, from_preference
from studio.core.format_tools import read_tools
from studio.core.turns import parse_cell, read_turns


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
    """A row shape: its roles and the function that turns a row into an Example.

    Attributes:
        one_of: roles of which one group must be there, beside the required ones.
    """

    id: str
    title: str
    roles: tuple[Role, ...]
    build: Callable[[Row, ColumnMap], Example]
    one_of: tuple[tuple[str, ...], ...] = ()

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
    example = FORMATS[format].build(row, mapping)
    return Example(example.messages, example.text, example.label, i, line, example.tools)


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
    if shape.one_of and not any(all(map(mapping.get, group)) for group in shape.one_of):
        groups = " or for ".join(" and ".join(map(repr, group)) for group in shape.one_of)
        raise DatasetError(
            f"The format {format} needs a column for {groups}",
            allowed=f"columns {', '.join(columns)}",
            remedy="Choose the column in the mapping",
        )
    for role, column in mapping.items():
        if column not in columns:
            raise DatasetError(
                f"The mapping gives {role!r} a column that the file does not have", value=column,
                allowed=f"columns {', '.join(columns)}",
            )  # fmt: skip


def _with_system(row: Row, mapping: ColumnMap, turns: list[Message]) -> tuple[Message, ...]:
    system = optional(row, mapping, "system")
    if not system:
        return conversation(turns)
    if turns[0]["role"] == SYSTEM:
        raise RowProblem(
            "there are two system prompts, a column and a message", "Keep one of the two",
            code="roles",
        )  # fmt: skip
    return conversation([{"role": SYSTEM, "content": system}, *turns])


def _pair(
    row: Row, mapping: ColumnMap, question: str, answer: str
) -> tuple[Message, ...]:  # fmt: skip
    """A question and its answer: two turns that need no look at their order."""
    asked: Message = {"role": USER, "content": question}
    answered: Message = {"role": ASSISTANT, "content": answer}
    system = optional(row, mapping, "system") if "system" in mapping else ""
    if system:
        return {"role": SYSTEM, "content": system}, asked, answered
    return asked, answered


def _from_messages(row: Row, mapping: ColumnMap) -> Example:
    role = "messages" if "messages" in mapping else "conversations"
    turns = read_turns(cell(row, mapping, role), f"{role!r} (column {mapping[role]!r})")
    tools = _tools(row, mapping) if "tools" in mapping else None
    return Example(messages=_with_system(row, mapping, turns), tools=tools)


def _tools(row: Row, mapping: ColumnMap) -> tuple[dict[str, Any], ...] | None:
    return read_tools(cell(row, mapping, "tools"), f"'tools' (column {mapping['tools']!r})")


def _from_alpaca(row: Row, mapping: ColumnMap) -> Example:
    question = required(row, mapping, "instruction")
    if "input" in mapping and (extra := optional(row, mapping, "input")):
        question = f"{question}\n\n{extra}"
    answer = required(row, mapping, "output")
    history = _history(cell(row, mapping, "history")) if "history" in mapping else None
    if not history:
        return Example(messages=_pair(row, mapping, question, answer))
    history += [{"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}]
    return Example(messages=_with_system(row, mapping, history))


def _history(value: Any) -> list[Message]:
    """Earlier rounds of an Alpaca row: a list of [question, answer] pairs."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    rounds = parse_cell(value, "'history'") if isinstance(value, str) else value
    turns: list[Message] = []
    for number, pair in enumerate(rounds if isinstance(rounds, (list, tuple)) else [None], 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowProblem(
                f"round {number} of 'history' is not a pair", "Write [[question, answer], ...]"
            )
        for role, text, what in (
            (USER, pair[0], "question"), (ASSISTANT, pair[1], "answer"),
        ):  # fmt: skip
            text = clean_text(text, f"the {what} of round {number}").strip()
            turns.append({"role": role, "content": text})
    return turns


def _from_prompt_completion(row: Row, mapping: ColumnMap) -> Example:
    """Prompt and completion as texts, or both as lists of messages (TRL's conversational kind)."""
    turns: list[Message] = []
    for role, speaker in (("prompt", USER), ("completion", ASSISTANT)):
        value = cell(row, mapping, role)
        if isinstance(value, (list, tuple)):
            turns += read_turns(value, f"{role!r}")
        else:
            turns.append({"role": speaker, "content": required(row, mapping, role)})
    tools = _tools(row, mapping) if "tools" in mapping else None
    return Example(messages=_with_system(row, mapping, turns), tools=tools)


def _from_pair(row: Row, mapping: ColumnMap) -> Example:
    question = required(row, mapping, "question")
    return Example(messages=_pair(row, mapping, question, required(row, mapping, "answer")))


def _from_label(row: Row, mapping: ColumnMap) -> Example:
    value = cell(row, mapping, "label")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowProblem("'label' is not a finite number", "Fill it in or remove the row")
    if isinstance(value, (int, float)):  # bool too: True becomes the label "True"
        value = str(value)
    label = clean_text(value, f"'label' (column {mapping['label']!r})").strip()
    return Example(messages=_pair(row, mapping, required(row, mapping, "text"), label), label=label)


def _from_text(row: Row, mapping: ColumnMap) -> Example:
    value = cell(row, mapping, "text")
    return Example(text=clean_text(value, f"'text' (column {mapping['text']!r})"))


SYSTEM_ROLE = Role("system", ("system", "system_prompt"), required=False)
TOOLS_ROLE = Role("tools", ("tools", "functions", "available_tools"), required=False)
CONVERSATION_NAMES = (
    "messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns",
)  # fmt: skip
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
    "label_text", "label_name", "emotion",
)  # fmt: skip

FORMATS: dict[str, Format] = {
    shape.id: shape
    for shape in (
        Format("messages", "OpenAI messages",
               (Role("messages", CONVERSATION_NAMES), SYSTEM_ROLE, TOOLS_ROLE), _from_messages),
        Format("sharegpt", "ShareGPT conversations",
               (Role("conversations", ("conversations", "conversation", "messages")), SYSTEM_ROLE,
                TOOLS_ROLE), _from_messages),
        Format("alpaca", "Alpaca instructions",
               (Role("instruction", ("instruction",)), Role("input", ("input",), required=False),
                Role("output", ("output", "response", "answer", "completion")), SYSTEM_ROLE,
                Role("history", ("history",), required=False)), _from_alpaca),
        Format("prompt_completion", "Prompt and completion",
               (Role("prompt", ("prompt",)), Role("completion", ("completion",)), SYSTEM_ROLE,
                TOOLS_ROLE), _from_prompt_completion),
        Format("pairs", "Question and answer",
               (Role("question", QUESTION_NAMES), Role("answer", ANSWER_NAMES), SYSTEM_ROLE),
               _from_pair),
        Format("classification", "Text and label",
               (Role("text", TEXT_NAMES), Role("label", LABEL_NAMES), SYSTEM_ROLE), _from_label),
        Format("text", "Plain text", (Role("text", TEXT_NAMES),), _from_text),
        Format("preference", "Preferences (chosen and rejected)",
               (Role("chosen", ("chosen", "preferred", "chosen_response", "response_chosen")),
                Role("rejected", ("rejected", "dispreferred", "rejected_response",
                                  "response_rejected"), required=False),
                Role("prompt", (*CONVERSATION_NAMES, "prompt", "question", "instruction", "query"),
                     required=False), Role("input", ("input",), required=False), SYSTEM_ROLE,
                TOOLS_ROLE), from_preference),
        Format("kto", "Good and bad answers (KTO)",
               (Role("messages", CONVERSATION_NAMES, required=False),
                Role("prompt", ("prompt", "question", "instruction", "query"), required=False),
                Role("input", ("input",), required=False),
                Role("completion", ("completion", "answer", "response", "output"), required=False),
                Role("label", ("label", "kto_tag", "desirable")), SYSTEM_ROLE, TOOLS_ROLE),
               from_kto, one_of=(("messages",), ("prompt", "completion"))),
    )
}  # fmt: skip
