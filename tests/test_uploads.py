"""Uploads that break off, drag on or are none: nothing stays, nobody waits, somebody is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from studio.connections import PatientProtocol
from studio.guard import RequestGuard
from tests.door import COOKIE, HOME, PORT
from tests.faults.site import serve, served
from tests.full_house import full_house
from tests.waiting import wait_until

HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.txt"\r\n\r\n'
KIND = {"content-type": "multipart/form-data; boundary=b", "origin": HOME}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("uploads"), full_house) as one:
        yield one


def uploads_of(site):
    folder = site.house.workspace / "tmp" / "uploads"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def post(site, content, **headers):
    cookie = {"cookie": f"{COOKIE}={site.house.tokens['owner']}", "host": f"127.0.0.1:{PORT}"}
    return httpx.post(
        f"http://127.0.0.1:{site.port}/gradio_api/upload", content=content,
        headers={**KIND, **cookie, **headers}, timeout=60,
    )  # fmt: skip


def head_of(site, length):
    """The head of an upload of this many bytes, as a browser sends it."""
    lines = [
        "POST /gradio_api/upload HTTP/1.1", f"Host: 127.0.0.1:{PORT}", f"Origin: {HOME}",
        f"Cookie: {COOKIE}={site.house.tokens['owner']}", f"Content-Length: {length}",
        "Content-Type: multipart/form-data; boundary=b", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def test_upload_that_is_broken_off_leaves_no_file(site):
    before = uploads_of(site)
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as line:
        line.sendall(head_of(site, 1 << 22) + HEAD + b"x" * 200_000)
        wait_until(lambda: len(uploads_of(site)) > len(before), what="the upload to begin")
    wait_until(lambda: uploads_of(site) == before, what="the file to go")


@pytest.mark.parametrize(
    "body",
    [HEAD + b"x" * 9, HEAD.replace(b"files", b"other") + b"x\r\n--b--\r\n",
     HEAD.replace(b"; filename", b"; other") + b"x\r\n--b--\r\n", b"--b\r\n\r\nx\r\n--b--\r\n",
     HEAD + b"x\r\n--b\r\n" + b"A: " + b"y" * 20_000 + b"\r\n\r\n\r\n--b--\r\n"],
    ids=["torn", "other field", "no file", "no name", "long head"],
)  # fmt: skip
def test_what_is_no_upload_is_refused_or_nothing_and_leaves_no_file(site, body):
    before = uploads_of(site)
    answer = post(site, body)
    assert answer.status_code in (200, 400, 413)
    assert answer.status_code != 200 or answer.json() == []
    assert uploads_of(site) == before


def test_a_good_upload_stays_and_unknown_charset_is_no_500(site):
    good = HEAD + b"hello\r\n--b--\r\n"
    (path,) = post(site, good).json()
    assert Path(path).read_bytes() == b"hello"
    strange = post(site, good, **{"content-type": "multipart/form-data; boundary=b; charset=no"})
    assert strange.status_code in (200, 400)


def test_many_files_over_the_cap_leave_nothing(tmp_path, monkeypatch):
    """The cap is on the whole request: gradio's own counts each file."""
    defaults = {**RequestGuard.__init__.__kwdefaults__, "max_upload_bytes": 1 << 20}
    monkeypatch.setattr(RequestGuard.__init__, "__kwdefaults__", defaults)
    with serve(tmp_path, full_house) as site:

        def body():
            for _ in range(40):
                yield HEAD + b"x" * 50_000 + b"\r\n"
            yield b"--b--\r\n"

        status = 413
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # closed while it sent
            status = post(site, body()).status_code
        assert status == 413
        wait_until(lambda: not uploads_of(site), what="the files to go")
        assert post(site, HEAD + b"x\r\n--b--\r\n").status_code == 200


async def _swallow(scope, receive, send):
    """Reads the body, then answers."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Impatient(PatientProtocol):
    head_s, max_per_address = 0.5, 3


@pytest.fixture
def small_server():
    """The guard and the protocol with short limits, on a socket: its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = RequestGuard(_swallow, port=port, body_s=0.5)
    server = uvicorn.Server(uvicorn.Config(app, http=Impatient, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield port
    server.should_exit = server.force_exit = True
    thread.join(timeout=30)
    listener.close()


def trickle(port, first, rest):
    """Send `first`, then `rest` a byte at a time; what came back once the other end closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(first)
        line.settimeout(0.05)
        said, until = b"", time.monotonic() + 20
        for byte in rest * 1000:
            assert time.monotonic() < until, "nobody ended it"
            with contextlib.suppress(TimeoutError):
                try:
                    line.sendall(bytes([byte]))
                    part = line.recv(1000)
                except OSError as error:
                    if isinstance(error, TimeoutError):
                        raise
                    return said
                if not part:
                    return said
                said += part
    return said


@pytest.mark.parametrize("what", ["head", "body", "second head"])
def test_a_byte_at_a_time_is_ended_while_others_are_served(small_server, what):
    port = small_server
    start = f"POST /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
    first = {
        "head": start, "body": start + b"Content-Length: 99999\r\n\r\n",
        "second head": f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\nGET /x".encode(),
    }[what]  # fmt: skip
    said = []
    slow = threading.Thread(target=lambda: said.append(trickle(port, first, b"x")))
    slow.start()
    while slow.is_alive():
        began = time.monotonic()
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"y", timeout=30).text == "ok"
        assert time.monotonic() - began < 5, "a slow client held the others up"
    assert b" 408 " in said[0], said


def test_one_address_holds_so_many_connections_and_no_more(small_server):
    with contextlib.ExitStack() as lines:
        held = [
            lines.enter_context(socket.create_connection(("127.0.0.1", small_server), timeout=10))
            for _ in range(4)
        ]
        with contextlib.suppress(ConnectionResetError):
            assert held[3].recv(1) == b""
    assert wait_until(lambda: httpx.get(f"http://127.0.0.1:{small_server}/").text == "ok")


def test_the_slow_body_does_not_reach_the_app_as_a_whole():
    """A body that is cut must not look complete to the route that reads it."""
    seen = []

    async def app(scope, receive, send):
        seen.append(await receive())
        seen.append(await receive())

    async def receive(parts=[b"begin"]):  # noqa: B006 - a queue
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": True}
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/",
             "headers": [(b"host", b"127.0.0.1:7860")]}  # fmt: skip
    asyncio.run(RequestGuard(app, port=7860, body_s=0.1)(scope, receive, send))
    assert [one["type"] for one in seen] == ["http.request", "http.disconnect"]
    assert sent[0]["status"] == 408


def test_small_house_is_served_too(tmp_path):
    with served(tmp_path) as site:
        assert post(site, HEAD + b"x\r\n--b--\r\n").status_code == 200
