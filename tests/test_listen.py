"""`python app.py --listen` as a process: a link with a token, and the token nowhere else."""

from __future__ import annotations

import re

import httpx
import psutil

from tests.test_app import running
from tests.waiting import wait_until


def test_listen_prints_a_link_and_keeps_the_token_to_itself(repo_root, workspace):
    with running(repo_root, workspace, "--listen", "--host", "127.0.0.1") as (process, output):

        def announced():
            assert process.poll() is None, output.read_text()
            return re.search(r"runs at (http://\S+)/\?token=(\S+)", output.read_text())

        url, token = wait_until(announced, timeout_s=120, what="the link").groups()
        with httpx.Client(base_url=url, timeout=30) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/config").status_code == 401
            opened = client.get("/", params={"token": token})
            assert opened.status_code == 303 and opened.headers["location"] == "/"
            page = client.get("/")
            assert page.status_code == 200 and token not in page.text
        arguments = [part for one in (psutil.Process(process.pid),
                                      *psutil.Process(process.pid).children(recursive=True))
                     for part in one.cmdline()]  # fmt: skip
        assert not any(token in part for part in arguments)
    holders = [path.name for path in workspace.rglob("*")
               if path.is_file() and token.encode() in path.read_bytes()]  # fmt: skip
    assert holders == ["owner.token"]
    assert output.read_text().count(token) == 1
