"""Data sets of the hub: what is said where it refuses, is switched off or cannot be reached."""

import http.server
import threading

import pytest

from studio.core.errors import HubError
from studio.services.datasets import DatasetStore


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
