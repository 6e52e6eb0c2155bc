"""Answers that were compared: chosen and rejected ones (DPO), good and bad ones (KTO).

Owns: which answer of such a row is learned. This program trains on answers alone, so of a
comparison the chosen answer is learned, and of answers marked good or bad the good ones. What was
rejected stays in the source file; a row whose only answer is bad is left out with that reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
from studio.core.format_tools import read_tools
from studio.core.turns import is_turn, read_turn, read_turns

UNWANTED = "unwanted"
_YES = frozenset({"true", "1", "1.0", "yes", "good", "desirable", "chosen"})
_NO = frozenset({"false", "0", "0.0", "no", "bad", "undesirable", "rejected"})
# Transcripts as in Anthropic's hh-rlhf, each speaker on a paragraph of its own.
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant): ?")


def from_preference(row: Row, mapping: ColumnMap) -> Example:
    """The prompt with the chosen answer."""
    prompt, chosen = _prompt(row, mapping), cell(row, mapping, "chosen")
    what = f"'chosen' (column {mapping['chosen']!r})"
    if is_turn(chosen):
        answer = [read_turn(chosen, len(prompt) + 1)]
    elif isinstance(chosen, (list, tuple)):
        answer = read_turns(chosen, what)
    else:
        text = clean_text(chosen, what).strip()
        answer = _transcript(text) if not prompt else []
        if not answer and not prompt:
            return Example(text=text)
        answer = answer or [{"role": ASSISTANT, "content": text}]
    # Whole conversations stand under `chosen` in many files, the prompt in front of them again.
    turns = answer if answer[0]["role"] in (SYSTEM, USER) else [*prompt, *answer]
    return _example(row, mapping, turns)


def from_kto(row: Row, mapping: ColumnMap) -> Example:
    """A conversation that was found good; RowProblem for one that was found bad."""
    if not _is_good(cell(row, mapping, "label"), f"'label' (column {mapping['label']!r})"):
        raise RowProblem(
            "the answer is labelled as bad, so it is not learned",
            "Nothing is to be done; relabel the row if it is good", code=UNWANTED,
        )  # fmt: skip
    if "messages" in mapping and cell(row, mapping, "messages") is not None:
        what = f"'messages' (column {mapping['messages']!r})"
        return _example(row, mapping, read_turns(cell(row, mapping, "messages"), what))
    if not mapping.get("completion"):
        raise RowProblem("'messages' is missing", "Fill it in or remove the row", code="empty")
    completion = cell(row, mapping, "completion")
    if isinstance(completion, (list, tuple)):
        answer = read_turns(completion, f"'completion' (column {mapping['completion']!r})")
    else:
        answer = [{"role": ASSISTANT, "content": required(row, mapping, "completion")}]
    return _example(row, mapping, [*_prompt(row, mapping), *answer])


def _example(row: Row, mapping: ColumnMap, turns: list[Message]) -> Example:
    system = optional(row, mapping, "system")
    if system and turns[0]["role"] != SYSTEM:
        turns = [{"role": SYSTEM, "content": system}, *turns]
    tools = read_tools(cell(row, mapping, "tools"), "'tools'")
    return Example(messages=conversation(turns), tools=tools)


def _prompt(row: Row, mapping: ColumnMap) -> list[Message]:
    """The turns in front of the answer; none where the row has no prompt of its own."""
    value = cell(row, mapping, "prompt")
    if value is None:
        return []
    what = f"'prompt' (column {mapping['prompt']!r})"
    if isinstance(value, (list, tuple)):
        return read_turns(value, what)
    if isinstance(value, Mapping):
        return [read_turn(value, 1)]
    text, extra = clean_text(value, what).strip(), optional(row, mapping, "input")
    return [{"role": USER, "content": f"{text}\n\n{extra}" if extra else text}]


def _transcript(text: str) -> list[Message]:
    """The turns of a written conversation; none where the text is no transcript."""
    if not text.startswith("Human:"):
        return []
    pieces = _TRANSCRIPT.split(text)[1:]
    turns = []
    for who, said in zip(pieces[::2], pieces[1::2], strict=True):
        role = USER if who == "Human" else ASSISTANT
        content = clean_text(said, f"the {role} text of turn {len(turns) + 1}").strip()
        turns.append({"role": role, "content": content})
    return turns


def is_verdict(value: Any) -> bool:
    """Whether a value can only mean good or bad: true, false, or their names."""
    return isinstance(value, bool) or (
        isinstance(value, str) and value.strip().lower() in ("true", "false")
    )


def _is_good(value: Any, what: str) -> bool:
    word = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else None
    if word in _YES or word in _NO:
        return word in _YES
    if value is None or word == "":
        raise RowProblem(f"{what} is missing", "Write true or false", code="empty")
    raise RowProblem(f"{what} is neither true nor false", "Write true or false", code="wrong_type")
