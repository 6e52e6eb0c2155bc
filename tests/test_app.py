"""`python app.py` as a process: it shares no workspace and ends when told. See test_startup."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from studio.core.runs import read_json
from tests.waiting import wait_until


@contextlib.contextmanager
def running(root, workspace, *arguments):
    """The studio in a process of its own: (process, output file)."""
    output = workspace.parent / f"out-{os.urandom(3).hex()}"
    command = [sys.executable, str(root / "app.py"), "--no-browser", "--workspace", str(workspace)]
    with output.open("wb") as sink:
        process = subprocess.Popen([*command, *arguments], stdout=sink, stderr=sink, cwd=root)
    try:
        yield process, output
    finally:
        process.kill()
        process.wait(timeout=30)


def url_of(process, output):
    """Where it serves, once it does."""

    def announced():
        assert process.poll() is None, output.read_text()
        return re.search(r"runs at (http://\S+)", output.read_text())

    url = wait_until(announced, timeout_s=120, what="the studio to say where it is")[1]
    answer = httpx.get(f"{url}/healthz", timeout=30)
    assert answer.json() == {"status": "ok"}
    return url


def test_second_studio_reads_only_and_sigterm_ends_each_with_its_children(repo_root, workspace):
    with running(repo_root, workspace) as (first, output):
        url = url_of(first, output)
        assert read_json(workspace / "studio.json")["url"] == url
        with running(repo_root, workspace) as (second, second_output):
            other = url_of(second, second_output)
            assert other != url, "two studios on one port"
            assert "read-only" in httpx.get(other, timeout=60).text
        children = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=30)
        assert not [child for child in children if child.is_running()]
        assert "Traceback" not in output.read_text()


def test_nothing_is_left_in_the_systems_temp_folder(repo_root, workspace, monkeypatch):
    temp = workspace.parent / "temp"
    temp.mkdir()
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with running(repo_root, workspace) as (process, output):
        url = url_of(process, output)
        files = {"files": ("rows.jsonl", b'{"text": "a"}\n')}
        sent = httpx.post(f"{url}/gradio_api/upload", files=files, timeout=60,
                          headers={"origin": url})  # fmt: skip
        (kept,) = sent.json()
        assert str(workspace) in kept
        assert httpx.get(url, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert sorted(path.name for path in temp.iterdir()) == []


@pytest.mark.parametrize("kind", ["workspace", "host"])
def test_what_cannot_work_is_one_line_and_code_1(repo_root, tmp_path, kind):
    (tmp_path / "file").touch()
    arguments = {
        "workspace": ("--workspace", str(tmp_path / "file")), "host": ("--host", "0.0.0.0"),
    }[kind]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(repo_root / "app.py"), "--no-browser", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "LORA_STUDIO_WORKSPACE": str(tmp_path / "w")},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: "), done.stderr
