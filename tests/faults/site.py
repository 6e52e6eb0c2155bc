"""A studio on a real socket, a call to it, and what an answer must not tell."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn

from studio.guard import MAX_BODY_BYTES
from studio.server import server_config
from studio.services.settings import PROJECT_ROOT
from tests.door import COOKIE, HOME, PORT, House, build_house
from tests.waiting import wait_until

READ_S, READ_BYTES = 20.0, 1 << 20
STREAMS = re.compile(
    r"/gradio_api/(heartbeat|queue/data|call/.+/|upload_progress|startup-events|dev/reload)"
)
STREAM_READ_S = 0.2
UNTIL = b"close_stream"


@dataclass
class Call:
    """One request; its `told` line repeats it."""

    role: str
    method: str
    path: str
    headers: dict[str, str]
    content: bytes = b""

    @property
    def may_change(self) -> bool:
        """Whether it comes from the owner, from the right place."""
        foreign = self.headers.get("origin", HOME) != HOME or "host" in self.headers
        return self.role == "owner" and not foreign and "sec-fetch-site" not in self.headers

    def told(self) -> str:
        """What was sent, in a line."""
        headers = {name: value[:60] for name, value in self.headers.items()}
        return f"{self.role} {self.method} {self.path[:90]} {headers} {self.content[:200]!r}"


@dataclass
class Site:
    """A house that is served."""

    house: House
    port: int
    errors: io.StringIO = field(default_factory=io.StringIO)

    def send(self, client: httpx.Client, call: Call, *, read_s: float = 0) -> tuple[int, str]:
        """Status and what was said, headers first. Raises httpx errors."""
        headers = {"host": f"127.0.0.1:{PORT}", **call.headers}
        if call.role != "none" and "cookie" not in call.headers:
            headers["cookie"] = f"{COOKIE}={self.house.tokens[call.role]}"
        read_s = read_s or (STREAM_READ_S if STREAMS.match(call.path) else READ_S)
        pairs = [(name, value.encode("latin-1")) for name, value in headers.items()]
        request = client.build_request(
            call.method, f"http://127.0.0.1:{self.port}{call.path}", headers=pairs,
            content=call.content or None, timeout=httpx.Timeout(READ_S, read=read_s),
        )  # fmt: skip
        try:
            answer = client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError):
            if len(call.content) <= MAX_BODY_BYTES:
                raise
            return 413, ""  # closed before all of it was sent
        body, end = b"", time.monotonic() + max(read_s, READ_S)
        try:
            with contextlib.suppress(httpx.ReadTimeout):
                for part in answer.iter_bytes():
                    body += part
                    # A stream of heartbeats never runs into the time limit of one reading.
                    if len(body) > READ_BYTES or UNTIL in body[-200:] or time.monotonic() > end:
                        break
        finally:
            answer.close()
        said = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        return answer.status_code, said + "\n" + body.decode("utf-8", "replace")


@contextlib.contextmanager
def served(folder: Path, *, real_port: bool = False) -> Iterator[Site]:
    """The small house, served. `real_port`: it answers to the port's own name."""

    @contextlib.contextmanager
    def small(workspace: Path, *, port: int) -> Iterator[House]:
        patch = pytest.MonkeyPatch()
        try:
            yield build_house(workspace, patch, port=port)
        finally:
            patch.undo()

    with serve(folder, small, real_port=real_port) as site:
        yield site


@contextlib.contextmanager
def serve(folder: Path, house_of, *, real_port: bool = False) -> Iterator[Site]:
    """A house served as the studio serves it; what it logs and prints is kept."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    errors = io.StringIO()
    making: AbstractContextManager[House] = house_of(
        folder / "workspace", port=port if real_port else PORT
    )
    with listener, making as house, _logged(errors):
        server = uvicorn.Server(server_config(house.app, house.studio.settings))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        try:
            thread.start()
            wait_until(lambda: server.started, what="the server")
            yield Site(house, port, errors)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(timeout=30)


@contextlib.contextmanager
def _logged(errors: io.StringIO) -> Iterator[None]:
    handler = logging.StreamHandler(errors)
    names = ("", "uvicorn.error")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        with contextlib.redirect_stderr(errors):
            yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def leaks(house: House, call: Call, said: str) -> list[str]:
    """What an answer tells that it must not; what the call itself named is no news.

    The owner may read where the workspace is: errors and downloads name its files.
    """
    given = call.path + call.content.decode("latin-1")
    secrets = {
        "a token": [house.tokens["owner"], house.tokens["viewer"]],
        "a path": [str(PROJECT_ROOT), sys.prefix + "/lib", str(Path.home()) + "/"],
    }
    if call.role != "owner":
        secrets["a path"] += ["/srv/secret", str(house.workspace)]
    found = [
        what for what, texts in secrets.items()
        if any(text in said and text not in given for text in texts)
    ]  # fmt: skip
    return found + ["a traceback"] * ("Traceback (most recent" in said or 'File "/' in said)
