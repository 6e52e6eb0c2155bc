"""Conversations in any usual spelling, as messages of one shape.

Owns: how files call the speakers and their words, what a turn must have, content in parts, and
which turns are learned. Calls of tools are read by core.format_tools. Knows nothing of columns,
formats or files; the order of the turns is core.examples' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.core.examples import ASSISTANT, SYSTEM, TOOL, USER, Message, RowProblem, clean_text
from studio.core.format_tools import calls_of, calls_written

# How files call the speakers; lower case. What is not here is an unknown role.
ROLE_SPELLINGS = {
    "system": SYSTEM, "developer": SYSTEM, "instruction": SYSTEM,
    "user": USER, "human": USER, "prompter": USER, "customer": USER, "question": USER,
    "client": USER, "person": USER, "input": USER, "prompt": USER, "student": USER,
    "assistant": ASSISTANT, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "ai": ASSISTANT,
    "agent": ASSISTANT, "answer": ASSISTANT, "chatbot": ASSISTANT, "llm": ASSISTANT,
    "claude": ASSISTANT, "gemini": ASSISTANT, "output": ASSISTANT, "response": ASSISTANT,
    "completion": ASSISTANT, "teacher": ASSISTANT, "tutor": ASSISTANT, "narrator": ASSISTANT,
    "tool": TOOL, "function": TOOL, "observation": TOOL, "tool_response": TOOL,
    "function_response": TOOL, "tool_result": TOOL, "function_result": TOOL, "tool_output": TOOL,
    "ipython": TOOL,
}  # fmt: skip
# An assistant's turn of its own whose text is the call.
CALL_ROLES = frozenset({"function_call", "tool_call", "tool_calls", "function_calls", "action"})
SPEAKER_KEYS = ("role", "from", "speaker")
SPEECH_KEYS = ("content", "value", "text")
# What a model thought before it answered; shown in the source, not learned.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def read_turns(value: Any, what: str) -> list[Message]:
    """Messages from a list of turns in any usual spelling, or RowProblem."""
    if isinstance(value, str):
        value = parse_cell(value, what)
    if value is None:
        raise RowProblem(f"{what} is missing", "Fill it in or remove the row")
    if not isinstance(value, (list, tuple)):
        raise RowProblem(f"{what} is not a list of messages", "Write a list of messages")
    if not value:
        raise RowProblem(f"{what} is an empty list", "Add the turns or remove the row")
    turns: list[Message] = []
    for number, item in enumerate(value, 1):
        turn = read_turn(item, number)
        if turns and "tool_calls" in turn and _is_call_turn(item) and _goes_on(turns[-1]):
            # "Let me look" and the call, or several calls at once, as turns of their own.
            turns[-1] = {**turns[-1], **turn, "content": turns[-1]["content"], "tool_calls": [
                *turns[-1].get("tool_calls", ()), *turn["tool_calls"]]}  # fmt: skip
        else:
            turns.append(turn)
    if any(turn["role"] == TOOL for turn in turns):
        _name_tools(turns)
    return turns


def read_turn(item: Any, number: int) -> Message:
    """One message of a turn, which is the `number`-th of its conversation (from 1)."""
    if not isinstance(item, Mapping):
        raise RowProblem(f"turn {number} is not an object", "Give each turn a role and a content")
    role = _role(item, number)
    speech = next((item[key] for key in SPEECH_KEYS if item.get(key) is not None), None)
    if role is None:
        return {"role": ASSISTANT, "content": "", "tool_calls": calls_written(speech, number)}
    if isinstance(speech, (list, tuple)):
        speech = _joined_parts(speech, number)
    if len(item) == 2 and speech is not None:  # as nearly all turns are
        return {"role": role, "content": _words(speech, role, number)}
    calls = calls_of(item, number) if role == ASSISTANT else None
    if calls and (speech is None or (isinstance(speech, str) and not speech.strip())):
        turn: Message = {"role": role, "content": ""}
    else:
        turn = {"role": role, "content": _words(speech, role, number)}
    if calls:
        turn["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if (value := item.get(key)) is not None:
            turn[key] = clean_text(value, f"the {key} of turn {number}")
    if role == ASSISTANT and not _is_learned(item.get("weight"), number):
        turn["weight"] = 0
    return turn


def parse_cell(text: str, what: str) -> Any:
    """A list written as JSON in a table's cell."""
    if not text.strip():
        raise RowProblem(f"{what} is empty", "Fill it in or remove the row")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowProblem(
            f"{what} is text, not a list of messages", "Write it as a JSON list", code="wrong_type"
        ) from None


def looks_like_turns(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, (list, tuple)) and bool(value) and is_turn(value[0])


def is_turn(value: Any) -> bool:
    """Whether a value is one turn: somebody who says or calls something."""
    return (
        isinstance(value, Mapping)
        and any(key in value for key in SPEAKER_KEYS)
        and any(key in value for key in (*SPEECH_KEYS, "tool_calls", "function_call"))
    )


def spelled_role(raw: str) -> str:
    """A role as ROLE_SPELLINGS and CALL_ROLES spell it."""
    return raw.strip().lower().replace("-", "_").replace(" ", "_")


def _role(item: Mapping[str, Any], number: int) -> str | None:
    """The speaker; None for a turn that is itself a call of a tool."""
    raw = next((item[key] for key in SPEAKER_KEYS if item.get(key) is not None), None)
    if not isinstance(raw, str):
        raise RowProblem(
            f"turn {number} has no role", "Give each turn a role and a content", code="roles"
        )
    role = ROLE_SPELLINGS.get(raw)
    if role is not None:
        return role
    spelled = spelled_role(raw)
    if spelled in CALL_ROLES:
        return None
    if spelled not in ROLE_SPELLINGS:
        raise RowProblem(
            f"turn {number} has an unknown role {raw[:40]!r}",
            "Use system, user, assistant or tool", code="roles",
        )  # fmt: skip
    return ROLE_SPELLINGS[spelled]


def _is_call_turn(item: Mapping[str, Any]) -> bool:
    return "tool_calls" not in item and "function_call" not in item


def _goes_on(turn: Message) -> bool:
    return turn["role"] == ASSISTANT


def _words(speech: Any, role: str, number: int) -> str:
    if role == TOOL:  # a tool may answer nothing, or with data
        if speech is None or speech == "":
            return ""
        if isinstance(speech, Mapping):
            speech = json.dumps(speech, ensure_ascii=False, default=str)
        if isinstance(speech, str) and not speech.strip():
            return ""
    return clean_text(speech, f"the {role} text of turn {number}")


def _is_learned(weight: Any, number: int) -> bool:
    """OpenAI's weight of an answer: 1 or nothing is learned, 0 is not."""
    if weight is None or weight in (0, 1):
        return weight is None or bool(weight)
    raise RowProblem(
        f"turn {number} has weight {str(weight)[:20]}; only 0 and 1 can be followed",
        "Write 0 or 1, or leave the weight out", code="wrong_type",
    )  # fmt: skip


def _joined_parts(parts: list[Any] | tuple[Any, ...], number: int) -> str:
    """OpenAI's list of content parts as one text."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise RowProblem(
                f"turn {number} has a part of type {str(kind)[:40]!r}; only text can be trained on",
                "Remove pictures, sound and files from the row", code="wrong_type",
            )  # fmt: skip
        texts.append(text)
    return "".join(texts)


def _name_tools(turns: list[Message]) -> None:
    """Give each tool's message the name that its call has; some templates write it."""
    names: dict[str, str] = {}
    for turn in turns:
        for call in turn.get("tool_calls") or ():
            if "id" in call:
                names[call["id"]] = call["function"]["name"]
        name = names.get(turn.get("tool_call_id", ""))
        if turn["role"] == TOOL and name is not None:
            turn.setdefault("name", name)
