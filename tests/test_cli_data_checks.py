"""`data check` names what the checks found, with counts and lines; the same as the store's."""

import json

import pytest
from typer.testing import CliRunner

from studio.cli_data import data_app
from studio.services.datasets import DatasetStore
from studio.services.edits import Edits

PLACE = "in the little village by the sea where all of us were born"
ROWS = [
    {"question": "Where?", "answer": f"At home {PLACE}."},
    {"question": "Where?", "answer": f"At HOME {PLACE}!"},
    {"question": "Where?", "answer": f"At home {PLACE}."},
    {"question": "x", "answer": ""},
    {"question": "Mail?", "answer": "Write to bob@acme.io, he is at the caf\u00c3\u00a9"},
    {"question": "Echo", "answer": "echo"},
    *({"question": f"What is {n}?", "answer": f"The number {n}."} for n in range(30)),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(*arguments):
    result = CliRunner().invoke(data_app, ["check", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def checks(*arguments):
    report = json.loads(run(*arguments, "--json"))
    return {entry["id"]: entry for entry in report["checks"]}


def test_counts_and_lines(file):
    found = checks(file)
    assert {check: (entry["count"], entry["lines"]) for check, entry in found.items()} == {
        "empty": (1, [4]), "duplicate": (1, [3]), "near_duplicate": (1, [2]),
        "conflicting_answers": (3, [1, 2, 3]), "same_text": (1, [6]), "email": (1, [5]),
        "broken_encoding": (1, [5]),
    }  # fmt: skip
    assert found["duplicate"]["fix"]["label"] == "Leave out 1 duplicate"
    assert "bob" not in json.dumps(found["email"])


def test_text_names_lines_and_remedy(file):
    text = run(file)
    assert "warning: rows that repeat an earlier one: 1 (line 3). Leave them out" in text
    assert "1 x 'answer' (column 'answer') is empty (first: line 4)" in text
    assert text.count("empty") == 1  # told once, not again as a check


def test_near_duplicates_can_be_switched_off(file):
    entry = checks(file, "--no-near")["near_duplicate"]
    assert entry["count"] is None and "not looked for in 35 rows" in entry["reason"]
    assert "near-duplicates: not looked for" in run(file, "--no-near")


def test_overlap_is_that_of_the_asked_split(tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text('{"question": "Q", "answer": "A"}\n' * 20)
    found = checks(path, "--set", "data.val_frac=0.2", "--set", "train.seed=3")
    assert found["held_out_overlap"]["count"] == 4
    assert "held_out_overlap" not in checks(path, "--set", "data.val_frac=0")


def test_an_edited_set_of_the_workspace(file, tmp_path):
    store = DatasetStore(tmp_path / "w")
    base = store.import_file(file)
    info = Edits(store, tmp_path / "w").apply(base.id, {"step": "held_out", "rows": [7, 8, 9]})
    report = json.loads(run(info.id, "--workspace", tmp_path / "w", "--json"))
    assert report["rows"] == {"train": 32, "held_out": 3, "left_out": 1}
    # Left-out rows and their list came over from the imported set.
    assert [entry["lines"] for entry in report["checks"] if entry["id"] == "empty"] == [[4]]


def test_the_encoding_is_chosen_on_the_command_line(tmp_path):
    word = "\u0433\u043e\u0440\u043e\u0434"
    path = tmp_path / "cities.csv"
    rows = "".join(f"{word} {n}?,{word} {n}.\n" for n in range(9))
    path.write_bytes(f"question,answer\n{rows}".encode("cp1251"))
    refused = CliRunner().invoke(data_app, ["check", str(path)])
    assert "or choose its encoding" in str(refused.exception)
    for arguments in (["--encoding", "windows-1251"], ["--set", "data.encoding=windows-1251"]):
        report = json.loads(run(path, "--json", *arguments))
        assert report["rows"]["train"] + report["rows"]["held_out"] == 9
        assert "read as Windows-1251, Cyrillic (chosen by hand)" in report["notes"]
    wrong = CliRunner().invoke(data_app, ["check", str(path), "--encoding", "rot13"])
    assert "Unknown encoding" in str(wrong.exception) and "koi8-r" in str(wrong.exception)
