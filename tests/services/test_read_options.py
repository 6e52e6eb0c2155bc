"""Folders, splits, units of a text and a held-out file: another reading is another data set."""

import dataclasses
import json
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from studio.backend.data import load_held_out
from studio.core.config import DataSection
from studio.core.errors import DatasetError
from studio.services.datasets import DatasetStore
from studio.services.read_options import ENCODINGS, ReadOptions
from studio.services.runs import find_dataset
from studio.services.source_bytes import Source
from studio.services.source_coding import text_coding
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


WORD = "\u0433\u043e\u0440\u043e\u0434"  # "town"
RUSSIAN = "question,answer\n" + "".join(f"{WORD} {n}?,{WORD} {WORD} {n}.\n" for n in range(6))


def test_an_encoding_is_chosen_where_it_cannot_be_told_or_the_guess_is_wrong(store, tmp_path):
    path = tmp_path / "cities.csv"
    path.write_bytes(RUSSIAN.encode("cp1251"))
    with pytest.raises(DatasetError, match="neither UTF-8 nor Western.*or choose its encoding"):
        store.import_file(path)
    info = store.import_file(path, options={"encoding": "windows-1251"})
    assert store.rows(info.id, 1, 1)[0]["messages"][0]["content"] == f"{WORD} 1?"
    assert "read as Windows-1251, Cyrillic (chosen by hand)" in info.notes
    path.write_bytes("question,answer\nK\u00f6lsch?,F\u00fcr f\u00fcnf \u20ac\n".encode("cp1252"))
    guessed = store.import_file(path)
    assert "not UTF-8; read as Windows-1252 (a guess)" in guessed.notes
    other = store.remap(guessed.id, guessed.format, options={"encoding": "latin-1"})
    assert other.id != guessed.id and other.source["options"] == {"encoding": "latin-1"}
    assert store.rows(other.id, 0, 1)[0]["messages"][1]["content"].startswith(
        "F\u00fcr f\u00fcnf \x80"
    )
    again = store.remap(other.id, other.format, options={})
    assert again.id == guessed.id


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_encoding_reads_what_was_written_in_it(encoding, tmp_path):
    path = tmp_path / "plain.txt"
    path.write_bytes("One line.\nAnother line.\n".encode(encoding))
    coding = text_coding(Source(path, "plain.txt", max_bytes=1 << 20,
                                options=ReadOptions(encoding=encoding)))  # fmt: skip
    with path.open(encoding=coding.encoding, errors=coding.errors) as file:
        assert file.read() == "One line.\nAnother line.\n"
    assert coding.errors == ("lora-studio-mark-broken" if encoding == "utf-16" else "strict")


def test_rows_of_which_the_chosen_encoding_makes_no_text_are_left_out(store, tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_bytes(RUSSIAN.encode("utf-8") + "\u00e9?,\u00e0 la carte\n".encode("latin-1"))
    info = store.import_file(path, options={"encoding": "utf-8"})
    assert (info.used, info.left_out) == (6, 1) and "mean nothing in it" in " ".join(info.notes)
    path.write_bytes("question,answer\n\u4e00,\u4e8c\n".encode("euc-kr") + b"\xff\xff,a\n")
    info = store.import_file(path, options={"encoding": "euc-kr"})
    assert (info.used, info.left_out) == (1, 1)


def test_an_encoding_is_refused_where_there_is_none_to_choose(store, tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), path)
    with pytest.raises(DatasetError, match="a Parquet file has no encoding to be chosen"):
        store.import_file(path, options={"encoding": "big5"})
    with pytest.raises(DatasetError, match="Unknown encoding.*windows-1251"):
        store.import_file(path, options={"encoding": "rot13"})


def test_a_zip_is_read_in_the_chosen_encoding(store, tmp_path):
    path = tmp_path / "cities.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cities.csv", RUSSIAN.encode("koi8-r"))
    info = store.import_file(path, options={"encoding": "koi8-r"})
    assert store.rows(info.id, 0, 1)[0]["messages"][1]["content"] == f"{WORD} {WORD} 0."
