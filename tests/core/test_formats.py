"""Every row format: what it becomes, and what each bad row is told."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.core.errors import DatasetError
from studio.core.examples import Example, RowProblem
from studio.core.formats import FORMATS, check_mapping, normalise
from studio.core.sniff import mapping_for

GOOD = {
    "messages": {"messages": [{"role": "user", "content": "Hi"},
                              {"role": "assistant", "content": "Hello"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"},
                                   {"from": "gpt", "value": "Hello"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "prompt_completion": {"prompt": "Hi", "completion": " Hello"},
    "pairs": {"question": "Hi", "answer": "Hello"},
    "classification": {"text": "Hi", "label": "Hello"},
    "preference": {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    "kto": {"prompt": "Hi", "completion": "Hello", "label": True},
}  # fmt: skip
TURNS = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


def norm(row, format):
    return normalise(row, format, mapping_for(format, list(row)), i=3, line=4)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("format", GOOD)
def test_each_chat_format_becomes_the_same_two_turns(format):
    example = norm(GOOD[format], format)
    assert example.messages == TURNS
    assert (example.i, example.line, example.text) == (3, 4, None)
    assert example.label == ("Hello" if format == "classification" else None)


def test_every_format_is_covered_here():
    assert set(FORMATS) == {*GOOD, "text"}


def test_text_is_kept_as_it_stands():
    assert norm({"text": " A line\n"}, "text").text == " A line\n"


def test_alpaca_joins_input_and_takes_response_system_and_history():
    row = {"instruction": "Add", "input": "1 2", "response": "3", "system": "Be brief",
           "history": [["Hi", "Hello"]]}  # fmt: skip
    example = norm(row, "alpaca")
    assert [message["role"] for message in example.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert example.messages[0]["content"] == "Be brief"
    assert example.messages[3]["content"] == "Add\n\n1 2"


def test_content_as_list_of_parts_is_joined():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    example = norm(chat(("user", "Hi"), ("assistant", parts)), "messages")
    assert example.messages == TURNS


@pytest.mark.parametrize("user", ["human", "User", "prompter", "customer"])
@pytest.mark.parametrize("bot", ["gpt", "Assistant", "model", "bot", "chatgpt"])
def test_sharegpt_accepts_usual_role_spellings(user, bot):
    row = {"conversations": [{"from": user, "value": "Hi"}, {"from": bot, "value": "Hello"}]}
    assert norm(row, "sharegpt").messages == TURNS


def test_messages_written_as_json_in_a_cell_are_read():
    row = {"messages": json.dumps(GOOD["messages"]["messages"])}
    assert norm(row, "messages").messages == TURNS


def test_prompt_and_completion_may_be_message_lists():
    row = {"prompt": [{"role": "system", "content": "S"}, TURNS[0]], "completion": [TURNS[1]]}
    example = norm(row, "prompt_completion")
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("label", "expected"), [(1, "1"), (True, "True"), (" spam ", "spam")])
def test_label_becomes_text(label, expected):
    assert norm({"text": "t", "label": label}, "classification").label == expected


PROBLEMS = [
    ("messages", {"messages": None}, "'messages' .* is missing"),
    ("messages", {"messages": []}, "empty list"),
    ("messages", {"messages": 7}, "not a list of messages"),
    ("messages", {"messages": "hello"}, "text, not a list of messages"),
    ("messages", {"messages": ["hi"]}, "turn 1 is not an object"),
    ("messages", {"messages": [{"content": "x"}]}, "turn 1 has no role"),
    ("messages", chat(("wizard", "x")), "unknown role 'wizard'"),
    ("messages", chat(("user", "a"), ("tool", "b")), "no assistant turn"),
    ("messages", chat(("user", "a"), ("tool", "b"), ("assistant", "c")),
     "out of order: turn 2 is tool, expected assistant"),
    ("messages", chat(("user", "a"), ("assistant", "b"), ("tool", "c")), "ends with a tool"),
    ("messages", chat(("user", "Hi")), "no assistant turn"),
    ("messages", chat(("user", "Hi"), ("assistant", " ")), "assistant text of turn 2 is empty"),
    ("messages", chat(("user", "Hi"), ("assistant", None)), "assistant text of turn 2 is missing"),
    ("messages", chat(("user", "Hi"), ("assistant", 5)), "assistant text of turn 2 is a number"),
    ("messages", chat(("assistant", "Hi"), ("user", "x")),
     "out of order: turn 1 is assistant, expected user"),
    ("messages", chat(("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c")),
     "out of order: turn 3 is user, expected assistant"),
    ("messages", chat(("user", "a"), ("system", "s"), ("assistant", "b")), "after the first place"),
    ("messages", chat(("user", "a"), ("assistant", "b"), ("user", "c")), "ends with the user"),
    ("messages", chat(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")),
     "type 'image_url'; only text"),
    ("messages", {"messages": [TURNS[0], {"role": "assistant", "content": None,
                                          "tool_calls": [{}]}]}, "turn 2 calls .* without a name"),
    ("messages", {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}, "every answer has weight 0"),
    ("messages", {"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]}, "weight 0.5; only 0 and 1"),
    ("messages", {"messages": [*({"role": "system", "content": "s"},), *TURNS], "system": "t"},
     "two system prompts"),
    ("alpaca", {"instruction": "Hi", "output": ""}, "'output' .* is empty"),
    ("alpaca", {"instruction": "", "output": "x"}, "'instruction' .* is empty"),
    ("alpaca", {"instruction": "a", "output": "x", "history": [["only"]]}, "not a pair"),
    ("pairs", {"question": "Hi", "answer": None}, "'answer' .* is missing"),
    ("pairs", {"question": {"a": 1}, "answer": "x"}, "is a nested object, not text"),
    ("classification", {"text": "Hi", "label": None}, "'label' .* is missing"),
    ("text", {"text": "  \n"}, "'text' .* is empty"),
    ("text", {"text": "a\ud800b"}, "broken characters"),
    ("text", {"text": "a\0b"}, "a NUL character"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "reason"), PROBLEMS)
def test_bad_row_says_reason_and_remedy(format, row, reason):
    with pytest.raises(RowProblem, match=reason) as caught:
        norm(row, format)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("format", "mapping", "message"),
    [
        ("poems", {}, "Unknown format .got 'poems'.. Allowed: messages"),
        ("pairs", {"question": "q"}, "needs a column for 'answer'.*columns q, b"),
        ("pairs", {"question": "q", "answer": "nope"}, "does not have .got 'nope'"),
        ("pairs", {"question": "q", "answer": "b", "mood": "q"}, "no role .* .got 'mood'"),
    ],
)
def test_mapping_that_does_not_fit_is_refused(format, mapping, message):
    with pytest.raises(DatasetError, match=message):
        check_mapping(format, mapping, ["q", "b"])


text = st.text(min_size=1, max_size=40).filter(lambda value: value.strip() and "\0" not in value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4), st.none() | text)
def test_clean_conversation_survives_normalise_and_json(rounds, system):
    turns = [] if system is None else [("system", system)]
    turns += [turn for user, bot in rounds for turn in (("user", user), ("assistant", bot))]
    example = norm(chat(*turns), "messages")
    assert [(m["role"], m["content"]) for m in example.messages] == turns
    again = Example.from_dict(json.loads(example.to_json()))
    assert again == example


json_value = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(json_value, min_size=5, max_size=5))
def test_any_row_becomes_an_example_or_a_row_problem(format, values):
    roles = FORMATS[format].roles
    mapping = {role.name: role.name for role in roles}
    row = {role.name: value for role, value in zip(roles, values, strict=False)}
    try:
        example = normalise(row, format, mapping)
    except RowProblem as problem:
        assert problem.reason
        return
    json.loads(example.to_json().encode("utf-8"))
    assert (example.messages is None) != (example.text is None)
