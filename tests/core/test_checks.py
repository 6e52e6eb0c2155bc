"""Checks that one row decides, hashes, and label balance; text patterns are in test_checks_text."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.core.checks import (
    CHECKS,
    ROW_CHECKS,
    LabelBalance,
    check_row,
    inspect_row,
    plain,
    row_hashes,
    turns_of,
)
from studio.core.examples import Example

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def pair(question="How far is it?", answer="Two miles.", system=None, **more):
    turns = [("system", system)] if system else []
    turns += [("user", question), ("assistant", answer)]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Example(messages=messages, **more)


def found(example):
    return {hit.check: hit.detail for hit in check_row(example)}


def test_each_check_says_what_to_do():
    for check in CHECKS.values():
        assert check.level in ("error", "warning", "info")
        assert check.title[0].islower() and check.remedy and not check.remedy.endswith(".")
        assert check.fix is None or "{n}" in check.fix
        assert check.fix_step in ("exclude", "clean")
    assert set(ROW_CHECKS) < set(CHECKS)


def test_a_usual_row_passes():
    assert check_row(pair()) == []
    assert (
        check_row(Example(text="A paragraph.\n\n\tWith a tab, \u00e9t\u00e9 and \U0001f600.")) == []
    )


@pytest.mark.parametrize("text", ["nan", "NULL", " None ", "N/A", "...", "\u200b", "\u3164 \n"])
def test_texts_that_stand_for_nothing(text):
    assert "looks_empty" in found(pair(answer=text))
    assert "assistant turn 2" in found(pair(answer=text))["looks_empty"]


def test_a_label_may_be_called_none():
    assert check_row(pair(answer="none", label="none")) == []


@pytest.mark.parametrize("text", ["nano", "42", "No.", "Nothing", "0", "no"])
def test_short_answers_pass(text):
    assert check_row(pair(answer=text)) == []


def test_same_text_in_question_and_answer():
    assert "same_text" in found(pair("Say hello", " say HELLO\n"))
    assert "same_text" not in found(pair("Say hello", "Say hello!"))
    longer = Example(messages=(*pair().messages, *pair("Hi", "Hi").messages))
    assert found(longer)["same_text"] == "turns 3 and 4"


def test_a_hit_names_its_turn_and_hides_the_secret():
    secret = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"
    row = pair("My token?", f"It is {secret}, tell bob.smith@acme.io", system="Be\x07 kind")
    details = found(row)
    assert details["control_characters"] == "system turn 1: 1 of U+0007"
    assert details["secret"].startswith("assistant turn 3: Hugging Face token")
    assert details["email"] == "assistant turn 3: an address at acme.io"
    assert secret not in json.dumps(details) and "bob" not in json.dumps(details)


def test_tool_calls_are_looked_into():
    call = {"function": {"name": "mail", "arguments": '{"to": "ann@acme.io"}'}}
    messages = (
        {"role": "user", "content": "Mail Ann"},
        {"role": "assistant", "tool_calls": [call]},
    )
    assert "email" in found(Example(messages=messages))
    other = {"function": {"name": "mail", "arguments": "{}"}}
    changed = ({**messages[0]}, {"role": "assistant", "tool_calls": [other]})
    ours, theirs = row_hashes(Example(messages=messages)), row_hashes(Example(messages=changed))
    assert ours[1] == theirs[1] and ours[0] != theirs[0] and ours[2] != theirs[2]


# ------------------------------------------------------------------------------------- hashes


def test_hashes_are_stable_between_versions():
    """Data sets on disk hold them: a change here makes old hashes.npy files wrong."""
    assert row_hashes(pair()) == (
        16718274397036455730, 7480387661718079552, 17945595639849499122,
    )  # fmt: skip
    assert row_hashes(Example(text="To be"))[1] == 0


def test_hashes_tell_prompt_and_answer_apart():
    whole, prompt, answer = row_hashes(pair())
    other_answer = row_hashes(pair(answer="Three miles."))
    other_prompt = row_hashes(pair("How near is it?"))
    with_system = row_hashes(pair(system="Be brief."))
    assert other_answer[1] == prompt and other_answer[2] != answer and other_answer[0] != whole
    assert other_prompt[1] != prompt and other_prompt[2] == answer and other_prompt[0] != whole
    assert with_system[1] != prompt and with_system[2] == answer


def test_number_and_label_do_not_matter_but_case_does():
    assert row_hashes(pair(i=3, line=9, label="x")) == row_hashes(pair())
    assert row_hashes(pair("how far is it?")) != row_hashes(pair())


@given(TEXT, TEXT)
def test_white_space_and_composition_do_not_matter(question, answer):
    spaced = pair(
        "  " + unicodedata.normalize("NFD", question).replace(" ", " \n\t "), answer + " \r\n"
    )
    assert row_hashes(spaced) == row_hashes(pair(question, answer))


@given(TEXT)
def test_plain_is_settled_after_one_pass(text):
    once = plain(text)
    assert plain(once.decode()) == once
    assert once.decode() == unicodedata.normalize("NFC", "".join(text.split()))


@given(TEXT, TEXT)
def test_in_one_go_is_the_same_as_one_by_one(question, answer):
    example = pair(question, answer, system="At ann@acme.io")
    assert inspect_row(example) == (check_row(example), row_hashes(example))


def test_turns_of_a_text_is_one_pair():
    assert turns_of(Example(text="Hi")) == [("", "Hi")]


# ------------------------------------------------------------------------------------- labels


def balance(labels):
    counter = LabelBalance()
    for label in labels:
        counter.add(label)
    return counter.hits()


def test_rows_of_rare_labels_are_named():
    labels = ["good"] * 41 + [None] + ["bad"] * 4
    assert balance(labels) == {
        at: "label 'bad': 4 rows, the commonest has 41" for at in range(42, 46)
    }
    assert balance(["good"] * 40 + ["bad"] * 4) == {}


def test_one_label_alone_is_told():
    assert len(balance(["good"] * 3)) == 3
    assert balance(["good"]) == {} and balance([None, None]) == {}


def test_free_text_is_no_label():
    assert balance([str(n) for n in range(3000)] + ["x"] * 500) == {}
