"""Rows held out by choice: the trainer takes them from the data set, not from chance."""

import json

import pytest

from studio.backend.data import load_held_out
from studio.core.split import split_chosen


def test_split_by_choice():
    assert split_chosen(5, [3, 1, 9]) == ([0, 2, 4], [1, 3])


@pytest.mark.parametrize(("record", "expected"), [
    ({}, None), ({"held_out": None}, None), ({"held_out": {"rows": [2, 4]}}, [2, 4]),
])  # fmt: skip
def test_the_choice_of_a_data_set(tmp_path, record, expected):
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    assert load_held_out(tmp_path) == expected


def test_no_record_no_choice(tmp_path):
    assert load_held_out(tmp_path) is None
