"""Hostile calls in four roles: does anything change without the right, break, or tell too much?

    python -m tests.faults.hostile_calls --trials 2000

Calls are drawn from hand-made parts: every route of the application and paths that are none, wrong
methods, hosts, origins, bodies, sessions and values. The studio is served by uvicorn in a thread
and answers over a real socket; what streams without an end is read for a moment and left.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from studio.services.settings import PROJECT_ROOT
from tests.door import COOKIE, HOME, PORT, House, build_house, every_route, files_of
from tests.faults.result import Result, run_from_command_line

ROLES = ("none", "wrong", "viewer", "owner")
READ_S, READ_BYTES = 10.0, 1 << 20
STREAMS = re.compile(r"/gradio_api/(heartbeat|queue/data|call/.+/|upload_progress|startup-events)")
STREAM_READ_S = 0.3
REFUSED = (401, 403, 404, 405, 413, 421, 422, 429)

OTHER_PATHS = (
    "/", "//", "/..", "/%2e%2e/%2e%2e/etc/passwd", "/gradio_api/file=/etc/passwd", "/.env",
    "/gradio_api/file={workspace}/access/owner.token", "/gradio_api/file=../access/owner.token",
    "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file=%00", "/static/../../../etc/passwd", "/static/..%2f..%2fserver.py",
    "/assets/%2e%2e/%2e%2e/x", "/gradio_api/proxy=http://169.254.169.254/", "/api/runs/%00",
    "/api/runs/..%2f..%2faccess", "/api/runs/%f0%9f%92%a9", "/api/runs/" + "a" * 5000,
    "/api/runs/{run}/metrics?since=-1", "/api/runs/{run}/metrics?since=" + "9" * 4000,
    "/api/runs/{run}/metrics?since=%00", "/api/runs/{run}/metrics?since=%ff%fe",
    "/view/runs/..%2f..%2f", "/view/assets/..%2fviewer.py", "/view/assets/%2e%2e", "/view/chat/x",
    "/?token=", "/?token=" + "x" * 4000, "/view?token=%00", "/?token=a&token=b", "/?__theme=%22%3E",
    "/?view=api", "/?deep_link=..%2f..%2fetc%2fpasswd", "/gradio_api/queue/data?session_hash=%00",
    "/gradio_api/component_server?x=1", "/gradio_api/upload?upload_id=../../x", "/metrics",
    "/monitoring/summary", "/docs", "/openapi.json", "/wp-login.php", "/gradio_api/mcp/sse",
)  # fmt: skip
VALUES = (
    None, "", "x", -1, 1e308, True, [], {}, [[[[]]]], {"path": "/etc/passwd"}, "\x00",
    {"path": "{workspace}/access/owner.token", "meta": {"_type": "gradio.FileData"}},
    {"path": "x", "url": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update", "value": 1}, "../" * 40, "x" * 100_000, "{{7*7}}",
    "'; DROP TABLE runs;--", "\ud83d\ude00",
    "<script>alert(1)</script>", "$(touch /tmp/owned)", 10**400,
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {}, {}, {"origin": HOME}, {"origin": "http://evil.example"}, {"origin": "null"},
    {"origin": "http://["}, {"host": "rebind.evil"}, {"host": "127.0.0.1"}, {"host": ""},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, {"x-forwarded-host": "evil"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, {"x-gradio-user": "mcp"},
    {"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1;host=localhost"},
    {"content-length": "-5"}, {"range": "bytes=999999999-"}, {"accept-encoding": "\xff"},
    {"authorization": "Bearer " + "x" * 5000}, {"authorization": "Basic b3duZXI6b3duZXI="},
    {"cookie": "access-token=x; access-token-unsecure-x=y; a"},
    {"x-http-method-override": "DELETE"},
    {"if-modified-since": "yesterday"}, {"accept": "text/html"}, {"accept-language": "\x01"},
)  # fmt: skip
FORBIDDEN = "forbidden to"  # stands in the values of clicks that must never arrive
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


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
        return f"{self.role} {self.method} {self.path[:90]} {self.headers} {self.content[:90]!r}"


@dataclass
class Site:
    """The house on a real socket."""

    house: House
    port: int
    errors: io.StringIO = field(default_factory=io.StringIO)

    def send(self, client: httpx.Client, call: Call) -> tuple[int, str]:
        """Status and what was said, headers first. Raises httpx errors."""
        headers = {"host": f"127.0.0.1:{PORT}", **call.headers}
        if call.role != "none" and "cookie" not in call.headers:
            headers["cookie"] = f"{COOKIE}={self.house.tokens[call.role]}"
        read_s = STREAM_READ_S if STREAMS.match(call.path) else READ_S
        pairs = [(name, value.encode("latin-1")) for name, value in headers.items()]
        request = client.build_request(
            call.method, f"http://127.0.0.1:{self.port}{call.path}", headers=pairs,
            content=call.content or None, timeout=httpx.Timeout(READ_S, read=read_s),
        )  # fmt: skip
        answer = client.send(request, stream=True)
        body = b""
        try:
            with contextlib.suppress(httpx.ReadTimeout):
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > READ_BYTES:
                        break
        finally:
            answer.close()
        said = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        return answer.status_code, said + "\n" + body.decode("utf-8", "replace")


@contextlib.contextmanager
def served(folder: Path, *, real_port: bool = False) -> Iterator[Site]:
    """The house, served; what it logs is kept. `real_port`: it answers to the port's own name."""
    patch = pytest.MonkeyPatch()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    house = build_house(folder / "workspace", patch, port=port if real_port else PORT)
    server = uvicorn.Server(uvicorn.Config(house.app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    errors = io.StringIO()
    handler = logging.StreamHandler(errors)
    try:
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        for name in ("", "uvicorn.error"):
            logging.getLogger(name).addHandler(handler)
        yield Site(house, port, errors)
    finally:
        for name in ("", "uvicorn.error"):
            logging.getLogger(name).removeHandler(handler)
        server.should_exit = server.force_exit = True
        thread.join(timeout=30)
        listener.close()
        patch.undo()


class Drawer:
    """Draws calls; the same seed draws the same."""

    def __init__(self, house: House, seed: int) -> None:
        self._draw = random.Random(seed)
        self._routes = sorted({(m, p) for m, p in every_route(house.app.routes) if p})
        self._fill = {"{workspace}": str(house.workspace), "{run}": house.runs["done"]}

    def call(self, number: int) -> Call:
        """The next one; roles take turns."""
        draw = self._draw
        role = ROLES[number % len(ROLES)]
        if draw.random() < 0.15:
            return self._well_formed(role)
        if draw.random() < 0.6:
            method, template = draw.choice(self._routes)
            path = re.sub(r"\{run_id[^}]*\}", self._fill["{run}"], template)
            path = re.sub(r"\{api_name[^}]*\}", lambda _: draw.choice(("start", "0", "nope")), path)
            path = re.sub(
                r"\{[^}]*\}", lambda _: draw.choice(("x", "0", "%00", "..%2f", "a b")), path
            )
        else:
            method, path = "GET", draw.choice(OTHER_PATHS)
            for name, value in self._fill.items():
                path = path.replace(name, value)
        if draw.random() < 0.15:
            method = draw.choice(METHODS)
        headers = dict(draw.choice(HEADERS))
        content = b""
        if method not in ("GET", "HEAD", "OPTIONS", "TRACE"):
            kind, content = self._body()
            headers.setdefault("content-type", kind)
        return Call(role, method, path.replace(" ", "%20"), headers, content)

    def _well_formed(self, role: str) -> Call:
        """A call that works, but for who sends it or from where: only the door is in its way."""
        headers = dict(self._draw.choice(HEADERS[4:]))
        path = self._draw.choice(("call/start", "run/start", "queue/join", "upload"))
        call = Call(role, "POST", f"/gradio_api/{path}", headers)
        if path == "upload":
            headers["content-type"], call.content = "multipart/form-data; boundary=b", _FORM
        else:
            headers["content-type"] = "application/json"
            mark = "by right" if call.may_change else f"{FORBIDDEN} {role}"
            data = {"data": [1, mark, "a", None], "fn_index": 0, "session_hash": f"s{role}"}
            call.content = json.dumps(data).encode()
        return call

    def _body(self) -> tuple[str, bytes]:
        draw = self._draw
        values = [self._filled(draw.choice(VALUES)) for _ in range(draw.randrange(6))]
        value: Any = draw.choice((
            {"data": values, "fn_index": draw.choice((0, 1, -1, "x", None)), "session_hash": "s"},
            {"data": values, "session_hash": draw.choice((None, "", [], "a" * 999))},
            {"data": values[0] if values else None}, values,
            {"event_id": "x", "session_hash": "s", "fn_index": 0},
            {"component_id": draw.choice((0, 1, 99, "x")), "fn_name": "__init__", "data": values},
            {"messages": [{"role": "user", "content": draw.choice(VALUES)}], "which": "both"},
            {"messages": values, "seed": 1}, {"data": values, "simple_format": True},
        ))  # fmt: skip
        text = json.dumps(value).encode()
        return draw.choice((
            ("application/json", text), ("application/json", text), ("application/json", text),
            ("text/plain", text), ("application/json", text[:-3]), ("application/json", b""),
            ("application/json", b"[" * 20_000), ("application/json", b"\xff\xfe"),
            ("application/x-www-form-urlencoded", b"data=%5B1%5D&a=%zz"),
            ("multipart/form-data", text), ("multipart/form-data; boundary=b", _FORM),
            ("multipart/form-data; boundary=b", _FORM[:-9]), ("image/png; charset=nope", text),
            ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 5000)),
        ))  # fmt: skip

    def _filled(self, value: Any) -> Any:
        text = json.dumps(value)
        for name, filling in self._fill.items():
            text = text.replace(name, filling)
        return json.loads(text)


_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../../evil.py"\r\n'
    b"Content-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n--b--\r\n"
)


def leaks(house: House, call: Call, said: str) -> list[str]:
    """What an answer tells that it must not; what the call itself named is no news.

    Gradio's page has to send back the name under which the owner's own upload was staged.
    """
    given = call.path + call.content.decode("latin-1")
    secrets = {
        "a token": [house.tokens["owner"], house.tokens["viewer"]],
        "a path": [str(house.workspace), str(PROJECT_ROOT), sys.prefix + "/lib",
                   str(Path.home()) + "/"],
    }  # fmt: skip
    if call.role != "owner":
        secrets["a path"].append("/srv/secret")
    elif call.path.startswith("/gradio_api/upload"):
        secrets["a path"].remove(str(house.workspace))
    found = [
        what for what, texts in secrets.items()
        if any(text in said and text not in given for text in texts)
    ]  # fmt: skip
    return found + ["a traceback"] * ("Traceback (most recent" in said or 'File "/' in said)


def run(trials: int, *, seed: int = 0, folder: Path | None = None) -> Result:
    """Send `trials` calls and judge every answer."""
    result = Result("hostile calls", "0 changes without the right, 0 answers 5xx, 0 tracebacks, "
                    "paths or tokens told")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as root, served(Path(root)) as site:
        drawer, house = Drawer(site.house, seed), site.house
        before = files_of(house.workspace)
        with httpx.Client(trust_env=False, follow_redirects=False) as client:
            for number in range(trials):
                call = drawer.call(number)
                where = f"seed {seed}, call {number}: {call.told()}"
                try:
                    status, said = site.send(client, call)
                except httpx.HTTPError as error:
                    status, said = 0, f"{type(error).__name__}"
                    if not isinstance(error, httpx.RemoteProtocolError | httpx.LocalProtocolError):
                        result.check(False, f"{where}: {error!r}")
                result.trials += 1
                result.count("refused", int(status in REFUSED))
                result.check(status < 500, f"{where}: {status} {said[-200:]!r}")
                told = leaks(house, call, said)
                result.check(not told, f"{where}: told {told}")
                after = files_of(house.workspace)
                if after != before and not call.may_change:
                    names = sorted(set(after) ^ set(before))[:3]
                    result.check(False, f"{where}: changed {names}")
                before = after
        clicked = [click for click in house.clicks if FORBIDDEN in click]
        result.count("functions run by the owner", len(house.clicks) - len(clicked))
        result.check(not clicked, f"seed {seed}: functions were run: {clicked[:3]}")
        logged = site.errors.getvalue()
        result.check("Traceback" not in logged, f"seed {seed}: logged {logged[-600:]!r}")
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=2000)


if __name__ == "__main__":
    raise SystemExit(main())
