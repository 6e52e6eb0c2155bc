"""The store: import through the real child, idempotence, mapping, limits, samples."""

import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studio.cli_data import data_app
from studio.core.errors import DatasetError, StoreError
from studio.core.sniff import UnknownFormatError
from studio.services import datasets as module
from studio.services import source_file
from studio.services.datasets import DatasetStore
from studio.services.import_process import ImportCancelledError, Job, Limits, run_job

PRESETS = Path(__file__).parents[2] / "presets"
SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [{"question": f"Where is {n}?", "answer": f"At {n}."} for n in range(2500)]
ROWS[7] = {"question": "Where?", "answer": ""}

FILES = ["data.jsonl", "dataset.json", "findings.jsonl", "flags.npy", "hashes.npy",
         "left_out.jsonl", "places.npy"]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "workspace")


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "My Pairs (1).jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_import_keeps_source_rows_and_facts(store, pairs):
    told = []
    info = store.import_file(pairs, progress=lambda frac, text: told.append((frac, text)))
    assert (info.format, info.rows, info.used, info.left_out) == ("pairs", 2500, 2499, 1)
    assert info.id == f"{info.source['sha256'][:12]}-my-pairs-1"
    assert info.name == "My Pairs (1).jsonl"
    assert names(info.folder) == sorted([*FILES, "source.jsonl"])
    assert (info.folder / "source.jsonl").read_bytes() == pairs.read_bytes()
    assert info.problems[0]["line"] == 8
    assert stat.S_IMODE(info.folder.stat().st_mode) == 0o700
    assert store.get(info.id) == info
    assert store.list() == [info]
    assert names(info.folder.parent.parent / "tmp") == []


@pytest.mark.parametrize("start", [0, 5, 998, 1000, 2400, 2498])
def test_rows_are_found_anywhere(store, pairs, start):
    info = store.import_file(pairs)
    rows = store.rows(info.id, start, 3)
    used = [row for row in ROWS if row["answer"]]
    assert [row["messages"][1]["content"] for row in rows] == [
        row["answer"] for row in used[start : start + 3]
    ]
    assert store.rows(info.id, 2499, 3) == []


def test_importing_twice_gives_the_same_data_set(store, pairs, tmp_path, monkeypatch):
    first = store.import_file(pairs)
    other_name = tmp_path / "copy.txt"
    other_name.write_bytes(pairs.read_bytes())
    monkeypatch.setattr(module, "run_job", lambda *a, **k: pytest.fail("parsed again"))
    assert store.import_file(pairs) == first
    assert store.import_file(other_name) == first
    assert len(names(first.folder.parent)) == 1


def test_two_imports_at_once_give_one_data_set(store, pairs):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(store.import_file(pairs).id)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1
    assert len(store.list()) == 1
    assert names(store.list()[0].folder.parent.parent / "tmp") == []


def test_remap_leaves_the_old_one_for_its_runs_and_comes_back(store, pairs):
    old = store.import_file(pairs)
    before = (old.folder / "data.jsonl").read_bytes()
    new = store.remap(old.id, "pairs", {"question": "answer", "answer": "question"})
    assert new.id != old.id and new.fingerprint != old.fingerprint
    assert store.rows(new.id, 0, 1)[0]["messages"][0]["content"] == "At 0."
    assert [info.id for info in store.list()] == [new.id]
    assert store.get(old.id).fingerprint == old.fingerprint
    assert (old.folder / "data.jsonl").read_bytes() == before
    again = store.remap(new.id, "pairs", {"question": "question", "answer": "answer"})
    assert again.id == old.id
    assert [info.id for info in store.list()] == [old.id]
    assert store.remap(old.id, "pairs") == old


def test_remap_that_fails_changes_nothing(store, pairs):
    old = store.import_file(pairs)
    with pytest.raises(DatasetError, match="needs a column for 'messages'"):
        store.remap(old.id, "messages")
    with pytest.raises(DatasetError, match="does not have .got 'nope'"):
        store.remap(old.id, "text", {"text": "nope"})
    assert store.list() == [old]


def test_failed_import_leaves_nothing(store, tmp_path):
    path = tmp_path / "three.csv"
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(UnknownFormatError, match="three.csv: None of the known formats") as caught:
        store.import_file(path)
    assert caught.value.columns == ["a", "b", "c"]
    assert names(tmp_path / "workspace" / "tmp") == []
    assert store.list() == []
    info = store.import_file(path, format="pairs", mapping={"question": "a", "answer": "c"})
    assert store.rows(info.id, 0, 1)[0]["messages"][1]["content"] == "3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "There is no such file, data set or sample .*Check the path"),
        (lambda p: p.mkdir() or p, "the folder holds no data file .*Choose a folder of data"),
        (lambda p: p.write_text("") and None or p, "x.csv: the file is empty"),
        (lambda p: p.write_bytes(b"\x80\x04\x95\0\0") and p, "x.csv: this is a Python pickle"),
    ],
)
def test_path_that_is_no_data_gets_one_sentence(store, tmp_path, make, message):
    with pytest.raises(DatasetError, match=message):
        store.import_file(make(tmp_path / "x.csv"))


def test_full_disk_is_told_before_anything_is_copied(store, pairs, monkeypatch):
    monkeypatch.setattr(source_file, "free_bytes", lambda path: 2**20)
    with pytest.raises(StoreError, match="No space to import the file .got '?1 MiB free"):
        store.import_file(pairs)


@pytest.mark.parametrize("id", ["../../etc", "abc", "0123456789ab-none", "a/b", ""])
def test_unknown_id_is_refused(store, id):
    with pytest.raises(DatasetError, match="no such data set"):
        store.get(id)


def test_damaged_record_is_said_and_does_not_break_the_list(store, pairs):
    info = store.import_file(pairs)
    (info.folder / "dataset.json").write_text("{")
    assert store.list() == []
    with pytest.raises(StoreError, match="damaged .*import the file again"):
        store.get(info.id)


# ------------------------------------------------------------------ the child and its limits


def job(tmp_path, content, name="a.jsonl", **limits):
    (tmp_path / "stage").mkdir()
    source = tmp_path / "stage" / "source"
    source.write_bytes(content)
    request = {"source": str(source), "format": "auto", "mapping": {}}
    return Job("studio.services.import_child", tmp_path / "stage", name, request, Limits(**limits))


def test_memory_limit_ends_in_a_sentence(tmp_path):
    row = json.dumps({"text": "x" * 12_000_000}).encode() + b"\n"
    with pytest.raises(DatasetError, match="a.jsonl: reading it needs more than 0.1 GiB of memory"):
        run_job(job(tmp_path, row * 12, memory_bytes=100 * 2**20))


def test_time_limit_ends_in_a_sentence(tmp_path):
    rows = b'{"text": "a line"}\n' * 400_000
    with pytest.raises(DatasetError, match="took longer than 0 s.*Split the file"):
        run_job(job(tmp_path, rows, wall_s=0.4))


def test_size_limit_ends_in_a_sentence(tmp_path):
    rows = b'{"text": "a line"}\n' * 100_000
    with pytest.raises(DatasetError, match="a.jsonl: its rows are too many to store"):
        run_job(job(tmp_path, rows, file_bytes=2**20))


def test_a_copy_tells_how_far_it_is_and_ends_when_it_is_cancelled(store, tmp_path):
    path = tmp_path / "big.jsonl"
    line = json.dumps({"question": "What?", "answer": "word " * 2000}) + "\n"
    path.write_text(line * 500)
    said = []
    with pytest.raises(ImportCancelledError, match="big.jsonl: the import was cancelled"):
        store.import_file(
            path, progress=lambda *told: said.append(told), cancelled=lambda: len(said) == 2
        )
    assert said == [(None, "1 of 4 MiB copied"), (None, "2 of 4 MiB copied")]
    assert store.list() == [] and list((tmp_path / "workspace" / "tmp").iterdir()) == []


@pytest.mark.parametrize("after", ["0 of", "3 of 6", "6 of 6"])
def test_packing_a_folder_tells_how_far_it_is_and_can_be_cancelled(store, tmp_path, after):
    """Cancelled while the files are listed, while they are packed, and while the zip is hashed."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("word " * 420_000)
    said = []
    with pytest.raises(ImportCancelledError, match="texts: the import was cancelled"):
        store.import_file(
            folder, progress=lambda *told: said.append(told),
            cancelled=lambda: any(text.startswith(after) for _, text in said),
        )  # fmt: skip
    assert said[-1][1].startswith(after) and said[-1][1].endswith(" MiB copied")
    assert store.list() == [] and list((tmp_path / "workspace" / "tmp").iterdir()) == []


def test_samples_and_other_readings_are_cancelled_too(store, pairs):
    info = store.import_file(pairs)
    with pytest.raises(ImportCancelledError):
        store.remap(info.id, "text", {"text": "answer"}, cancelled=lambda: True)
    with pytest.raises(ImportCancelledError):
        store.import_sample(store.samples()[0]["id"], cancelled=lambda: True)
    assert [one.id for one in store.list()] == [info.id]


def test_cancel_keeps_nothing(store, tmp_path):
    path = tmp_path / "big.jsonl"
    path.write_text('{"text": "a line"}\n' * 400_000)
    with pytest.raises(ImportCancelledError, match="big.jsonl: the import was cancelled"):
        store.import_file(path, cancelled=lambda: True)
    assert store.list() == [] and names(tmp_path / "workspace" / "tmp") == []


def test_child_that_dies_is_told(tmp_path):
    broken = job(tmp_path, b"x")
    with pytest.raises(DatasetError, match="reading it failed .*No module named"):
        run_job(Job("studio.services.nothing_here", broken.folder, "a", {}, Limits()))


def test_neither_store_nor_child_imports_what_is_heavy():
    code = (
        "import sys, studio.services.datasets, studio.services.import_child as c;"
        "print([m for m in ('torch','transformers','datasets','gradio','pyarrow','pandas')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_child_sees_no_token(store, pairs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token-value")
    seen = {}
    real = subprocess.Popen

    def spy(*args, **options):
        seen.update(options["env"])
        return real(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    store.import_file(pairs)
    assert "secret-token-value" not in seen.values()


# ------------------------------------------------------------------ samples, references, command


def test_samples_are_whole_short_and_of_their_format(store):
    samples = store.samples()
    assert [sample["id"] for sample in samples] == ["harbor-style", "faq", "classify"]
    for sample in samples:
        info = store.import_sample(sample["id"])
        assert info.sample and info.format == sample["format"]
        assert 150 <= info.used <= 400 and info.left_out == 0
        rows = store.rows(info.id, 0, info.used)
        texts = {json.dumps(row["messages"]) for row in rows}
        assert len(texts) == info.used  # no row twice
        longest = max(len(m["content"].split()) for row in rows for m in row["messages"])
        assert longest <= 60


def test_style_sample_keeps_its_rule(store):
    sys.path.insert(0, str(PRESETS / "data"))
    try:
        from check_style import holds
    finally:
        sys.path.pop(0)
    info = store.import_sample("harbor-style")
    answers = [row["messages"][-1]["content"] for row in store.rows(info.id, 0, info.used)]
    assert all(holds(answer) for answer in answers)
    for wrong in (
        "I found 3 hotels.", "Ahoy, captain! Over.", "Ahoy, captain! It is late.",
        "Well. Ahoy, captain! It is late. Over.", "Ahoy, captain! It is late. Over. Bye.",
        "Ahoy, captain! Ahoy, captain! It is late. Over.",
    ):  # fmt: skip
        assert not holds(wrong)


def test_classes_are_balanced(store):
    info = store.import_sample("classify")
    labels = [row["label"] for row in store.rows(info.id, 0, info.used)]
    assert {label: labels.count(label) for label in set(labels)} == dict.fromkeys(
        ("delivery", "billing", "defect", "praise"), 60
    )


def test_resolve_takes_every_kind_of_reference(store, pairs):
    sample = store.resolve("sample:faq")
    assert store.resolve("faq") == sample
    assert store.resolve(sample.id) == sample
    info = store.resolve(str(pairs))
    assert info.format == "pairs"
    swapped = {"question": "answer", "answer": "question"}
    assert store.resolve(str(pairs), mapping=swapped).mapping == swapped
    assert store.resolve(info.id, format="text", mapping={"text": "answer"}).format == "text"
    with pytest.raises(DatasetError, match="no such sample set .*harbor-style, faq, classify"):
        store.resolve("sample:poems")
    with pytest.raises(DatasetError, match="no such file, data set or sample"):
        store.resolve("nothing-here")


def check(*arguments):
    return CliRunner().invoke(data_app, ["check", *map(str, arguments)])


def test_check_prints_one_object_and_leaves_nothing(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    report = json.loads(check(pairs, "--json", "--set", "data.val_frac=0.2").stdout)
    assert report["format"] == "pairs"
    assert report["mapping"] == {"question": "question", "answer": "answer"}
    assert report["rows"] == {"train": 1999, "held_out": 500, "left_out": 1}
    assert report["problems"][0]["line"] == 8 and "empty" in report["problems"][0]["reason"]
    assert sorted(tmp_path.rglob("*")) == before


def test_check_takes_a_format_and_speaks(pairs):
    result = check(pairs, "--format", "text", "--set", "data.mapping={text: answer}")
    assert "text (text = answer)" in result.stdout
    assert "2,249 rows train, 250 are held out, 1 is left out" in result.stdout
    assert "1 x 'text' (column 'answer') is empty (first: line 8)" in result.stdout


def test_check_of_a_bad_file_raises_the_sentence_that_the_command_prints(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("question,answer\n")
    result = check(path)
    assert isinstance(result.exception, DatasetError)
    assert str(result.exception) == "empty.csv: the file has no rows. Choose a file with rows."


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data files are not here")
def test_real_files_are_recognised(store):
    expected = {
        "alpaca_en_1k.json": ("alpaca", 999), "gsm8k_train.jsonl": ("pairs", 7473),
        "sst2_test.tsv": ("classification", 1821), "c4_demo.jsonl": ("text", 300),
    }  # fmt: skip
    found = {name: store.import_file(SHARED / name) for name in expected}
    assert {name: (info.format, info.used) for name, info in found.items()} == expected


def test_gzip_keeps_both_endings(store, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    info = store.import_file(path)
    assert names(info.folder) == sorted([*FILES, "source.jsonl.gz"])
    assert info.id.endswith("-rows")
    assert os.access(info.data_file, os.R_OK)
