"""A data set from before there were checks gets them, and they are those of a new import."""

import json

import pytest

from studio.core.errors import DatasetError
from studio.services.check_again import needs_checks
from studio.services.check_lists import check_summaries, list_check
from studio.services.datasets import DatasetStore
from studio.services.findings import FINDINGS, FLAGS, HASHES, LEFT_OUT, PLACES
from studio.services.import_process import ImportCancelledError

FILES = (FINDINGS, LEFT_OUT, PLACES, FLAGS, HASHES)


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "w")


@pytest.fixture
def old(store, tmp_path):
    """(a data set without checks, what an import found in the same rows)"""
    rows = [{"question": f"Where is town {n}?", "answer": f"At mile {n}."} for n in range(400)]
    rows[7] = rows[3]
    rows[9]["answer"] = ""
    rows[11]["answer"] = "Ask ann@acme.io"
    for row in rows[100:350]:
        row["answer"] = 5
    path = tmp_path / "towns.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = store.import_file(path)
    found = {name: (info.folder / name).read_bytes() for name in FILES}
    summaries = check_summaries(info)
    for name in FILES:
        (info.folder / name).unlink()
    record = json.loads((info.folder / "dataset.json").read_text())
    del record["checks"]
    (info.folder / "dataset.json").write_text(json.dumps(record))
    return store.get(info.id), found, summaries


def test_it_gets_the_checks_of_an_import(store, old):
    info, found, summaries = old
    assert needs_checks(info) and check_summaries(info) == []
    info = store.check_again(info.id)
    assert not needs_checks(info) and check_summaries(info) == summaries
    for name in (FINDINGS, PLACES, FLAGS, HASHES):
        assert (info.folder / name).read_bytes() == found[name]
    listed = list_check(info, "wrong_type", 0, 1000)
    assert 0 < len(listed) <= 200 and {hit["detail"] for hit in listed} == {
        "'answer' (column 'answer') is a number, not text"
    }
    assert store.check_again(info.id) == info


def test_cancelled_it_is_as_before(store, old, tmp_path):
    info = old[0]
    with pytest.raises(ImportCancelledError):
        store.check_again(info.id, cancelled=lambda: True)
    assert store.get(info.id) == info and needs_checks(info)
    assert list((tmp_path / "w" / "tmp").iterdir()) == []


def test_damaged_rows_are_told(store, old):
    info = old[0]
    info.data_file.write_text("{broken\n")
    with pytest.raises(DatasetError, match="towns.jsonl"):
        store.check_again(info.id)
    assert needs_checks(info)
