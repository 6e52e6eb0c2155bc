"""Data sets of the hub: what is said where it refuses, is switched off or cannot be reached."""

import http.server
import threading

import pytest

from studio.core.errors import HubError
from studio.services.datasets import DatasetStore
from studio.services.hub_datasets import HubDatasets
from studio.services.import_process import ImportCancelledError
from tests.services.fake_dataset_hub import fake_dataset_hub


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "workspace")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every question with one status."""

    status = 404

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_HEAD(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "no such data set on the hub, or it is private .got 'owner/none'"),
        (401, "gated, private or does not exist .got 'owner/none'.*Accept its licence at https"),
    ],
)
def test_hub_that_says_no_is_quoted_in_one_sentence(store, hub, monkeypatch, status, message):
    monkeypatch.setattr(hub, "status", status)
    with pytest.raises(HubError, match=message):
        store.import_hub("owner/none")


def test_hub_without_network_is_said_at_once(store, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HubError, match="cannot be reached .got 'owner/name'.*Check the network"):
        store.import_hub("hf:owner/name")


def test_hub_switched_off_names_the_switch(store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="switched off by HF_HUB_OFFLINE .*Unset"):
        store.resolve("hf:owner/name")


@pytest.mark.parametrize("id", ["", "a/b/c", "../x", "hf:"])
def test_hub_id_that_cannot_be_one_is_refused(store, id):
    with pytest.raises(HubError, match="no Hugging Face data set id"):
        store.import_hub(id)


def test_hub_row_count_is_bounded(store):
    with pytest.raises(HubError, match="out of range .got 0.. Allowed: 1 to 100000"):
        store.import_hub("a/b", max_rows=0)


CARD = b"""---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train.jsonl}
  - {split: test, path: one/test.jsonl}
- config_name: two
  data_files: two.csv
---
"""


def some_rows(count):
    return "".join(f'{{"question": "q{n}", "answer": "a{n}"}}\n' for n in range(count)).encode()


@pytest.fixture
def full_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with fake_dataset_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories["own/set"] = {
            "README.md": CARD, "one/train.jsonl": some_rows(300), "one/test.jsonl": some_rows(3),
            "two.csv": b"question,answer\na,b\n",
        }  # fmt: skip
        hub.repositories["own/script"] = {"README.md": b"# x\n", "script.py": b"x = 1\n"}
        hub.repositories["own/locked"] = {"README.md": CARD}
        hub.gated.add("own/locked")
        yield hub


def test_configurations_splits_and_first_rows_are_told(full_hub, tmp_path):
    looks = HubDatasets(tmp_path / "workspace")
    found = looks.look("hf:own/set")
    assert (found.configs, found.config) == (["one", "two"], "one")
    assert [split["name"] for split in found.splits] == ["train", "test"]
    seen = looks.preview("own/set", "one", "train", rows=5)
    assert seen.columns == ["question", "answer"] and len(seen.rows) == 5
    assert seen.rows[4] == {"question": "q4", "answer": "a4"}
    assert not list((tmp_path / "workspace" / "tmp").iterdir())


def test_the_chosen_configuration_and_split_are_fetched(full_hub, store):
    info = store.import_hub("own/set", config="one", split="test")
    assert (info.used, info.format) == (3, "pairs") and "one-test" in info.name


@pytest.mark.parametrize(
    ("id", "config", "split", "message"),
    [
        ("own/script", None, "train", "needs a program of its own .*which is never run"),
        ("own/locked", None, "train", "gated, private or does not exist .*Accept its licence"),
        ("own/none", None, "train", "no such data set on the hub"),
        ("own/set", "three", "train", "no such configuration or split: .*one"),
        ("own/set", "one", "dev", "no such configuration or split: .*dev"),
    ],
)
def test_what_cannot_be_looked_at_says_why(full_hub, tmp_path, id, config, split, message):
    with pytest.raises(HubError, match=message):
        HubDatasets(tmp_path / "workspace").preview(id, config, split)


def test_a_preview_that_hangs_can_be_cancelled(full_hub, tmp_path):
    full_hub.held.add("one/train.jsonl")
    asked = threading.Event()

    def cancelled():
        if any("one/train.jsonl" in line for line in full_hub.asked):
            asked.set()
        return asked.is_set()

    with pytest.raises(ImportCancelledError):
        HubDatasets(tmp_path / "workspace").preview("own/set", "one", cancelled=cancelled)
    assert not list((tmp_path / "workspace" / "tmp").iterdir())
