"""Derived data sets on a real store: steps, undo, redo, what stays and what is cleared away."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from studio.core.errors import DatasetError
from studio.core.examples import Example
from studio.core.steps import apply_steps, parse_steps
from studio.hardware.platforms import write_json
from studio.services.check_lists import check_summaries, rows_of_check
from studio.services.import_process import ImportCancelledError

ROWS = [{"question": f"Where is town {n}?", "answer": f"At mile {n}."} for n in range(1, 41)]
ROWS[4] = ROWS[3]
ROWS[9] = {"question": "Where?", "answer": ""}
ROWS[20] = {"question": "Who?", "answer": "Ask ann@acme.io"}


@pytest.fixture
def base(store, tmp_path):
    path = tmp_path / "towns.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return store.import_file(path)


def examples(store, info):
    return [Example.from_dict(row) for row in store.rows(info.id, 0, 1000)]


STEPS = [
    {"step": "exclude", "rows": [1, 2], "why": "dull"},
    {"step": "system_prompt", "text": "Be brief.", "replace": True},
    {"step": "edit", "row": 7, "messages": [
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
    {"step": "shuffle", "seed": 3},
    {"step": "sample", "n": 12, "seed": 3},
    {"step": "clean", "check": "email"},
]  # fmt: skip


def test_derived_sets_hold_what_the_pure_function_says(store, edits, base):
    before = examples(store, base)
    info = base
    for count, step in enumerate(STEPS, 1):
        info = edits.apply(info.id, step)
        steps = parse_steps(STEPS[:count])
        assert examples(store, info) == list(apply_steps(before, steps)), step
        assert [one.id for one in store.list()] == [info.id]
    assert info.used == 12 and info.left_out == info.rows - 12 == sum(info.problem_reasons.values())
    assert examples(store, base) == before
    assert (info.folder / "source.jsonl").read_bytes() == (
        base.folder / "source.jsonl"
    ).read_bytes()


def test_undo_and_redo_walk_the_same_sets(store, edits, base):
    ids = [base.id]
    for step in STEPS[:3]:
        ids.append(edits.apply(ids[-1], step).id)
    assert len(set(ids)) == 4
    at = ids[-1]
    for expected in reversed(ids[:-1]):
        at = edits.undo(at).id
        assert at == expected and [one.id for one in store.list()] == [at]
    with pytest.raises(DatasetError, match="no change to undo"):
        edits.undo(at)
    assert [entry["text"] for entry in edits.history(at).undone] == [
        "Left out 2 rows: dull", "System prompt for all rows: 'Be brief.'", "Edited row 7",
    ]  # fmt: skip
    for expected in ids[1:]:
        at = edits.redo(at).id
        assert at == expected
    with pytest.raises(DatasetError, match="no change to redo"):
        edits.redo(at)


def test_a_new_change_forgets_what_was_undone(edits, base):
    first = edits.apply(base.id, STEPS[0])
    edits.undo(first.id)
    other = edits.apply(base.id, STEPS[3])
    history = edits.history(other.id)
    assert (history.base, history.undone) == (base.id, [])
    assert [entry["text"] for entry in history.done] == ["Shuffled with seed 3"]
    with pytest.raises(DatasetError, match="no change to redo"):
        edits.redo(other.id)


def test_the_same_steps_give_the_same_data(store, edits, base, tmp_path):
    one = edits.apply(base.id, STEPS[3])
    edits.undo(one.id)
    assert edits.collect_garbage(base.id, older_than_s=-1) == [one.id]
    again = edits.redo(base.id)
    assert (again.id, again.fingerprint) == (one.id, one.fingerprint) != (base.id, base.fingerprint)


def test_offsets_and_places_of_a_derived_set_are_its_own(store, edits, base):
    info = edits.apply(base.id, {"step": "shuffle", "seed": 9})
    rows = store.rows(info.id, 0, 1000)
    assert store.rows(info.id, 30, 2) == rows[30:32]
    places = np.load(info.folder / "places.npy")
    assert places.tolist() == [[row["i"], row["line"]] for row in rows]


def test_excluding_a_check_leaves_its_rows_out(store, edits, base):
    derived = edits.apply(base.id, {"step": "system_prompt", "text": "Hi", "replace": True})
    assert rows_of_check(derived, "duplicate") == [5]
    after = edits.apply(derived.id, {"step": "exclude", "check": "duplicate"})
    assert after.used == derived.used - 1
    assert "duplicate" not in [entry["id"] for entry in check_summaries(after)]
    with pytest.raises(DatasetError, match="names no row"):
        edits.apply(after.id, {"step": "exclude", "check": "duplicate"})


def test_cleaning_makes_the_check_pass(edits, base):
    derived = edits.apply(base.id, {"step": "shuffle"})
    assert "email" in [entry["id"] for entry in check_summaries(derived)]
    clean = edits.apply(derived.id, {"step": "clean", "check": "email"})
    assert "email" not in [entry["id"] for entry in check_summaries(clean)]


def test_chosen_held_out_rows_are_kept_as_positions(store, edits, base):
    info = edits.apply(base.id, {"step": "held_out", "rows": [4, 2]})
    kept = json.loads((info.folder / "dataset.json").read_text())["held_out"]
    assert kept == {"rows": [1, 3]}
    overlapping = {entry["id"]: entry for entry in check_summaries(info, val_frac=0.1)}
    assert (
        overlapping["held_out_overlap"]["first"][0]["detail"] == "the same as row 5, which trains"
    )
    gone = edits.apply(info.id, {"step": "exclude", "rows": [2]})
    assert json.loads((gone.folder / "dataset.json").read_text())["held_out"] == {"rows": [2]}
    with pytest.raises(DatasetError, match="nothing to measure on"):
        edits.apply(gone.id, {"step": "exclude", "rows": [4]})
    everything = [row["i"] for row in store.rows(base.id, 0, 100)]
    with pytest.raises(DatasetError, match="nothing to train on"):
        edits.apply(base.id, {"step": "held_out", "rows": everything})


def test_another_data_set_is_held_out(store, edits, base, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(ROWS[30]) + "\n" + json.dumps(ROWS[31]) + "\n")
    other = store.import_file(path)
    info = edits.apply(base.id, {"step": "held_out_file", "dataset": other.id})
    assert info.held_out == {
        "rows": [39, 40], "dataset": other.id, "fingerprint": other.fingerprint,
        "name": "test.jsonl", "after": 40,
    }  # fmt: skip
    assert (info.used, info.num_held_out(0.1), info.left_out) == (41, 2, 1)
    assert [row["i"] for row in store.rows(info.id, 38, 9)] == [40, 41, 42]
    found = {entry["id"]: entry["count"] for entry in check_summaries(info, val_frac=0.1)}
    assert found["held_out_overlap"] == 2
    prompted = edits.apply(info.id, {"step": "system_prompt", "text": "Be kind."})
    assert all(r["messages"][0]["role"] == "system" for r in store.rows(prompted.id, 0, 99))
    with pytest.raises(DatasetError, match="cannot be held out from itself"):
        edits.apply(base.id, {"step": "held_out_file", "dataset": base.id})


@pytest.mark.parametrize(("step", "words"), [
    ({"step": "edit", "row": 3, "messages": [{"role": "user", "content": "Q"}]}, "assistant"),
    ({"step": "sample", "n": 0}, "cannot be made"),
    ({"step": "exclude", "check": "nonsense"}, "no such check"),
    ({"step": "system_prompt", "text": "\ud800", "replace": True}, "broken characters|cannot be"),
])  # fmt: skip
def test_a_wrong_change_changes_nothing(store, edits, base, step, words):
    derived = edits.apply(base.id, {"step": "shuffle"})
    with pytest.raises(DatasetError, match=words):
        edits.apply(derived.id, step)
    assert [one.id for one in store.list()] == [derived.id]
    assert edits.history(derived.id).current == derived.id


def test_leaving_out_all_rows_is_refused(store, edits, base, tmp_path):
    everything = [row["i"] for row in store.rows(base.id, 0, 100)]
    with pytest.raises(DatasetError, match="No row would be left"):
        edits.apply(base.id, {"step": "exclude", "rows": everything})
    assert [one.id for one in store.list()] == [base.id]
    assert list((tmp_path / "workspace" / "tmp").iterdir()) == []


def test_cancel_keeps_nothing(store, edits, base, tmp_path):
    with pytest.raises(ImportCancelledError):
        edits.apply(base.id, {"step": "shuffle"}, cancelled=lambda: True)
    assert [one.id for one in store.list()] == [base.id]
    assert list((tmp_path / "workspace" / "tmp").iterdir()) == []


def test_garbage_spares_the_shown_the_last_and_those_of_runs(store, edits, base, tmp_path):
    ids = [base.id]
    for step in STEPS[:4]:
        ids.append(edits.apply(ids[-1], step).id)
    run = tmp_path / "workspace" / "runs" / "a-run"
    os.makedirs(run)
    write_json(run / "run.json", {"dataset": {"id": ids[1]}})
    assert edits.collect_garbage(base.id) == []  # too young
    assert edits.collect_garbage(base.id, older_than_s=-1) == [ids[2]]
    assert all(store.has(id) for id in (ids[0], ids[1], ids[3], ids[4]))
    assert store.get(ids[1]).used == base.used - 2
    # What was cleared away is made again when it is needed.
    assert edits.undo(edits.undo(ids[4]).id).id == ids[2] and store.has(ids[2])


def test_no_links_on_the_disk_is_no_hindrance(store, edits, base, monkeypatch):
    def refuses(*paths, **more):
        raise OSError("no links here")

    monkeypatch.setattr("studio.services.edits.os.link", refuses)
    info = edits.apply(base.id, STEPS[0])
    assert (info.folder / "source.jsonl").read_bytes() == (
        base.folder / "source.jsonl"
    ).read_bytes()


def test_the_folder_of_a_set_holds_nothing_of_its_making(edits, base):
    info = edits.apply(base.id, STEPS[0])
    assert sorted(path.name for path in Path(info.folder).iterdir()) == [
        "data.jsonl", "dataset.json", "findings.jsonl", "flags.npy", "hashes.npy",
        "left_out.jsonl", "places.npy", "source.jsonl",
    ]  # fmt: skip


def test_importing_the_file_again_brings_back_the_edited_set(store, edits, base, tmp_path):
    edited = edits.apply(base.id, STEPS[0])
    again = store.import_file(tmp_path / "towns.jsonl")
    assert again.id == edited.id and [one.id for one in store.list()] == [edited.id]
    chosen = store.import_file(tmp_path / "towns.jsonl", format=base.format)  # the same by hand
    assert chosen.id == edited.id and [one.id for one in store.list()] == [edited.id]
    assert edits.undo(edited.id).id == base.id
    assert store.import_file(tmp_path / "towns.jsonl").id == base.id
    assert [one.id for one in store.list()] == [base.id]
