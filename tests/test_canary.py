"""Two secrets, the hub's token and the owner's, are where they belong and nowhere else.

A whole session as a process: the hub's token typed in, a gated model fetched from a hub on
loopback, the first run trained, its adapter asked; then every file, page, log and argument is read.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import pytest

from tests.services.fake_hub import FakeModel, fake_hub
from tests.services.test_hub import FILES
from tests.test_app import running
from tests.waiting import wait_until

CANARY = "hf_" + "CanaryOfTheHub" * 2
MODEL = "tiny/gated"


def arguments_and_environments() -> tuple[bytes, list[str]]:
    """All command lines of the machine, and of which processes the hub's token is in reach."""
    lines, holders = b"", []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                lines += (process / "cmdline").read_bytes() + b"\n"
                if CANARY.encode() in (process / "environ").read_bytes():
                    holders.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return lines, holders


class Watch:
    """Reads command lines over and over, since a child may live for a moment only."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()
        self.holders: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            lines, holders = arguments_and_environments()
            self.lines.update(lines.split(b"\n"))
            self.holders.update(holders)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Owner:
    """The owner's browser, without the browser."""

    def __init__(self, url: str, token: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        assert self.client.get("/", params={"token": token}).status_code == 303
        self.said = ""
        config = self.get("/config").json()
        self._index = {one["api_name"]: one["id"] for one in config["dependencies"]}

    def get(self, path: str) -> httpx.Response:
        """An answer; its words and headers are kept for the search."""
        answer = self.client.get(path)
        self.said += answer.text + str(answer.headers)
        return answer

    def click(self, name: str, *values: object) -> str:
        """The answer of a handler, to its end."""
        body = {"data": values, "fn_index": self._index[name], "session_hash": name}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        text = ""
        with self.client.stream("GET", f"/gradio_api/queue/data?session_hash={name}") as answer:
            for part in answer.iter_text():
                text += part
                if "close_stream" in text:
                    break
        self.said += text
        return text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_secrets_are_in_their_own_files_alone(repo_root, workspace, tmp_path, monkeypatch, request):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with fake_hub() as hub, Watch() as watch:
        hub.models[MODEL] = FakeModel(dict(FILES), gated=True, allowed_token=CANARY)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        arguments = ("--listen", "--host", "127.0.0.1")
        with running(repo_root, workspace, *arguments) as (process, output):

            def announced():
                assert process.poll() is None, output.read_text()
                return re.search(r"runs at (http://\S+)/\?token=(\S+)", output.read_text())

            url, token = wait_until(announced, timeout_s=120, what="the link").groups()
            owner = Owner(url, token)
            request.addfinalizer(owner.client.close)
            refused = owner.click("on_fetch", MODEL)
            assert "The model is here" not in refused, "the model was not gated"
            assert "Token kept" in owner.click("on_token", CANARY)
            assert "The model is here" in owner.click("on_fetch", MODEL)
            assert any(CANARY in str(bearer) for _, bearer, _ in hub.asked), "the token was unused"
            owner.click("on_first", "canary")

            def done():
                runs = owner.client.get("/api/runs").json()["runs"]
                assert not runs or runs[0]["state"] != "failed", runs
                return runs and runs[0]["state"] == "done" and runs[0]["id"]

            run_id = wait_until(done, timeout_s=300, what="the first run")
            question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            owner.said += owner.client.post(f"/view/chat/{run_id}", json=question).text
            for path in ("/", "/config", "/view", f"/view/runs/{run_id}", f"/api/runs/{run_id}",
                         f"/api/runs/{run_id}/metrics", "/api/machine"):  # fmt: skip
                owner.get(path)
            archive = owner.client.get(f"/api/runs/{run_id}/run.zip").content
    log = output.read_bytes()
    for secret in (CANARY, token):
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path != output]
        held = [path.name for path in files if secret.encode() in path.read_bytes()]
        assert held == (["hf_token"] if secret == CANARY else ["owner.token"])
        assert secret not in owner.said, "told in a page or an answer"
        assert not [line for line in watch.lines if secret.encode() in line], "in an argument"
        assert secret.encode() not in archive
    assert CANARY.encode() not in log and log.count(token.encode()) == 1
    assert not watch.holders, "a child got the hub's token in its environment"
