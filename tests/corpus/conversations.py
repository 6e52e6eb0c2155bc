"""Rows of the known formats with something wrong in them."""

from __future__ import annotations

import json
from typing import Any

from tests.corpus.case import Case, keep, lines, refuse

U, A, S = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}, {
    "role": "system", "content": "Be kind"}  # fmt: skip
GOOD = {"messages": [U, A]}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
PROMPT = {"prompt": "a", "completion": "b"}
CHOSEN = {**PROMPT, "chosen": "b", "rejected": "c"}
CHOSEN.pop("completion")
VERDICT = {**PROMPT, "label": True}
CALL = {"name": "f", "arguments": {"a": 1}}
FUNCTION = {"name": "f", "description": "Adds.", "parameters": {}}
SST = [{"text": f"film {n}", "label": "good" if n % 2 else "bad"} for n in range(12)]


def chat(name: str, turns: Any, reason: str) -> Case:
    """Two good rows and one that must be left out."""
    return keep(f"chat-{name}.jsonl", lines(GOOD, GOOD, {"messages": turns}), 3, {reason: 1})


def chat_kept(name: str, *turns: Any, last: str = "Yo") -> Case:
    """A row that is unusual and good."""
    return keep(f"chat-{name}.jsonl", lines(GOOD, {"messages": list(turns)}), 2, last=last)


def user(**more: Any) -> dict[str, Any]:
    return {"role": "user", **more}


CHATS = [
    chat("assistant-first", [A, U, A], "out of order: turn 1 is assistant"),
    chat("two-users", [U, U, A], "out of order: turn 2 is user"),
    chat("two-answers", [U, A, A], "out of order: turn 3 is assistant"),
    chat("system-second", [U, S, A], "system message stands after the first place"),
    chat("two-systems", [S, S, U, A], "system message stands after the first place"),
    chat("only-system", [S], "no assistant turn"),
    chat("only-user", [U], "no assistant turn"),
    chat("ends-with-user", [U, A, U], "ends with the user"),
    chat("only-answer", [A], "out of order: turn 1"),
    chat("empty-content", [user(content=""), A], "the user text of turn 1 is empty"),
    chat("blank-answer", [U, {"role": "assistant", "content": " \n"}], "assistant text of turn 2"),
    chat("null-content", [user(content=None), A], "the user text of turn 1 is missing"),
    chat("no-content", [user(), A], "the user text of turn 1 is missing"),
    chat("number-content", [user(content=5), A], "the user text of turn 1 is a number"),
    chat("object-content", [user(content={"a": 1}), A], "is a nested object"),
    chat("picture-part", [user(content=[{"type": "image_url", "image_url": "http://x"}]), A],
         "a part of type 'image_url'"),
    chat("part-without-text", [user(content=[{"type": "text"}]), A], "a part of type 'text'"),
    chat("empty-parts", [user(content=[]), A], "the user text of turn 1 is empty"),
    chat("null-part", [user(content=[None]), A], "a part of type"),
    chat("tool-after-user", [U, {"role": "tool", "content": "4"}, A], "turn 2 is tool"),
    chat("tool-at-the-end", [U, A, {"role": "tool", "content": "4"}], "ends with a tool"),
    chat("tool-calls", [U, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
         "calls a tool without a name"),
    chat("tool-call-no-reply", [U, {**A, "tool_calls": [CALL]}, U, A], "turn 3 is user"),
    chat("tool-call-text", [U, {**A, "tool_calls": "f(1)"}], "not valid JSON"),
    chat("tool-call-number", [U, {**A, "tool_calls": 7}], "in an unknown way"),
    chat("tool-arguments-broken", [U, {**A, "tool_calls": [{**CALL, "arguments": "{"}]}],
         "not valid JSON"),
    chat("tool-arguments-list", [U, {**A, "tool_calls": [{**CALL, "arguments": [1]}]}],
         "are no object"),
    chat("tool-name-broken", [U, {**A, "tool_calls": [{"name": "\ud800"}]}], "broken characters"),
    chat("function-call", [U, {**A, "function_call": {}}, {"role": "function"}], "ends with a"),
    chat("weight-half", [U, {**A, "weight": 0.5}], "only 0 and 1"),
    chat("weight-text", [U, {**A, "weight": "0"}], "only 0 and 1"),
    chat("name-number", [{**U, "name": 5}, A], "the name of turn 1 is a number"),
    chat("unknown-role", [{"role": "wizard", "content": "a"}, A], "unknown role 'wizard'"),
    chat("role-with-markup", [{"role": "<b>\u202e\n", "content": "a"}, A], "unknown role"),
    chat("number-role", [{"role": 1, "content": "a"}, A], "turn 1 has no role"),
    chat("no-role", [{"content": "a"}, A], "turn 1 has no role"),
    chat("weight-0", [U, {**A, "weight": 0}], "every answer has weight 0"),
    chat("turn-is-text", ["Hi", "Yo"], "turn 1 is not an object"),
    chat("turn-is-null", [U, None], "turn 2 is not an object"),
    chat("turn-is-list", [[U, A]], "turn 1 is not an object"),
    chat("object", {"role": "user"}, "is not a list of messages"),
    chat("number", 7, "is not a list of messages"),
    chat("null", None, "is missing"),
    chat("empty-list", [], "is an empty list"),
    chat("text", "Hi", "is text, not a list"),
    chat("text-empty", "", "is empty"),
    chat("text-list-of-numbers", "[1]", "turn 1 is not an object"),
    chat("text-nested", "[" * 50_000, "is text, not a list"),
    chat("broken-characters", [user(content="\ud800"), A], "broken characters"),
    chat_kept("text-parts", user(content=[{"type": "text", "text": "Hi"}, "there"]), A),
    chat_kept("answer-in-parts", U, {"role": "assistant", "content": [
        {"type": "text", "text": "Y"}, {"type": "text", "text": "o"}]}),
    chat_kept("roles-spelled-oddly", {"role": " USER ", "content": "Hi"},
              {"role": "Assistant", "content": "Yo"}),
    chat_kept("developer-role", {"role": "developer", "content": "x"}, U, A),
    chat_kept("from-and-role-mixed", HUMAN, A),
    chat_kept("tool-role", U, A, {"role": "tool", "content": "4"}, A),
    chat_kept("tool-calls-good", U, {"role": "assistant", "content": None, "tool_calls": [CALL]},
              {"role": "tool", "content": None}, A),
    chat_kept("tool-call-last", U, {"role": "assistant", "tool_calls": [CALL]}, last=""),
    chat_kept("function-call-good", U, {**A, "function_call": {"name": "f"}}),
    chat_kept("function-call-role", U, {"role": "function_call", "content": '{"name": "f"}'},
              {"role": "observation", "content": {"sum": 3}}, A),
    chat_kept("weight-0-and-1", U, {**A, "weight": 0}, U, {**A, "weight": 1}),
    keep("chat-tools-broken.jsonl", lines(*[{**GOOD, "tools": [FUNCTION]}] * 2,
                                          {**GOOD, "tools": "{"}), 3, {"not valid JSON": 1}),
    keep("chat-tools-without-name.jsonl", lines(*[{**GOOD, "tools": [FUNCTION]}] * 2,
                                                {**GOOD, "tools": [{}]}), 3, {"has no name": 1}),
    keep("chat-tools-null.jsonl", lines({**GOOD, "tools": [FUNCTION]}, {**GOOD, "tools": None}), 2,
         note="cannot write tools"),
    chat_kept("5000-turns", *([U, A] * 2500)),
    chat_kept("long-answer", U, {"role": "assistant", "content": "x" * 2_000_000},
              last="x" * 2_000_000),
    keep("chat-system-column-too.jsonl", lines(GOOD, {"messages": [S, U, A], "system": "x"}), 2,
         {"two system prompts": 1}),
    refuse("chat-all-without-answer.jsonl", lines(*[{"messages": [U]}] * 3), "no assistant turn",
           line=1),
    refuse("chat-only-tools.jsonl", lines({"messages": [U, {**A, "tool_calls": [1]}]}),
           "calls a tool without a name", line=1),
]  # fmt: skip


def shared(name: str, turns: Any, reason: str) -> Case:
    good = {"conversations": [HUMAN, GPT]}
    rows = lines(good, good, {"conversations": turns})
    return keep(f"sharegpt-{name}.jsonl", rows, 3, {reason: 1})


def alpaca(name: str, reason: str, **changed: Any) -> Case:
    rows = lines(ALPACA, ALPACA, {**ALPACA, **changed})
    return keep(f"alpaca-{name}.jsonl", rows, 3, {reason: 1} if reason else {})


OTHERS = [
    shared("no-value", [{"from": "human"}, GPT], "the user text of turn 1 is missing"),
    shared("no-from", [{"value": "Hi"}, GPT], "turn 1 has no role"),
    shared("number-value", [{"from": "human", "value": 1}, GPT], "is a number"),
    shared("gpt-first", [GPT, HUMAN, GPT], "out of order"),
    shared("observation", [HUMAN, {"from": "observation", "value": "x"}, GPT], "turn 2 is tool"),
    shared("call-no-json", [HUMAN, {"from": "function_call", "value": "f(1)"}, GPT],
           "not valid JSON"),
    shared("call-null", [HUMAN, {"from": "function_call", "value": None}, GPT], "unknown way"),
    alpaca("output-null", "'output' (column 'output') is missing", output=None),
    alpaca("output-number", "is a number, not text", output=3),
    alpaca("output-empty", "is empty", output=""),
    alpaca("instruction-list", "is a list, not text", instruction=["a"]),
    alpaca("input-null", "", input=None),
    alpaca("input-number", "'input' (column 'input') is a number", input=12),
    alpaca("history", "", history=[["a", "b"]]),
    alpaca("history-triple", "round 1 of 'history' is not a pair", history=[["a", "b", "c"]]),
    alpaca("history-object", "round 1 of 'history' is not a pair", history={"a": "b"}),
    alpaca("history-null-answer", "the answer of round 1 is missing", history=[["a", None]]),
    keep("prompt-no-completion.jsonl", lines(PROMPT, PROMPT, {"prompt": "a"}), 3,
         {"'completion' (column 'completion') is missing": 1}),
    keep("prompt-numbers.jsonl", lines(PROMPT, PROMPT, {"prompt": 1, "completion": 2}), 3,
         {"is a number": 1}),
    keep("prompt-lists.jsonl", lines(*[{"prompt": [U], "completion": [A]}] * 2), 2, last="Yo"),
    keep("prompt-lists-and-texts.jsonl", lines(PROMPT, {"prompt": [U], "completion": [A]}), 2),
    keep("prompt-list-of-numbers.jsonl", lines(PROMPT, {"prompt": [1], "completion": "b"}), 2,
         {"turn 1 is not an object": 1}),
    keep("preferences.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), 1, last="b",
         note="rejected ones stay in the source"),
    keep("preferences-conversations.json",
         json.dumps([{"conversations": [HUMAN], "chosen": GPT, "rejected": HUMAN}] * 2), 2,
         last="Yo"),
    keep("preferences-both-whole.jsonl", lines({"chosen": [U, A], "rejected": [U, U]}), 1),
    keep("preferences-mixed.jsonl", lines(CHOSEN, CHOSEN, {**CHOSEN, "chosen": None},
                                          {**CHOSEN, "chosen": []}, {**CHOSEN, "chosen": 3},
                                          {**CHOSEN, "prompt": [U, A]}), 6,
         {"is missing": 1, "empty list": 1, "is a number": 1, "turn 3 is assistant": 1}),
    keep("preferences-no-rejected.jsonl", lines(CHOSEN, {**CHOSEN, "rejected": None}), 2),
    refuse("preferences-none-chosen.jsonl", lines({**CHOSEN, "chosen": ""}), "is empty", line=1),
    keep("kto.jsonl", lines(VERDICT, {**VERDICT, "label": False}), 2, {"labelled as bad": 1},
         note="false are left out"),
    keep("kto-messages.json", json.dumps([{**GOOD, "label": n % 2 == 0} for n in range(4)]), 4,
         {"labelled as bad": 2}, last="Yo"),
    keep("kto-label-missing.jsonl", lines(VERDICT, {**VERDICT, "label": None}), 2,
         {"is missing": 1}),
    keep("kto-table.csv", "prompt,completion,label\na,b,True\nc,d,False\ne,f,TRUE\n", 3,
         {"labelled as bad": 1}, last="f"),
    refuse("kto-all-bad.jsonl", lines({**VERDICT, "label": False}), "labelled as bad", line=1),
    keep("labels-named-beside.jsonl", lines(*({**row, "label_text": row["label"], "label": n % 2}
                                              for n, row in enumerate(SST))), 12, last="good"),
    keep("labels-null.jsonl", lines(*SST, {"text": "x", "label": None}), 13, {"is missing": 1}),
    keep("labels-nan.jsonl", lines(*SST) + '{"text": "x", "label": NaN}\n', 13,
         {"not a finite number": 1}),
    keep("labels-list.jsonl", lines(*SST, {"text": "x", "label": ["a"]}), 13, {"is a list": 1}),
    keep("labels-numbers.jsonl", lines(*({**row, "label": len(row["label"])} for row in SST)), 12,
         last="4", note="the labels are numbers (3, 4)"),
    keep("formats-mixed.jsonl", lines(GOOD, GOOD, ALPACA, PROMPT), 4, {"is missing": 2}),
    refuse("columns-of-numbers.jsonl", lines(*({"a": n, "b": n} for n in range(3))),
           "None of the known formats"),
]  # fmt: skip

CASES: list[Case] = [*CHATS, *OTHERS]
