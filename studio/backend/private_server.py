"""A small HTTP server on a private socket: how the page talks to a process that holds torch.

Owns the socket (a unix socket; on Windows loopback TCP with a secret header), the liveness rule
(the process ends when its parent is gone or after a long idle time) and the translation of a
`StudioError` to HTTP 422. Knows nothing of models. Imports no torch, so that it answers
`GET /healthz` before the libraries are loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from studio.core.errors import ConfigError, StudioError
from studio.hardware.platforms import ProcessIdentity, write_json

SECRET_HEADER = "x-studio-secret"
SECRET_VARIABLE = "LORA_STUDIO_CHILD_SECRET"
IDLE_LIMIT_S = 15 * 60.0
WATCH_PERIOD_S = 1.0
MAX_BODY_BYTES = 8 << 20

Status = Callable[[], dict[str, Any]]


class Lifetime:
    """Decides when this process ends: its parent is gone, or nobody asked for long.

    Thread safe. `busy()` surrounds every request other than health checks; a request that streams
    for an hour is not idle.
    """

    def __init__(
        self,
        parent: ProcessIdentity | None,
        *,
        idle_limit_s: float = IDLE_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parent = parent
        self._idle_limit_s = idle_limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._last = clock()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Marks a request in progress."""
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                self._last = self._clock()

    def reason_to_end(self) -> str | None:
        """A sentence, or None while the process should live."""
        if self._parent is None or not self._parent.is_alive():
            return "The parent process is gone"
        with self._lock:
            idle_s = self._clock() - self._last if self._active == 0 else 0.0
        if idle_s > self._idle_limit_s:
            return f"Idle for {idle_s / 60:.0f} min"
        return None


class PrivateApp:
    """ASGI middleware: secret, body size, and the count of requests in progress."""

    def __init__(self, inner: Starlette, lifetime: Lifetime, secret: str) -> None:
        self._inner = inner
        self._lifetime = lifetime
        self._secret = secret.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        given = headers.get(SECRET_HEADER.encode(), b"")
        if not hmac.compare_digest(given, self._secret):
            response: Response = JSONResponse({"detail": "wrong secret"}, status_code=403)
            await response(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await JSONResponse({"detail": "too large"}, status_code=413)(scope, receive, send)
            return
        if scope["path"] == "/healthz":
            await self._inner(scope, receive, send)
            return
        with self._lifetime.busy():
            await self._inner(scope, receive, send)


def build_app(routes: Sequence[Route], status: Status) -> Starlette:
    """A Starlette application with `/healthz` and the error translation that all children share."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok", **status()})

    return Starlette(
        routes=[Route("/healthz", healthz), *routes],
        exception_handlers={StudioError: _refused, HTTPException: _http_error},
    )


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": error_dict(error)}, status_code=422)


async def _http_error(_: Request, error: Exception) -> Response:
    status_code = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"detail": str(error)}, status_code=status_code)


def error_dict(error: Exception) -> dict[str, Any]:
    """A StudioError as JSON, including the issues of a ConfigError."""
    if not isinstance(error, StudioError):
        raise TypeError(f"not an error for users: {error!r}")
    extra = {"issues": error.issues} if isinstance(error, ConfigError) else {}
    return {**error.to_dict(), **extra}


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises HTTPException 400 for anything else."""
    try:
        body = await request.json()
    except ValueError as error:
        raise HTTPException(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line every child takes."""
    parser = argparse.ArgumentParser(description="A child process of LoRA Studio.")
    parser.add_argument("--socket", required=True, type=Path, help="unix socket, or port file")
    parser.add_argument("--parent-pid", required=True, type=int, help="ends when this ends")
    parser.add_argument("--tcp", action="store_true", help="loopback TCP; --socket gets the port")
    parser.add_argument("--own-folder", action="store_true", help="the socket's folder goes, too")
    parser.add_argument("--idle-limit-s", type=float, default=IDLE_LIMIT_S)
    return parser.parse_args(arguments)


def serve(app: Starlette, options: argparse.Namespace) -> int:
    """Serve until SIGTERM, the parent's end or a long idle time. Returns the exit status."""
    parent = ProcessIdentity.of(options.parent_pid)
    lifetime = Lifetime(parent, idle_limit_s=options.idle_limit_s)
    private = PrivateApp(app, lifetime, os.environ.get(SECRET_VARIABLE, ""))
    config = uvicorn.Config(
        private, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning",
        access_log=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    listener = _listen(options.socket, tcp=options.tcp)
    watch = threading.Thread(
        target=_watch, args=(server, lifetime), name="lifetime-watch", daemon=True
    )
    watch.start()
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        options.socket.unlink(missing_ok=True)
        if options.own_folder:  # nobody else removes it where the parent was killed
            with contextlib.suppress(OSError):
                options.socket.parent.rmdir()
    return 0


def _listen(path: Path, *, tcp: bool) -> socket.socket:
    if tcp:
        listener = socket.create_server(("127.0.0.1", 0))
        write_json(path, {"port": listener.getsockname()[1]})
        return listener
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # the socket must never be open to others, not even for a moment
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(16)
    return listener


def _watch(server: uvicorn.Server, lifetime: Lifetime) -> None:
    pause = threading.Event()
    while (reason := lifetime.reason_to_end()) is None:
        pause.wait(WATCH_PERIOD_S)
    print(f"{reason}; ending", flush=True)  # noqa: T201 - goes to the log file
    server.should_exit = True
    pause.wait(5.0)
    # A model that is being loaded or a long prefill must not keep the memory of a dead studio.
    os._exit(0)


def end_process(status: int) -> None:
    """End at once: worker threads in the middle of a model load are not waited for."""
    os._exit(status)
