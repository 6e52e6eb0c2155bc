"""Chosen and rejected answers, and answers marked good or bad: what is learned of them."""

import json

import pytest

from studio.core.checks import left_out_check
from studio.core.errors import DatasetError
from studio.core.examples import RowProblem
from studio.core.format_notes import notes_of
from studio.core.formats import check_mapping, normalise
from studio.core.sniff import sniff

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "Go away"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}


def read(row):
    found = sniff([row], list(row))
    return found.format, normalise(row, found.format, found.mapping, i=1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": " Hello", "rejected": "Go away"},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": ""},
        {"prompt": [U], "chosen": [A], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [U, A], "rejected": [U, BAD], "score_chosen": 9},
        {"chosen": [U, A], "rejected": [U, BAD]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "Go away"}},
        {"question": "Hi", "chosen_response": "Hello", "rejected_response": "Go away"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
    ],
)
def test_the_chosen_answer_is_learned_and_the_rejected_is_not(row):
    format, example = read(row)
    assert (format, example.messages) == ("preference", (U, A))
    assert "Go away" not in example.to_json()


def test_system_input_and_several_rounds_stand_in_front_of_the_chosen_answer():
    row = {"system": "Be kind", "instruction": "Add", "input": "1 2", "chosen": "3",
           "rejected": "4"}  # fmt: skip
    assert [m["content"] for m in read(row)[1].messages] == ["Be kind", "Add\n\n1 2", "3"]
    turns = [{"from": "system", "value": "s"}, HUMAN, GPT, HUMAN]
    row = {"conversations": turns, "chosen": GPT, "rejected": GPT}
    assert len(read(row)[1].messages) == 5


def test_a_chosen_text_without_a_prompt_is_plain_text():
    assert read({"chosen": "The sky is blue.", "rejected": "It is green."})[1].text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello", "label": True},
        {"messages": [U, A], "label": True},
        {"conversations": [HUMAN, GPT], "kto_tag": "True"},
        {"prompt": [U], "completion": [A], "label": "true"},
        {"instruction": "Hi", "input": "", "output": "Hello", "kto_tag": True},
    ],
)
def test_good_answers_are_learned_and_bad_ones_left_out_with_the_reason(row):
    format, example = read(row)
    assert (format, example.messages) == ("kto", (U, A))
    label = "label" if "label" in row else "kto_tag"
    for bad in (False, "false", 0):
        with pytest.raises(RowProblem, match="labelled as bad") as caught:
            normalise({**row, label: bad}, "kto", sniff([row], list(row)).mapping)
        assert left_out_check(caught.value) == "unwanted"


@pytest.mark.parametrize(("label", "reason"), [("maybe", "neither true nor false"), ([], "neither"),
                                               (None, "is missing"), (0.5, "neither")])  # fmt: skip
def test_a_label_that_says_neither_is_a_problem(label, reason):
    row = {"prompt": "Hi", "completion": "Hello", "label": label}
    with pytest.raises(RowProblem, match=reason):
        normalise(row, "kto", {"prompt": "prompt", "completion": "completion", "label": "label"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": None, "rejected": "x"}, "'chosen' .* is missing"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "x"}, "is a number, not text"),
        ({"prompt": [U, A], "chosen": [A], "rejected": [A]}, "turn 3 is assistant"),
        ({"prompt": "Hi", "chosen": [], "rejected": []}, "is an empty list"),
    ],
)
def test_bad_preferences_say_why(row, reason):
    mapping = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    with pytest.raises(RowProblem, match=reason):
        normalise(row, "preference", mapping)


def test_kto_needs_a_conversation_or_both_halves():
    check_mapping("kto", {"label": "l", "messages": "m"}, ["l", "m"])
    with pytest.raises(DatasetError, match="for 'messages' or for 'prompt' and 'completion'"):
        check_mapping("kto", {"label": "l", "prompt": "m"}, ["l", "m"])


def test_a_label_of_words_or_beside_a_text_alone_is_a_classification():
    rows = [{"text": f"t{n}", "label": n % 2 == 0} for n in range(12)]
    assert sniff(rows, ["text", "label"]).format == "classification"


def test_notes_say_what_is_not_learned():
    assert "rejected" in notes_of("preference", {}, [])[0]
    assert "false are left out" in notes_of("kto", {}, [])[0]


def test_numbers_as_labels_are_noted_and_their_names_preferred():
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(12)]
    found = sniff(rows, ["text", "label"])
    assert "numbers (0, 1)" in notes_of("classification", found.mapping, rows)[0]
    named = [{**row, "label_text": "good" if row["label"] else "bad"} for row in rows]
    found = sniff(named, ["text", "label", "label_text"])
    assert found.mapping["label"] == "label_text"
    assert notes_of("classification", found.mapping, named) == []


@pytest.mark.parametrize(
    ("file", "good"), [("dpo_en_demo.json", 300), ("kto_en_demo.json", None)]
)  # fmt: skip
def test_real_comparisons(file, good, repo_root):
    path = repo_root.parent / "shared" / "data" / file
    if not path.is_file():
        pytest.skip("the shared data is not here")
    rows = json.loads(path.read_text())
    found = sniff(rows, list(rows[0]))
    learned = left = 0
    for row in rows:
        try:
            normalise(row, found.format, found.mapping)
            learned += 1
        except RowProblem as problem:
            left += problem.code == "unwanted"
    assert learned == (good or sum(row["label"] for row in rows))
    assert learned + left == len(rows)
