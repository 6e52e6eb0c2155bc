"""Broken conversations as turns to be corrected: what is shown of them, what is kept."""

import pytest

from studio.core.examples import RowProblem
from studio.core.turn_edits import MAX_TURNS, TurnEdit, editable_turns, rebuilt
from studio.core.turns import read_turns

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


def as_shown(value):
    return [TurnEdit(n, t.role, t.text, t.extras) for n, t in enumerate(editable_turns(value))]


@pytest.mark.parametrize("value", [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}],
    [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    [{"speaker": "User ", "text": "a"}, {"speaker": "AI", "text": "b"}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
     {"role": "assistant", "content": None, "tool_calls": [CALL]},
     {"role": "tool", "content": {"seen": ["moon"]}, "tool_call_id": "1"},
     {"role": "assistant", "content": "The moon."}],
    [{"from": "human", "value": "a"}, {"from": "function_call", "value": {"name": "look"}},
     {"from": "observation", "value": ""}, {"from": "gpt", "value": "b"}],
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
])  # fmt: skip
def test_turns_that_nobody_changes_are_read_as_before(value):
    assert read_turns(rebuilt(value, as_shown(value)), "it") == read_turns(value, "it")


@pytest.mark.parametrize("value", [
    None, 7, "", "words", "{", {}, {"role": "user", "content": "a"}, [], [1], [["a", "b"]],
    [{"role": "user", "content": "a"}, None], [{"author": "a", "message": "b"}],
    [{"role": "user", "content": "a"}] * (MAX_TURNS + 1),
])  # fmt: skip
def test_what_has_no_shape_of_a_conversation_has_no_turns(value):
    assert editable_turns(value) is None


def test_every_broken_turn_says_what_is_wrong_with_it():
    turns = editable_turns([
        "Hello?", {"role": "user"}, {"role": "user", "content": 4}, {"content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url"}]},
        {"role": "user", "content": "fine"},
    ])  # fmt: skip
    assert [turn.problem for turn in turns] == [
        "turn 1 has no role", "the user text of turn 2 is missing",
        "the user text of turn 3 is a number, not text", "turn 4 has no role",
        "turn 5 has a part of type 'image_url'; only text can be trained on", "",
    ]  # fmt: skip
    assert [turn.text for turn in turns] == ["Hello?", "", "4", "b", "See", "fine"]
    assert [turn.lost for turn in turns] == ["", "", "", "", "image_url", ""]


def test_a_corrected_turn_keeps_what_has_no_box_and_loses_what_cannot_be_learned():
    value = [{"role": "user", "content": [{"text": "See"}, {"type": "image_url"}], "id": 3}]
    assert rebuilt(value, as_shown(value)) == [{"role": "user", "content": "See", "id": 3}]
    value = [{"role": "user", "content": {"a": 1}}]
    assert rebuilt(value, as_shown(value)) == value  # refused again, not learned as JSON
    assert rebuilt(["Hi"], [TurnEdit(0, "user", "Hi")]) == [{"role": "user", "content": "Hi"}]


def test_boxes_that_hold_json_are_read_as_json():
    value = [{"role": "assistant", "content": "", "tool_calls": "[{", "weight": 0.5}]
    [turn] = editable_turns(value)
    assert turn.extras == {"tool_calls": "[{", "weight": "0.5"}
    mended = TurnEdit(0, "assistant", "", {"tool_calls": '[{"name": "look"}]', "weight": "1"})
    [message] = read_turns(rebuilt(value, [mended]), "it")
    assert message["tool_calls"][0]["function"]["name"] == "look" and "weight" not in message
    emptied = TurnEdit(0, "assistant", "Moon.", {"tool_calls": " ", "weight": ""})
    assert rebuilt(value, [emptied]) == [{"role": "assistant", "content": "Moon."}]
    with pytest.raises(RowProblem, match="tool_calls of turn 1 is not valid JSON"):
        rebuilt(value, [TurnEdit(0, "assistant", "", {"tool_calls": "[{}"})])
    with pytest.raises(RowProblem, match="turn 1 is not in the row"):
        rebuilt(value, [TurnEdit(1, "assistant", "b")])
