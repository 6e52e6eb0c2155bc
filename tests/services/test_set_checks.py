"""Whole-set checks against a slow and plain reference, and their speed."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.core.checks import row_hashes
from studio.core.examples import Example
from studio.core.split import split
from studio.services.set_checks import (
    conflicting_answers,
    duplicates,
    held_out_overlap,
    overlap,
)

# Rows as (prompt, answer) from few values, so that they meet; prompt 0 is a plain text.
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=40)


def hashes_of(rows):
    table = [((prompt << 8) + answer, prompt, answer) for prompt, answer in rows]
    return np.array(table, dtype=np.uint64).reshape(-1, 3)


def as_dict(matches):
    assert list(matches.rows) == sorted(matches.rows)
    return dict(zip(matches.rows.tolist(), matches.others.tolist(), strict=True))


@given(ROWS)
def test_duplicates_are_all_but_the_first(rows):
    expected = {at: rows.index(row) for at, row in enumerate(rows) if rows.index(row) < at}
    assert as_dict(duplicates(hashes_of(rows))) == expected


@given(ROWS)
def test_conflicts_are_all_rows_of_a_prompt_with_two_answers(rows):
    expected = {}
    for at, (prompt, answer) in enumerate(rows):
        others = [n for n, (p, a) in enumerate(rows) if p == prompt and a != answer]
        if prompt and others:
            expected[at] = others[0]
    assert as_dict(conflicting_answers(hashes_of(rows))) == expected


@given(ROWS, st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 5))
def test_overlap_is_what_the_split_of_the_trainer_says(rows, val_frac, seed):
    train, held_out = split(len(rows), val_frac, seed)
    expected = {
        at: next(n for n in train if rows[n] == rows[at])
        for at in held_out
        if any(rows[n] == rows[at] for n in train)
    }
    assert as_dict(held_out_overlap(hashes_of(rows), val_frac, seed)) == expected


def test_chosen_held_out_rows():
    found = overlap(hashes_of([(1, 1), (1, 1), (2, 1)]), np.array([0, 2]), np.array([1]))
    assert as_dict(found) == {1: 0}
    assert len(overlap(hashes_of([(1, 1)]), np.array([], int), np.array([0]))) == 0


def test_real_rows():
    def row(question, answer):
        return Example(messages=({"role": "user", "content": question},
                                 {"role": "assistant", "content": answer}))  # fmt: skip

    rows = [row("Why?", "So."), row("Why? ", "So."), row("Why?", "No."), row("How?", "So.")]
    hashes = np.array([row_hashes(one) for one in rows], dtype=np.uint64)
    assert as_dict(duplicates(hashes)) == {1: 0}
    assert as_dict(conflicting_answers(hashes)) == {0: 2, 1: 2, 2: 0}


@pytest.mark.parametrize("distinct", [300_000, 2**40])
def test_a_million_rows_in_two_seconds_and_bounded_memory(distinct):
    draw = np.random.default_rng(1)
    hashes = draw.integers(1, distinct, (1_000_000, 3), dtype=np.uint64)
    seconds = []
    for _ in range(3):  # other work on the machine must not decide: the best of three
        began = time.process_time()
        duplicates(hashes), conflicting_answers(hashes), held_out_overlap(hashes, 0.1, 42)
        seconds.append(time.process_time() - began)
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2
    tracemalloc.start()
    duplicates(hashes), conflicting_answers(hashes)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 200 * 2**20
