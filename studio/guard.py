"""The door: one ASGI layer in front of every route, Gradio's and ours, http and websocket.

Covered: a Host that is not on the list (DNS rebinding, LAN address), writes from a foreign Origin,
cross-site requests other than following a link, bodies over the cap however they are sent; the
answer gets CSP, nosniff, no framing, and loses every CORS header. Who is asking, what they may
call and how often is `studio.access`, which is asked here, so that there is no second way in.

It streams: no answer is buffered, no body is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from studio.access import Caller, Door, Refusal, Scope, header_values, refusal_page
from studio.rights import is_page

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 2 << 30
MAX_BODY_BYTES = 8 << 20
UPLOAD_PATHS = ("/gradio_api/upload", "/upload")
MAX_READ_AWAY_BYTES, READ_AWAY_S = 1 << 20, 1.0
# A body may take this long, and a second more for each 2 KiB: a slow line may, a held one may not.
BODY_S, MIN_BYTES_PER_S = 30.0, 2048
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
# Our own pages for viewers have no inline script and no inline style.
STRICT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
STRICT_PREFIX = "/view"
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_REPLACED = {b"content-security-policy", *(name for name, _ in SECURITY_HEADERS)}


class RequestGuard:
    """ASGI middleware: `app.add_middleware(RequestGuard, port=..., allow_hosts=...)`.

    Args:
        port: the port of the page; a Host must name it.
        allow_hosts: further names, `name` or `name:port`; a bare name is allowed with our port
            and, for a proxy on a default port, without one.
        door: judges who is asking; without one, everybody may call everything.
    """

    def __init__(
        self,
        app: Any,
        *,
        port: int,
        allow_hosts: Iterable[str] = (),
        door: Door | None = None,
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_s: float = BODY_S,
    ) -> None:
        self._app = app
        self._hosts = allowed_hosts(port, allow_hosts)
        self._door = door
        self._max_upload_bytes = max_upload_bytes
        self._max_body_bytes = max_body_bytes
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        verdict = self._judge(scope)
        if not isinstance(verdict, Refusal):
            scope = self._passed_on(scope, verdict)
        if scope["type"] == "websocket":
            if isinstance(verdict, Refusal):
                await send({"type": "websocket.close", "code": 1008, "reason": verdict.text})
            else:
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(
            receive, send, self._limit(scope), _policy(scope), self._body_s,
            is_upload=scope.get("path") in UPLOAD_PATHS,
        )  # fmt: skip
        if not isinstance(verdict, Refusal) and exchange.declares_too_much(scope):
            verdict = exchange.too_large()
        if isinstance(verdict, Refusal):
            await exchange.read_away(scope)
            await exchange.refuse(verdict)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            if not exchange.cut:
                raise
        except RuntimeError as error:
            # Gradio refuses a stream of an unknown session after it has begun to answer.
            if not (exchange.started and isinstance(error.__cause__, HTTPException)):
                raise
            log.info("an answer was broken off: %s", error.__cause__)
            await exchange.send({"type": "http.response.body", "body": b""})
        if exchange.cut and not exchange.started:
            await exchange.refuse(exchange.cut)

    def _judge(self, scope: Scope) -> Caller | None | Refusal:
        refusal = self._refusal(scope)
        if refusal or self._door is None:
            return refusal
        return self._door.judge(scope, header_values(scope, b"host")[0].lower())

    def _passed_on(self, scope: Scope, caller: Caller | None) -> Scope:
        if self._door is None:
            return scope
        return self._door.passed_on(scope, header_values(scope, b"host")[0].lower(), caller)

    def _limit(self, scope: Scope) -> int:
        path = str(scope.get("path", ""))
        return self._max_upload_bytes if path in UPLOAD_PATHS else self._max_body_bytes

    def _refusal(self, scope: Scope) -> Refusal | None:
        """The answer to a request from a wrong place, else None."""
        hosts = header_values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return Refusal(
                421, "This studio does not answer to that host name. "
                "Start it with --allow-host NAME to add one.",
            )  # fmt: skip
        is_socket = scope["type"] == "websocket"
        method = "GET" if is_socket else str(scope["method"])
        writes = method not in SAFE_METHODS
        origins = header_values(scope, b"origin")
        foreign = Refusal(403, "A page of another site may not use this studio.")
        if (writes or is_socket) and any(not _same(origin, hosts[0]) for origin in origins):
            return foreign
        sites = header_values(scope, b"sec-fetch-site")
        if any(site in ("cross-site", "same-site") for site in sites):
            return None if method == "GET" and self._follows_link(scope) else foreign
        return None

    def _follows_link(self, scope: Scope) -> bool:
        """Whether somebody clicked a link to a page: no frame, no picture, no script."""
        destinations = header_values(scope, b"sec-fetch-dest")
        return (
            header_values(scope, b"sec-fetch-mode") == ["navigate"]
            and destinations in ([], ["document"])
            and (self._door is None or is_page(str(scope["path"])))
        )


class _Exchange:
    """One request: counts what comes in, dresses what goes out."""

    def __init__(
        self, receive: Any, send: Any, limit_bytes: int, policy: str, body_s: float, *,
        is_upload: bool,
    ) -> None:  # fmt: skip
        self._policy = (b"content-security-policy", policy.encode())
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._is_upload = is_upload
        self._seen_bytes = 0
        self._deadline = asyncio.get_running_loop().time() + body_s
        self._is_complete = False
        self.cut: Refusal | None = None  # why the body was not taken to its end
        self.started = False

    def declares_too_much(self, scope: Scope) -> bool:
        """Whether Content-Length is over the cap (or no number at all)."""
        lengths = header_values(scope, b"content-length")
        return any(not value.isdecimal() or int(value) > self._limit_bytes for value in lengths)

    def too_large(self) -> Refusal:
        """The answer to a body over the cap."""
        if not self._is_upload:
            return Refusal(413, f"The request is larger than {self._limit_bytes / 2**20:g} MiB.")
        return Refusal(
            413,
            f"The upload is larger than {self._limit_bytes / 2**20:g} MiB. Choose a smaller file, "
            "or put it on the computer of the studio and give its path.",
        )

    async def read_away(self, scope: Scope) -> None:
        """Take in a short body that nobody wants: else closing resets the connection, and the
        client may never read why it was refused."""
        lengths = header_values(scope, b"content-length")
        if len(lengths) != 1 or not lengths[0].isdecimal():
            return
        left = int(lengths[0]) if len(lengths[0]) < 9 else MAX_READ_AWAY_BYTES + 1
        if left > MAX_READ_AWAY_BYTES:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_AWAY_S):
                while left > 0:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
                    left -= len(message.get("body", b""))

    async def receive(self) -> dict[str, Any]:
        """The app's next message; a body that is cut looks to it like a client that left."""
        if self.cut:
            return {"type": "http.disconnect"}
        if self._is_complete:
            return await self._receive()  # only whether the client leaves
        try:
            async with asyncio.timeout_at(self._deadline + self._seen_bytes / MIN_BYTES_PER_S):
                message = await self._receive()
        except TimeoutError:
            self.cut = Refusal(408, "The request came in too slowly.")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._is_complete = not message.get("more_body")
            self._seen_bytes += len(message.get("body", b""))
            if self._seen_bytes > self._limit_bytes:
                self.cut = self.too_large()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Pass the app's answer on, with our headers and without CORS."""
        if self.cut and not self.started:
            return  # the app's words about a client that left; ours follow
        if message["type"] == "http.response.start":
            self.started = True
            kept = [
                (name, value) for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-")
                and name.lower() not in _REPLACED
            ]  # fmt: skip
            message = {**message, "headers": [*kept, self._policy, *SECURITY_HEADERS]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer without asking the app."""
        self.cut = None
        kind, body = b"application/json", json.dumps({"error": {"text": refusal.text}}).encode()
        if self._is_upload:  # Gradio's page shows the body as it is
            kind, body = b"text/plain; charset=utf-8", refusal.text.encode()
        if refusal.as_page:
            kind, body = b"text/html; charset=utf-8", refusal_page(refusal).encode()
            self._policy = (b"content-security-policy", STRICT_POLICY.encode())
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # what is left of the body is not read
            *refusal.headers,
        ]
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})


def _policy(scope: Scope) -> str:
    is_ours = str(scope.get("path", "")).startswith(STRICT_PREFIX)
    return STRICT_POLICY if is_ours else CONTENT_SECURITY_POLICY


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


def _same(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that was asked. "null" never does."""
    try:
        parts = urlsplit(origin)
    except ValueError:  # "http://[" is nobody's
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
