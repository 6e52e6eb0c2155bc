"""Rows held out by choice: the trainer takes them from the data set, not from chance."""

import json

import pytest

from studio.backend.data import load_held_out
from studio.core.split import split_chosen
from tests.backend.tiny import make_rows, records, train


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


def test_a_whole_training_holds_the_chosen_rows_out(make_run):
    """The folder as an edit leaves it: the trainer measures on these rows and learns the rest."""
    chosen = [3, 17, 18, 30, 31, 39]
    rows = make_rows(40)
    paths = make_run({"train": {"max_steps": 4}}, rows)
    folder = paths.root / json.loads(paths.run_json.read_text())["dataset"]["path"]
    (folder / "dataset.json").write_text(json.dumps({"held_out": {"rows": chosen}}))
    result = train(paths)
    assert result["state"] == "done"
    assert (result["rows"]["train"], result["rows"]["held_out"]) == (34, 6)
    assert all(record["eval_rows"] == 6 for record in records(paths, "eval"))
    asked = {json.dumps(rows[row]["messages"][:-1]) for row in chosen}
    sampled = [json.loads(line) for line in paths.samples.read_text().splitlines()]
    assert sampled and all(json.dumps(row["messages"]) in asked for row in sampled)
