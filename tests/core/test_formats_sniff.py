"""Detection of the format by content, with its reason."""

import pytest

from studio.core.sniff import UnknownFormatError, mapping_for, sniff

ROLE_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FROM_TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
REVIEWS = [{"c1": f"a film number {i}", "c2": str(i % 2)} for i in range(12)]

CASES = [
    ([{"messages": ROLE_TURNS}], "messages", {"messages": "messages"}, "'role' and 'content'"),
    ([{"conversations": ROLE_TURNS, "id": 1}], "messages", {"messages": "conversations"}, "role"),
    ([{"Chat": FROM_TURNS, "system": "s"}], "sharegpt",
     {"conversations": "Chat", "system": "system"}, "'from' and 'value'"),
    ([{"messages": '[{"role": "user", "content": "a"}]'}], "messages", {"messages": "messages"},
     "role"),
    ([{"instruction": "a", "input": "", "response": "b"}], "alpaca",
     {"instruction": "instruction", "output": "response", "input": "input"}, "'response'"),
    ([{"prompt": "a", "completion": "b"}], "prompt_completion",
     {"prompt": "prompt", "completion": "completion"}, "'prompt' and"),
    ([{"Question": "a", "Answer": "b", "url": "c"}], "pairs",
     {"question": "Question", "answer": "Answer"}, "'Question'"),
    ([{"query": "a", "response": "b"}], "pairs", {"question": "query", "answer": "response"}, ""),
    ([{"text": "a", "summary": "b"}], "pairs", {"question": "text", "answer": "summary"}, ""),
    ([{"text": f"t{i}", "label": i % 2} for i in range(8)], "classification",
     {"text": "text", "label": "label"}, "2 labels"),
    ([{"Review": f"t{i}", "sentiment": "good"} for i in range(8)], "classification",
     {"text": "Review", "label": "sentiment"}, "1 label"),
    (REVIEWS, "classification", {"text": "c1", "label": "c2"}, "only 2 different values"),
    ([{"text": f"t{i}", "tone": "ab"[i % 2]} for i in range(12)], "classification",
     {"text": "text", "label": "tone"}, "only 2"),
    ([{"text": "a", "url": "b", "n": 3}], "text", {"text": "text"}, "holds text"),
    ([{"line": "a"}], "text", {"text": "line"}, "only column"),
    ([{"left": f"l{i}", "right": f"r{i}"} for i in range(9)], "pairs",
     {"question": "left", "answer": "right"}, "a guess"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "format", "mapping", "reason"), CASES)
def test_format_is_detected_with_a_reason(rows, format, mapping, reason):
    found = sniff(rows)
    assert (found.format, found.mapping) == (format, mapping)
    assert reason in found.reasons[0]


def test_bad_rows_in_front_do_not_hide_the_format():
    rows = [{"messages": None}, {"messages": []}, *[{"messages": ROLE_TURNS}] * 5]
    assert sniff(rows).format == "messages"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1, "b": 2, "c": 3}], "None of the known formats.*'a, b, c'.*by hand"),
        ([{}], "no columns"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(rows, message):
    with pytest.raises(UnknownFormatError, match=message) as caught:
        sniff(rows)
    assert caught.value.columns == list(rows[0])


def test_mapping_for_a_chosen_format_never_uses_a_column_twice():
    assert mapping_for("pairs", ["input", "output"]) == {"question": "input", "answer": "output"}
    assert mapping_for("classification", ["target"]) == {"label": "target"}
    assert mapping_for("text", ["whatever"]) == {"text": "whatever"}
