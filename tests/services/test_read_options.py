"""Folders, splits, units of a text and a held-out file: another reading is another data set."""

import dataclasses
import json

import pytest

from studio.backend.data import load_held_out
from studio.core.config import DataSection
from studio.core.errors import DatasetError
from studio.services.datasets import DatasetStore
from studio.services.runs import find_dataset
from tests.fakes.parts import build_parts


def pairs(count, word="q"):
    return [{"question": f"{word}{n}", "answer": f"a{n}"} for n in range(count)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "workspace")


@pytest.fixture
def parts(tmp_path):
    made = build_parts(tmp_path / "workspace")
    return dataclasses.replace(made, datasets=DatasetStore(tmp_path / "workspace"))


def test_a_folder_of_texts_is_one_document_a_file(store, tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name, text in {"b.txt": "Two.\n\nAnd two.", "a.md": "# One", "deep/c.txt": "Three",
                       ".git/d.txt": "no", "e.png": "no"}.items():  # fmt: skip
        (folder / name).write_text(text)
    info = store.import_file(folder)
    texts = [row["text"] for row in store.rows(info.id, 0, 9)]
    assert texts == ["# One", "Two.\n\nAnd two.", "Three"] and info.format == "text"
    assert [info.file_of(i) for i in (1, 2, 3)] == ["a.md", "b.txt", "deep/c.txt"]
    assert store.import_file(folder).id == info.id
    (folder / "a.md").write_text("# Another")
    assert store.import_file(folder).id != info.id


def test_rows_of_a_folder_tell_their_file_and_line(store, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(pairs(2)))
    (folder / "b.jsonl").write_text(lines(pairs(1)) + '{"question": \n')
    info = store.import_file(folder)
    assert (info.rows, info.used, info.problems[0]["line"]) == (4, 3, 2)
    assert info.file_of(info.problems[0]["row"]) == "b.jsonl"


@pytest.mark.parametrize("make", [
    lambda folder: (folder / "a.jsonl").symlink_to("/etc/passwd"),
    lambda folder: (folder / "a.jsonl.gz").write_bytes(b"x"),
])  # fmt: skip
def test_links_and_archives_in_a_folder_are_refused(store, tmp_path, make):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "good.jsonl").write_text(lines(pairs(2)))
    make(folder)
    with pytest.raises(DatasetError, match="the folder holds a link or an archive"):
        store.import_file(folder)


def test_a_split_is_chosen_and_is_a_data_set_of_its_own(store, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": pairs(3), "test": pairs(2)}))
    train, test = store.import_file(path), store.import_file(path, options={"split": "Test"})
    assert (train.used, test.used) == (3, 2) and train.id != test.id
    assert store.resolve(train.id, options={"split": "test"}).used == 2
    with pytest.raises(DatasetError, match="no such split in it .got 'dev'.*train, test"):
        store.import_file(path, options={"split": "dev"})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_file_without_splits_says_so(store, tmp_path, name):
    path = tmp_path / name
    path.write_text(lines(pairs(3)) if "json" in name else "question,answer\na,b\nc,d\n")
    with pytest.raises(DatasetError, match="the file has no splits"):
        store.import_file(path, options={"split": "test"})


@pytest.mark.parametrize(("unit", "rows"), [("detect", 2), ("paragraph", 2), ("line", 3),
                                            ("document", 1)])  # fmt: skip
def test_the_unit_of_a_text(store, tmp_path, unit, rows):
    path = tmp_path / "a.txt"
    path.write_text("One\ntwo\n\nThree\n")
    info = store.import_file(path, options={"text_unit": unit})
    assert info.rows == rows
    assert store.remap(info.id, "text", options={"text_unit": "document"}).rows == 1


def test_unknown_choices_are_refused(store, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One")
    for options, message in (({"text_unit": "word"}, "Unknown unit"), ({"x": 1}, "no such choice")):
        with pytest.raises(DatasetError, match=message):
            store.import_file(path, options=options)


def test_a_held_out_file_is_measured_on_and_its_content_decides_the_run(parts, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(lines(pairs(8)))
    second.write_text(lines(pairs(3, "other")))
    section = DataSection(path=str(first), held_out_path=str(second))
    info = find_dataset(parts, section)
    assert (info.used, info.num_held_out(0.5)) == (11, 3)
    assert load_held_out(info.folder) == [8, 9, 10]
    again = find_dataset(parts, section)
    assert (again.id, again.fingerprint) == (info.id, info.fingerprint)
    by_id = find_dataset(parts, section.model_copy(update={"path": info.id}))
    assert by_id.id == info.id
    second.write_text(lines(pairs(3, "changed")))
    assert find_dataset(parts, section).fingerprint != info.fingerprint
    with pytest.raises(DatasetError, match="cannot be held out from itself"):
        find_dataset(parts, section.model_copy(update={"held_out_path": str(first)}))
