"""What the hubs on loopback share: answers of an HTTP/1.1 server, and servers while a test runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    """Answers with a length, and says nothing on the terminal."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """One whole answer; underscores of a header's name are hyphens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a client that goes away in the middle is what some tests are about


@contextmanager
def serving(
    handler: type[HubHandler], hold: threading.Event, count: int = 1
) -> Iterator[list[str]]:
    """Servers on ports of loopback; gives their addresses.

    Args:
        hold: what answers wait for; set at the end, so that none waits for ever.
    """
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(count)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield [f"http://127.0.0.1:{server.server_address[1]}" for server in servers]
    finally:
        hold.set()
        for server in servers:
            server.shutdown()
            server.server_close()
