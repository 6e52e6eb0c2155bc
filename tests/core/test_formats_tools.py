"""Tools, calls, weights and names in conversations, in every spelling that files use."""

import json

import pytest

from studio.core.checks import left_out_check
from studio.core.examples import Example, RowProblem
from studio.core.format_notes import notes_of
from studio.core.formats import normalise
from studio.core.sniff import mapping_for, sniff
from studio.core.turns import CALL_ROLES, ROLE_SPELLINGS

SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "c1"}
ASKED = {"role": "user", "content": "1 and 2?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SAID = {"role": "tool", "content": "3", "tool_call_id": "c1"}
ANSWER = {"role": "assistant", "content": "It is 3."}
TURNS = [ASKED, CALLS, SAID, ANSWER]


def norm(row, format="messages"):
    return normalise(row, format, mapping_for(format, list(row)), i=1)


def test_a_conversation_with_tools_keeps_schemas_calls_and_answers():
    example = norm({"messages": TURNS, "tools": [TOOL]})
    assert example.tools == (TOOL,)
    assert example.messages == (
        ASKED, {**CALLS, "content": ""}, {**SAID, "name": "add"}, ANSWER,
    )  # fmt: skip
    assert Example.from_dict(json.loads(example.to_json())) == example


@pytest.mark.parametrize(
    "tools", [[SCHEMA], [TOOL], json.dumps([SCHEMA]), json.dumps(TOOL), [json.dumps(TOOL)], SCHEMA]
)
def test_schemas_are_read_in_every_spelling(tools):
    assert norm({"messages": TURNS, "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", [], "[]", "null"])
def test_a_row_may_offer_no_tools(tools):
    assert norm({"messages": [ASKED, ANSWER], "tools": tools}).tools is None


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"tool_calls": [{"name": "add", "arguments": {"a": 1}}]},
        {"content": "", "tool_calls": json.dumps([{"name": "add", "arguments": {"a": 1}}])},
        {"content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
    ],
)
def test_calls_are_read_in_every_spelling(turn):
    example = norm({"messages": [ASKED, {"role": "assistant", **turn}]})
    assert example.messages[1] == {
        "role": "assistant", "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "reply"),
    [(c, r) for c in sorted(CALL_ROLES)[:2] for r in ("observation", "function_response", "Tool")],
)
def test_sharegpt_calls_and_observations(call, reply):
    turns = [("human", "1 and 2?"), ("gpt", "Let me see."),
             (call, '{"name": "add", "arguments": {"a": 1}}'),
             (call, '{"name": "add", "arguments": "{\\"a\\": 2}"}'), (reply, "3"), (reply, ""),
             ("gpt", "It is 3.")]  # fmt: skip
    row = {"conversations": [{"from": f, "value": v} for f, v in turns],
           "tools": json.dumps([SCHEMA])}  # fmt: skip
    example = norm(row, "sharegpt")
    assert [m["role"] for m in example.messages] == [
        "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip
    assert example.messages[1]["content"] == "Let me see."
    found = [call["function"]["arguments"] for call in example.messages[1]["tool_calls"]]
    assert found == [{"a": 1}, {"a": 2}] and example.tools == (TOOL,)


def test_hermes_writes_its_calls_into_the_text():
    turns = [ASKED, {"role": "assistant", "content": '<tool_call>{"name": "add"}</tool_call>'},
             {"role": "tool", "content": "3"}, ANSWER]  # fmt: skip
    assert len(norm({"messages": turns}).messages) == 4


@pytest.mark.parametrize("spelling", ROLE_SPELLINGS)
def test_every_role_spelling_in_any_case(spelling):
    row = {"messages": [{"role": f" {spelling.upper()}", "content": "x"}]}
    with pytest.raises(RowProblem) as caught:
        norm(row)
    assert "unknown role" not in caught.value.reason  # one turn alone is no conversation


def test_weight_0_is_kept_where_another_answer_is_learned():
    turns = [ASKED, {**ANSWER, "weight": 0}, ASKED, {**ANSWER, "weight": 1}]
    assert [m.get("weight") for m in norm({"messages": turns}).messages] == [None, 0, None, None]


def test_names_are_kept():
    turns = [{**ASKED, "name": "Ann"}, ANSWER]
    assert norm({"messages": turns}).messages[0]["name"] == "Ann"


BAD = [
    ([ASKED, {**CALLS, "tool_calls": [{"function": {"name": ""}}]}], "without a name"),
    ([ASKED, {**CALLS, "tool_calls": {"name": "add"}}], "in an unknown way"),
    ([ASKED, {**CALLS, "tool_calls": [{"name": "add", "arguments": "{oops"}]}], "not valid JSON"),
    ([ASKED, {**CALLS, "tool_calls": [{"name": "add", "arguments": [1]}]}], "are no object"),
    ([ASKED, {**CALLS, "tool_calls": [{"name": "a", "arguments": {"x": float("nan")}}]}],
     "JSON cannot write"),
    ([ASKED, CALLS, ASKED, ANSWER], "turn 3 is user, expected tool"),
    ([ASKED, CALLS, SAID], "ends with a tool"),
    ([{"role": "system", "content": "s"}, SAID, ANSWER], "turn 2 is tool, expected user"),
    ([ASKED, {"role": "function_call", "content": "add(1)"}], "not valid JSON"),
    ([ASKED, {**ANSWER, "name": 7}], "the name of turn 2 is a number"),
    ([ASKED, {**SAID, "content": 7}, ANSWER], "the tool text of turn 2 is a number"),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "reason"), BAD)
def test_bad_tool_use_says_reason_remedy_and_check(turns, reason):
    with pytest.raises(RowProblem, match=reason) as caught:
        norm({"messages": turns})
    assert caught.value.remedy and left_out_check(caught.value) != "unreadable"


@pytest.mark.parametrize(
    ("tools", "reason"),
    [("{oops", "not valid JSON"), (7, "not a list of tools"), ([7], "tool 1 .* has no name"),
     ([{"name": "f", "parameters": {"x": float("inf")}}], "JSON cannot write")],
)  # fmt: skip
def test_bad_schemas_are_named(tools, reason):
    with pytest.raises(RowProblem, match=reason):
        norm({"messages": TURNS, "tools": tools})


def test_notes_tell_of_tools_weights_and_reasoning():
    turns = [*TURNS, ASKED, {**ANSWER, "weight": 0, "reasoning_content": "hm"}]
    rows = [{"messages": turns, "tools": [TOOL]}]
    found = sniff(rows, ["messages", "tools"])
    assert found.mapping == {"messages": "messages", "tools": "tools"}
    notes = " ".join(notes_of("messages", found.mapping, rows))
    assert "chat template cannot write tools" in notes and "weight 0" in notes
    assert "reasoning_content" in notes
    assert notes_of("messages", {"messages": "m"}, [{"m": [ASKED, ANSWER]}]) == []
