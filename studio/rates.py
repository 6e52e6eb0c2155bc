"""How often an address may ask, and how often it may guess. Pure arithmetic on a clock.

Both tables are bounded: an attacker with many addresses cannot fill the memory.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_ADDRESSES = 10_000
MAX_TRIES = 5
WINDOW_S = 60.0


def address_key(address: str) -> str:
    """One household, one key: the /64 of an IPv6 address, an IPv4 address as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class RateLimit:
    """A token bucket for each address."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Whether one more request is within the limit."""
        now = self._clock()
        left, then = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - then) * self._per_s)
        allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return allowed


@dataclass
class _Guesses:
    times: deque[float] = field(default_factory=deque)
    cookies: set[int] = field(default_factory=set)
    known: set[str] = field(default_factory=set)


class LockOut:
    """Counts wrong tokens of an address; too many in a minute and it waits."""

    def __init__(
        self, clock: Callable[[], float], *, tries: int = MAX_TRIES, window_s: float = WINDOW_S
    ) -> None:
        self._clock, self._tries, self._window_s = clock, tries, window_s
        self._addresses: OrderedDict[str, _Guesses] = OrderedDict()

    def is_locked(self, key: str) -> bool:
        """Whether the address has to wait."""
        guesses = self._recent(key)
        return guesses is not None and len(guesses.times) >= self._tries

    def is_known(self, key: str, name: str) -> bool:
        """Whether this caller was let in from the address before it was locked."""
        guesses = self._addresses.get(key)
        return guesses is not None and name in guesses.known

    def note_right(self, key: str, name: str) -> None:
        """Remember who was let in, so that a neighbour's guesses do not throw them out."""
        self._entry(key).known.add(name)

    def note_wrong(self, key: str, *, cookie: str | None = None) -> None:
        """Count a wrong try. The same old cookie, sent by a page that polls, counts once."""
        guesses = self._entry(key)
        if cookie is not None:
            mark = hash(cookie)
            if mark in guesses.cookies:
                return
            guesses.cookies.add(mark)
        guesses.times.append(self._clock())

    def wait_s(self, key: str) -> int:
        """Seconds until the address may try again."""
        guesses = self._recent(key)
        if guesses is None or not guesses.times:
            return 0
        return max(1, int(guesses.times[0] + self._window_s - self._clock()) + 1)

    def _recent(self, key: str) -> _Guesses | None:
        guesses = self._addresses.get(key)
        if guesses is None:
            return None
        now = self._clock()
        while guesses.times and now - guesses.times[0] >= self._window_s:
            guesses.times.popleft()
        if len(guesses.cookies) > 100:  # far more than the tries of a minute
            guesses.cookies.clear()
        return guesses

    def _entry(self, key: str) -> _Guesses:
        self._recent(key)
        guesses = self._addresses.pop(key, None) or _Guesses()
        self._addresses[key] = guesses
        if len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        return guesses
