"""The door: one ASGI layer in front of every route, Gradio's and ours, http and websocket.

Covered: a Host that is not on the list (DNS rebinding, LAN address), writes from a foreign Origin,
cross-site requests other than following a link, bodies over the cap however they are sent; the
answer gets CSP, nosniff, no framing, and loses every CORS header. Not covered: who the user is
(the studio listens on loopback only), and request rates.

It streams: no answer is buffered, no body is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

Scope = dict[str, Any]

MAX_UPLOAD_BYTES = 2 << 30
MAX_BODY_BYTES = 8 << 20
UPLOAD_PATHS = ("/gradio_api/upload", "/upload")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

# Gradio's page needs inline scripts, inline styles and the Function constructor; nothing is loaded
# from elsewhere and model output cannot make the browser fetch a foreign picture.
CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self'",
    "worker-src 'self' blob:",
    "frame-ancestors 'none'",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
))  # fmt: skip
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_REPLACED = {name for name, _ in SECURITY_HEADERS}


class RequestGuard:
    """ASGI middleware: `app.add_middleware(RequestGuard, port=..., allow_hosts=...)`.

    Args:
        port: the port of the page; a Host must name it.
        allow_hosts: further names, `name` or `name:port`; a bare name is allowed with our port
            and, for a proxy on a default port, without one.
    """

    def __init__(
        self,
        app: Any,
        *,
        port: int,
        allow_hosts: Iterable[str] = (),
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._hosts = allowed_hosts(port, allow_hosts)
        self._max_upload_bytes = max_upload_bytes
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "websocket":
            if refusal:
                await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
            else:
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._limit(scope))
        if refusal is None and exchange.declares_too_much(scope):
            refusal = exchange.too_large()
        if refusal:
            await exchange.refuse(*refusal)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            if not exchange.overflowed:
                raise
        if exchange.overflowed and not exchange.started:
            await exchange.refuse(*exchange.too_large())

    def _limit(self, scope: Scope) -> int:
        path = str(scope.get("path", ""))
        return self._max_upload_bytes if path in UPLOAD_PATHS else self._max_body_bytes

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for a request that may not pass, else None."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 421, (
                "This studio does not answer to that host name. "
                "Start it with --allow-host NAME to add one."
            )
        is_socket = scope["type"] == "websocket"
        method = "GET" if is_socket else str(scope["method"])
        writes = method not in SAFE_METHODS
        origins = _values(scope, b"origin")
        if (writes or is_socket) and any(not _same(origin, hosts[0]) for origin in origins):
            return 403, "A page of another site may not use this studio."
        site, mode = _values(scope, b"sec-fetch-site"), _values(scope, b"sec-fetch-mode")
        follows_link = method == "GET" and mode == ["navigate"]
        if "cross-site" in site and not follows_link:
            return 403, "A page of another site may not use this studio."
        return None


class _Exchange:
    """One request: counts what comes in, dresses what goes out."""

    def __init__(self, receive: Any, send: Any, limit_bytes: int) -> None:
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._seen_bytes = 0
        self.overflowed = False
        self.started = False

    def declares_too_much(self, scope: Scope) -> bool:
        """Whether Content-Length is over the cap (or no number at all)."""
        lengths = _values(scope, b"content-length")
        return any(not value.isdecimal() or int(value) > self._limit_bytes for value in lengths)

    def too_large(self) -> tuple[int, str]:
        """Status and sentence for a body over the cap."""
        return 413, f"The request is larger than {self._limit_bytes / 2**20:g} MiB."

    async def receive(self) -> dict[str, Any]:
        """The app's next message; a body over the cap looks to it like a client that left."""
        if self.overflowed:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen_bytes += len(message.get("body", b""))
            if self._seen_bytes > self._limit_bytes:
                self.overflowed = True
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Pass the app's answer on, with our headers and without CORS."""
        if self.overflowed and not self.started:
            return  # the app's words about a client that left; the 413 follows
        if message["type"] == "http.response.start":
            self.started = True
            kept = [
                (name, value) for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-")
                and name.lower() not in _REPLACED
            ]  # fmt: skip
            message = {**message, "headers": [*kept, *SECURITY_HEADERS]}
        await self._send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Answer without asking the app."""
        self.overflowed = False
        body = json.dumps({"error": {"text": text}}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # what is left of the body is not read
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def allowed_hosts(port: int, extra: Iterable[str]) -> frozenset[str]:
    """Every spelling of the Host header that is ours, in lower case."""
    hosts = {f"{name}:{port}" for name in LOOPBACK_NAMES}
    if port == 80:
        hosts.update(LOOPBACK_NAMES)
    for name in extra:
        lowered = name.strip().lower()
        bare = lowered.rpartition("]")[2].count(":") == 0
        hosts.update({lowered, f"{lowered}:{port}"} if bare else {lowered})
    return frozenset(hosts - {""})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope.get("headers", []) if key == name]


def _same(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that was asked. "null" never does."""
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
