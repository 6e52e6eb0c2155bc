"""Steps: what each does, in any order and number, and what they never touch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.core.checks import check_row
from studio.core.errors import DatasetError
from studio.core.examples import Example
from studio.core.steps import (
    _CLEANED,
    apply_steps,
    check_edit,
    chosen_rows,
    describe,
    edited,
    held_out_file,
    held_out_rows,
    parse_step,
    parse_steps,
    to_records,
)
from studio.core.text_checks import CLEANERS


def row(i, question="Why?", answer="So.", system=None, label=None):
    turns = [("system", system)] if system else []
    turns += [("user", f"{question} {i}"), ("assistant", answer)]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Example(messages=messages, i=i, line=i + 1, label=label)


BASE = [row(n, system="Be kind." if n % 3 else None) for n in range(1, 31)]


def run(*steps, base=BASE):
    return list(apply_steps(base, parse_steps(steps)))


NUMBERS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32 - 1)
STEP = st.one_of(
    st.fixed_dictionaries({"step": st.just("exclude"), "rows": NUMBERS}),
    st.fixed_dictionaries({"step": st.just("edit"), "row": st.integers(1, 30), "messages": st.just([
        {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])}),
    st.fixed_dictionaries({"step": st.just("system_prompt"), "text": st.sampled_from(["X", "Y"]),
                           "replace": st.booleans()}),
    st.fixed_dictionaries({"step": st.just("clean"), "check": st.sampled_from(sorted(CLEANERS))}),
    st.fixed_dictionaries({"step": st.just("sample"), "n": st.integers(1, 40), "seed": SEEDS}),
    st.fixed_dictionaries({"step": st.just("shuffle"), "seed": SEEDS}),
    st.fixed_dictionaries({"step": st.just("held_out"), "rows": NUMBERS}),
)  # fmt: skip
STEPS = st.lists(STEP, max_size=6)


@given(STEPS)
def test_no_step_no_change_and_undo_is_one_step_fewer(records):
    steps = parse_steps(records)
    assert run() == BASE
    states = [list(apply_steps(BASE, steps[:count])) for count in range(len(steps) + 1)]
    assert states[0] == BASE
    for count, state in enumerate(states):  # the base was not touched by any of them
        assert list(apply_steps(BASE, steps[:count])) == state


@given(STEPS)
def test_one_by_one_is_the_same_as_at_once(records):
    steps, rows = parse_steps(records), BASE
    for step in steps:
        rows = list(apply_steps(rows, [step]))
    assert list(apply_steps(BASE, steps)) == rows


@given(STEPS)
def test_each_row_keeps_its_number_and_line(records):
    for example in apply_steps(BASE, parse_steps(records)):
        assert example.line == example.i + 1
        assert example.messages[-1]["role"] == "assistant"


@given(STEPS)
def test_records_come_back_as_the_same_steps(records):
    steps = parse_steps(records)
    assert parse_steps(to_records(steps)) == steps
    assert all(describe(step) for step in steps)


def test_exclude_leaves_out_and_does_not_mind_absent_rows():
    assert [r.i for r in run({"step": "exclude", "rows": [1, 3, 99]})] == [2, *range(4, 31)]
    step = parse_step({"step": "exclude", "rows": [1, 3], "check": "duplicate"})
    assert describe(step) == "Left out 2 rows: rows that repeat an earlier one"
    assert describe(parse_step({"step": "exclude", "rows": [1], "why": "ugly"})) == (
        "Left out 1 row: ugly"
    )


def test_sample_keeps_order_and_is_the_same_on_every_machine():
    step = {"step": "sample", "n": 5, "seed": 7}
    assert [r.i for r in run(step)] == [4, 7, 9, 11, 22]
    assert [r.i for r in run({**step, "seed": 8})] != [4, 7, 9, 11, 22]
    assert run({**step, "n": 30}) == BASE and run({**step, "n": 31}) == BASE


def test_shuffle_changes_the_order_alone():
    shuffled = [r.i for r in run({"step": "shuffle", "seed": 1})]
    assert sorted(shuffled) == [r.i for r in BASE] and shuffled != sorted(shuffled)


def test_order_of_steps_matters():
    sample, exclude = {"step": "sample", "n": 5, "seed": 7}, {"step": "exclude", "rows": [4, 7]}
    assert (len(run(sample, exclude)), len(run(exclude, sample))) == (3, 5)
    answered = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    edit = {"step": "edit", "row": 1, "messages": answered}
    prompt = {"step": "system_prompt", "text": "P", "replace": True}
    assert [m["role"] for m in run(edit, prompt)[0].messages] == ["system", "user", "assistant"]
    assert [m["role"] for m in run(prompt, edit)[0].messages] == ["user", "assistant"]


@pytest.mark.parametrize(("text", "replace", "first", "second"), [
    ("New", False, "Be kind.", "New"), ("New", True, "New", "New"), ("", True, None, None),
])  # fmt: skip
def test_system_prompt(text, replace, first, second):
    rows = run({"step": "system_prompt", "text": text, "replace": replace})
    assert _system(rows[0]) == first  # row 1 has one
    assert _system(rows[2]) == second  # row 3 has none
    plain = [Example(text="To be", i=1)]
    assert run({"step": "system_prompt", "text": "New"}, base=plain) == plain


def _system(example):
    first = example.messages[0]
    return first["content"] if first["role"] == "system" else None


def test_edit_of_a_classification_changes_its_label():
    base = [row(1, answer="bad", label="bad")]
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}]
    assert run({"step": "edit", "row": 1, "messages": messages}, base=base)[0].label == "good"


@pytest.mark.parametrize("check", sorted(CLEANERS))
def test_clean_makes_the_check_pass(check):
    broken = {
        "control_characters": "ring\x07 me", "broken_encoding": "caf\u00c3\u00a9",
        "secret": "use hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f", "email": "ann@acme.io wrote",
    }[check]  # fmt: skip
    base = [row(1, answer=broken), Example(text=broken, i=2)]
    assert [h.check for r in base for h in check_row(r)] == [check, check]
    cleaned = run({"step": "clean", "check": check}, base=base)
    assert [h.check for r in cleaned for h in check_row(r)] == []
    assert describe(parse_step({"step": "clean", "check": check})) == _CLEANED[check]


def test_clean_never_empties_a_text():
    base = [Example(text="\u200b\u200b", i=1)]
    assert run({"step": "clean", "check": "control_characters"}, base=base) == base


def test_the_later_choice_of_held_out_rows_counts():
    by_rows = {"step": "held_out", "rows": [1, 2]}
    by_file = {"step": "held_out_file", "dataset": "abc", "fingerprint": "f", "name": "test.csv"}
    assert held_out_rows(parse_steps([by_rows])) == {1, 2}
    both = parse_steps([by_rows, by_file])
    assert held_out_rows(both) is None and held_out_file(both).dataset == "abc"
    assert "test.csv" in describe(both[1])
    assert held_out_rows(()) is None and held_out_file(()) is None
    assert run(by_rows) == BASE


def test_an_edit_is_checked_before_it_is_kept():
    good = parse_step({"step": "edit", "row": 4, "messages": [
        {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]})  # fmt: skip
    assert edited(row(4), [check_edit(good)]).messages[1]["content"] == "A"
    no_answer = {"step": "edit", "row": 4, "messages": [{"role": "user", "content": "Q"}]}
    with pytest.raises(DatasetError, match="Row 4 cannot be saved so: .*assistant"):
        check_edit(parse_step(no_answer))
    with pytest.raises(DatasetError, match="empty"):
        check_edit(parse_step({"step": "edit", "row": 4, "text": " "}))
    assert check_edit(parse_step({"step": "edit", "row": 4, "text": "Hi"})).text == "Hi"


@pytest.mark.parametrize("record", [
    {"step": "explode"}, {}, {"step": "exclude", "rows": []}, {"step": "sample", "n": 0},
    {"step": "edit", "row": 1}, {"step": "edit", "row": 1, "text": "a", "messages": []},
    {"step": "system_prompt", "text": " "}, {"step": "clean", "check": "duplicate"},
    {"step": "shuffle", "seed": -1}, {"step": "shuffle", "sede": 1},
])  # fmt: skip
def test_wrong_steps_are_refused(record):
    with pytest.raises(DatasetError, match="This change cannot be made"):
        parse_step(record)


def test_a_million_numbers_are_chosen_fast():
    steps = parse_steps([{"step": "exclude", "rows": range(0, 1000)}, {"step": "shuffle"}])
    assert len(chosen_rows(range(1_000_000), steps)) == 999_000
