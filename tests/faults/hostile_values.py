"""Hostile requests and values, drawn from hand-made parts; the same seed draws the same."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from tests.door import HOME, House, every_route
from tests.faults.site import Call

ROLES = ("none", "wrong", "viewer", "owner")
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
    "'; DROP TABLE runs;--", "\ud83d\ude00", "\ud800", "a\udfffb", "C:\\Windows\\win.ini",
    "\\\\srv\\share\\x", "/etc/passwd\x00.jsonl", "../../access/owner.token", "/dev/zero",
    "http://169.254.169.254/latest", "0000-00-00T25:61:61Z", "2038-01-19T03:14:08Z",
    "\u202egpj.exe", "file:///etc",
    '"><img src=x onerror=alert(1)>', float("1e-320"), 2**63, -(2**31) - 1,
    [None] * 50, {"a": {"b": {}}},
    {"__class__": "x"}, [["x", 1], ["y"]], "true", "nan", "sample:../../x", "starter\n", "con", ".",
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
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../../evil.py"\r\n'
    b"Content-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n--b--\r\n"
)


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


RARE = (list(range(1_000_000)), deep(400), {"k" * 10: "v" * 3_000_000})


class Drawer:
    """Draws requests; the same seed draws the same."""

    def __init__(self, house: House, seed: int) -> None:
        self.draw = random.Random(seed)
        self._routes = sorted({(m, p) for m, p in every_route(house.app.routes) if p})
        self._fill = {"{workspace}": str(house.workspace), "{run}": house.runs["done"]}
        self.names = page_functions(house)

    def call(self, role: str) -> Call:
        """The next request of a role, most of them nonsense."""
        draw = self.draw
        if draw.random() < 0.15:
            return self._well_formed(role)
        if draw.random() < 0.6:
            method, template = draw.choice(self._routes)
            path = re.sub(r"\{run_id[^}]*\}", self._fill["{run}"], template)
            name = draw.choice((*self.names, "0", "nope"))
            path = re.sub(r"\{api_name[^}]*\}", name, path)
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
        headers = dict(self.draw.choice(HEADERS[4:]))
        path = self.draw.choice(("queue/join", "run/on_first", "call/on_first", "upload"))
        call = Call(role, "POST", f"/gradio_api/{path}", headers)
        if path == "upload":
            headers["content-type"], call.content = "multipart/form-data; boundary=b", FORM
        else:
            headers["content-type"] = "application/json"
            data = {"data": [f"{role}{self.draw.random()}"], "fn_index": self.names["on_first"],
                    "session_hash": f"s{role}"}  # fmt: skip
            call.content = json.dumps(data).encode()
        return call

    def value(self) -> Any:
        """One hostile value; a huge one now and then."""
        if self.draw.random() < 0.01:
            return self.draw.choice(RARE)
        return self._filled(self.draw.choice(VALUES))

    def _body(self) -> tuple[str, bytes]:
        draw = self.draw
        values = [self.value() for _ in range(draw.randrange(6))]
        fn_index = draw.choice((*self.names.values(), -1, 10**9, "x", None))
        value: Any = draw.choice((
            {"data": values, "fn_index": fn_index, "session_hash": "s"},
            {"data": values, "fn_index": fn_index, "session_hash": draw.choice((None, "", [], 1))},
            {"data": values[0] if values else None}, values,
            {"event_id": "x", "session_hash": "s", "fn_index": fn_index},
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
            ("multipart/form-data", text), ("multipart/form-data; boundary=b", FORM),
            ("multipart/form-data; boundary=b", FORM[:-9]), ("image/png; charset=nope", text),
            ("multipart/form-data; boundary=b; charset=nope", FORM),
            ("multipart/form-data; boundary=b", FORM.replace(b"filename", b"other")),
            ("multipart/form-data; boundary=b", FORM.replace(b'"files"', b'"other"')),
            ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 5000)),
        ))  # fmt: skip

    def _filled(self, value: Any) -> Any:
        text = json.dumps(value)
        for name, filling in self._fill.items():
            text = text.replace(name, filling)
        return json.loads(text)


def page_functions(house: House) -> dict[str, int]:
    """The page's handlers: name and index."""
    return {fn.api_name: index for index, fn in page_of(house).fns.items() if fn.api_name}


def page_of(house: House) -> Any:
    """Gradio's blocks of the application."""
    found = [getattr(route, "app", None) for route in house.app.routes]
    (page,) = [app.get_blocks() for app in found if hasattr(app, "get_blocks")]
    return page
