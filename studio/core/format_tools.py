"""Tools of a conversation: the functions that may be called, and the calls.

Owns: the one shape of both (that of OpenAI's and transformers' chat templates) and reading them as
objects or as JSON text, as files have them. Knows nothing of turns or columns.

    tools:      [{"type": "function", "function": {"name": ..., "parameters": {...}}}, ...]
    tool_calls: [{"type": "function", "function": {"name": ..., "arguments": {...}}, "id": ...}]

Arguments become an object even where the file has them as text: templates write them as JSON, and
would write a text with its quotes escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.core.examples import RowProblem, clean_text

_AS_JSON = "Write it as JSON or leave the row out"


def read_tools(value: Any, what: str) -> tuple[dict[str, Any], ...] | None:
    """The functions that a row offers, or None where it offers none. Raises RowProblem."""
    if value is None or value == "" or value == []:
        return None
    found = _parsed(value, what) if isinstance(value, str) else value
    if found is None:
        return None
    tools = [found] if isinstance(found, Mapping) else found
    if not isinstance(tools, (list, tuple)):
        raise _wrong(f"{what} is not a list of tools", "Write a list of function schemas")
    return tuple(_tool(tool, number, what) for number, tool in enumerate(tools, 1)) or None


def _tool(value: Any, number: int, what: str) -> dict[str, Any]:
    value = _parsed(value, f"tool {number} of {what}") if isinstance(value, str) else value
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise _wrong(
            f"tool {number} of {what} has no name", "Give each tool a name and its parameters"
        )
    _writable(value, f"tool {number} of {what}")
    return dict(value) if inner is not value else {"type": "function", "function": dict(value)}


def calls_of(item: Mapping[str, Any], number: int) -> list[dict[str, Any]] | None:
    """The calls beside an answer's words, None where there are none; an old `function_call` too."""
    calls = item.get("tool_calls")
    if not calls:
        calls = item.get("function_call") and [item["function_call"]]
    if not calls:
        return None
    if isinstance(calls, str):
        calls = _parsed(calls, f"tool_calls of turn {number}")
    return _calls(calls, number)


def calls_written(text: Any, number: int) -> list[dict[str, Any]]:
    """The calls of a turn whose words are the call: one object or a list, mostly as JSON text."""
    value = _parsed(text, f"the call in turn {number}") if isinstance(text, str) else text
    return _calls([value] if isinstance(value, Mapping) else value, number)


def _calls(calls: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)) or not calls:
        raise _wrong(f"turn {number} calls tools in an unknown way", "Write a list of tool calls")
    return [_call(call, number) for call in calls]


def _call(value: Any, number: int) -> dict[str, Any]:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if inner is None or not isinstance(name, str) or not name.strip():
        raise _wrong(
            f"turn {number} calls a tool without a name", "Give the call a name and arguments"
        )
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"arguments of the call in turn {number}") \
            if arguments.strip() else {}  # fmt: skip
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise _wrong(
            f"the arguments of the call in turn {number} are no object",
            "Write them as a JSON object",
        )
    _writable(arguments, f"the call in turn {number}")
    call: dict[str, Any] = {
        "type": "function",
        "function": {"name": clean_text(name, f"the tool of turn {number}"),
                     "arguments": dict(arguments)},
    }  # fmt: skip
    if isinstance(value.get("id"), str):
        call["id"] = clean_text(value["id"], f"the id of a call in turn {number}")
    return call


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise _wrong(f"{what}: not valid JSON", _AS_JSON) from None


def _writable(value: Any, what: str) -> None:
    """Raise RowProblem unless the value can stand in data.jsonl."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise _wrong(f"{what} holds what JSON cannot write", _AS_JSON) from None


def _wrong(reason: str, remedy: str) -> RowProblem:
    return RowProblem(reason, remedy, code="wrong_type")
