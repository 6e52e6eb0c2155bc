"""The files of the checks: complete counts and flags, bounded lists, downloads."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from studio.core.checks import row_hashes
from studio.core.errors import DatasetError, StoreError
from studio.core.examples import Example, RowProblem
from studio.services import findings as module
from studio.services.check_lists import (
    check_summaries,
    escaped_cell,
    list_check,
    rows_of_check,
    write_check,
)
from studio.services.dataset_records import DatasetInfo
from studio.services.example_file import ExampleFile
from studio.services.findings import BIT, FLAGGED


def row(i, question, answer, label=None):
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(messages=messages, i=i, line=i + 10, label=label)


ROWS = [
    row(1, "Why?", "So."), row(2, "How?", "Well."), row(4, "Why?", "So."), row(5, "Why?", "No."),
    row(6, "Who?", "=cmd|' /C calc'!A0 bob@acme.io"), row(7, "Ring", "\x07ding at ann@acme.io"),
    row(9, "Echo", "echo"),
]  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """Makes a data set folder of rows, as the import child does."""

    def make(rows=ROWS, left_out=()):
        with ExampleFile(tmp_path) as target:
            for example in rows:
                target.add(example)
            for i, problem, source in left_out:
                target.left_out(i, None, problem, source)
            facts = target.finish()
        counts = {"rows": len(rows), "used": len(rows), "left_out": len(left_out)}
        return DatasetInfo.from_record({
            "name": "x", "format": "pairs", "mapping": {}, "columns": [], "counts": counts,
            "problems": [], "sample": False, "created": "", "val_frac_default": 0.1, "source": {},
            "problem_reasons": {}, "reasons": [], "notes": [], "preview": [], **facts,
        }, tmp_path)  # fmt: skip

    return make


def test_summaries_count_and_name_the_first(made):
    info = made()
    entries = {entry["id"]: entry for entry in check_summaries(info)}
    assert {check: entry["count"] for check, entry in entries.items()} == {
        "duplicate": 1, "conflicting_answers": 3, "same_text": 1, "control_characters": 1,
        "email": 2,
    }  # fmt: skip
    assert entries["duplicate"]["first"] == [
        {"i": 4, "line": 14, "detail": "repeats row 1 (line 11)"}
    ]
    assert [hit["detail"] for hit in entries["conflicting_answers"]["first"]] == [
        "another answer stands in row 5 (line 15)", "another answer stands in row 5 (line 15)",
        "another answer stands in row 1 (line 11)",
    ]  # fmt: skip
    assert entries["duplicate"]["fix"] == {
        "step": {"step": "exclude", "check": "duplicate"}, "label": "Leave out 1 duplicate",
    }  # fmt: skip
    assert entries["email"]["fix"]["step"] == {"step": "clean", "check": "email"}
    assert entries["conflicting_answers"]["fix"] is None


def test_hashes_places_and_flags_are_those_of_the_rows(made, tmp_path):
    made()
    hashes = np.load(tmp_path / "hashes.npy")
    assert [tuple(map(int, one)) for one in hashes] == [row_hashes(example) for example in ROWS]
    places = np.load(tmp_path / "places.npy")
    assert places.tolist() == [[example.i, example.line] for example in ROWS]
    flags = np.load(tmp_path / "flags.npy")
    assert flags[2] == BIT["duplicate"] | BIT["conflicting_answers"]
    assert flags[5] == BIT["control_characters"] | BIT["email"]
    assert len(FLAGGED) <= 16 and FLAGGED[:3] == ("duplicate", "conflicting_answers",
                                                  "unbalanced_labels")  # fmt: skip


def test_lists_are_bounded_but_counts_and_rows_are_complete(made, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 3)
    bad = [(n, RowProblem("'x' is empty", "Fill it in"), {"x": ""}) for n in range(100, 105)]
    info = made([row(n, "Same", "Same?") for n in range(1, 11)], bad)
    entry = {entry["id"]: entry for entry in check_summaries(info)}
    assert (entry["duplicate"]["count"], entry["duplicate"]["listed"]) == (9, 3)
    assert [hit["i"] for hit in list_check(info, "duplicate")] == [2, 3, 4]
    assert rows_of_check(info, "duplicate") == list(range(2, 11))
    assert (entry["empty"]["count"], len(list_check(info, "empty"))) == (5, 3)


def test_left_out_rows_keep_a_preview(made):
    problems = [
        (3, RowProblem("'answer' (column 'a') is missing", "Fill it in"), {"q": "Why?", "a": None}),
        (8, RowProblem("there is no assistant turn", "Add it"), None),
        (9, RowProblem("line 9 is no JSON", "Correct it"), "{" * 900),
    ]
    info = made(left_out=problems)
    assert list_check(info, "empty") == [{
        "i": 3, "line": None, "reason": "'answer' (column 'a') is missing", "remedy": "Fill it in",
        "preview": '{"q": "Why?", "a": null}', "detail": "'answer' (column 'a') is missing",
    }]  # fmt: skip
    assert list_check(info, "no_answer")[0]["preview"] == ""
    assert len(list_check(info, "unreadable")[0]["preview"]) == 400
    assert [entry["id"] for entry in check_summaries(info) if entry["left_out"]] == [
        "unreadable", "empty", "no_answer",
    ]  # fmt: skip
    with pytest.raises(DatasetError, match="not kept with the data set"):
        rows_of_check(info, "empty")


def test_rare_labels_are_found(made):
    labels = ["a"] * 30 + ["b"] * 2
    info = made([row(n, f"T{n}", label, label) for n, label in enumerate(labels)])
    assert rows_of_check(info, "unbalanced_labels") == [30, 31]
    assert "label 'b': 2 rows" in list_check(info, "unbalanced_labels")[0]["detail"]


def test_overlap_depends_on_the_split(made):
    info = made([row(n, "Q", f"A{n % 5}") for n in range(40)])
    at_42 = rows_of_check(info, "held_out_overlap", val_frac=0.2, seed=42)
    at_43 = rows_of_check(info, "held_out_overlap", val_frac=0.2, seed=43)
    assert len(at_42) == len(at_43) == 8 and at_42 != at_43
    listed = {entry["id"]: entry for entry in check_summaries(info, val_frac=0.2, seed=42)}
    assert listed["held_out_overlap"]["count"] == 8
    assert "held_out_overlap" not in [entry["id"] for entry in check_summaries(info)]
    assert rows_of_check(info, "held_out_overlap", val_frac=0.0) == []


def test_download_as_json_lines(made, tmp_path):
    info = made()
    target = tmp_path / "list.jsonl"
    assert write_check(info, "email", target) == 2
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows[0]["i"] == 6 and rows[0]["detail"] == "assistant turn 2: an address at acme.io"
    assert rows[1]["messages"] == list(ROWS[5].messages)


def test_download_as_csv_runs_no_formula(made, tmp_path):
    info = made([Example(text="=1+1 ann@acme.io", i=1), Example(text="@ann @ ann@acme.io", i=2)])
    target = tmp_path / "list.csv"
    assert write_check(info, "email", target) == 2
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [r["content"] for r in rows] == ["'=1+1 ann@acme.io", "'@ann @ ann@acme.io"]
    assert rows[0]["i"] == "1" and rows[0]["line"] == ""
    assert [escaped_cell(value) for value in ("a=b", "+1", "-x", None, 3)] == [
        "a=b", "'+1", "'-x", "", "3",
    ]  # fmt: skip


def test_download_of_left_out_rows(made, tmp_path):
    info = made(left_out=[(3, RowProblem("'a' is empty", "Fill it in"), {"q": "=x", "a": ""})])
    target = tmp_path / "list.csv"
    assert write_check(info, "empty", target) == 1
    (only,) = csv.DictReader(target.read_text().splitlines())
    assert (only["i"], only["reason"], only["preview"]) == ("3", "'a' is empty",
                                                            '{"q": "=x", "a": ""}')  # fmt: skip


def test_wrong_requests_are_refused(made, tmp_path):
    info = made()
    with pytest.raises(DatasetError, match="no such check"):
        list_check(info, "nonsense")
    with pytest.raises(DatasetError, match="Unknown kind of list"):
        write_check(info, "email", tmp_path / "list.exe")
    with pytest.raises(StoreError):
        write_check(info, "email", tmp_path / "no" / "list.csv")
    with pytest.raises(DatasetError, match="not kept with the data set"):
        rows_of_check(info, "cut")


def test_a_set_from_before_the_checks_says_so(made, tmp_path):
    info = replace(made(), checks=[])
    for name in ("hashes.npy", "places.npy", "flags.npy", "findings.jsonl", "left_out.jsonl"):
        (tmp_path / name).unlink()
    assert check_summaries(info, val_frac=0.1) == [] and list_check(info, "email") == []
    with pytest.raises(DatasetError, match="before there were checks"):
        rows_of_check(info, "email")
    (tmp_path / "flags.npy").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="damaged"):
        rows_of_check(info, "email")


def test_an_empty_set_can_be_finished(made):
    assert check_summaries(made([])) == []
