"""HTTP connections with patience limits: uvicorn's own protocol has none for a request's head.

A client that sends its head a byte at a time is closed after HEAD_S; one address may hold
MAX_PER_ADDRESS connections, all together a share of the files this process may open. Slow bodies
are the guard's business. Knows nothing of requests beyond where their head ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http import h11_impl

from studio.rates import address_key

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HEAD_S = 20.0
MAX_PER_ADDRESS = 400  # twenty-five people behind a router, each with a browser's six and a stream
SHARE_OF_FILES = 0.6
MOST_ELSEWHERE = 600
_TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n"
    b"x-content-type-options: nosniff\r\n\r\n"
)


def most_connections() -> int:
    """How many connections leave this process room for its other files."""
    if resource is None:
        return MOST_ELSEWHERE
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(50, int(soft * SHARE_OF_FILES)) if soft > 0 else MOST_ELSEWHERE


class PatientProtocol(h11_impl.H11Protocol):
    """For `uvicorn.Config(http=...)`."""

    head_s = HEAD_S
    max_per_address = MAX_PER_ADDRESS
    max_in_all = most_connections()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = _counts_of(self.server_state)
        self._key = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._key = address_key(self.client[0] if self.client else "?")
        self._counts[self._key] += 1
        if (self._counts[self._key] > self.max_per_address
                or len(self.connections) > self.max_in_all):  # fmt: skip
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._counts[self._key] -= 1
        if self._counts[self._key] <= 0:
            del self._counts[self._key]
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11_impl.h11.IDLE:
            self._head_came()
        elif self.conn.trailing_data[0]:
            self._await_head()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._give_up)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.write(_TIMED_OUT)
            self.transport.close()


def _counts_of(state: Any) -> Counter[str]:
    """Connections of each address of one server."""
    if not hasattr(state, "studio_counts"):
        state.studio_counts = Counter()
    return state.studio_counts
