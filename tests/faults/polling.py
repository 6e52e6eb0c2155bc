"""Twenty-five people who watch one run: a process of its own that asks as their browsers do.

    python -m tests.faults.polling HOST PORT RUN

Lean, so that what it costs is not mistaken for the studio's: one event loop, plain sockets. Reads a
JSON line with cookies from stdin, then "on", "off" and "end"; writes what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

PERIOD_S = 1.0
ANSWER_S = 20.0
KEPT_S = 3.0  # the studio closes a connection that is not used for 5 s


class Watcher:
    """One page: asks each second for what is behind its cursor."""

    def __init__(self, address: tuple[str, int], path: str, cookie: str) -> None:
        self._address, self._path, self._cookie = address, path, cookie
        self._streams: Any = None
        self._used = 0.0
        self.cursor = ""
        self.steps: list[int] = []
        self.latencies_s: list[float] = []
        self.errors: list[str] = []

    async def ask(self) -> None:
        """One request; the figures are noted, and what went wrong."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_S):
                status, body = await self._get(f"{self._path}?since={self.cursor}")
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            self._streams = None
            self.errors.append(repr(error)[:200])
            return
        self.latencies_s.append(time.perf_counter() - began)
        if status != 200:
            self.errors.append(f"{status} {body[:100]!r}")
            return
        figures = json.loads(body)
        if figures.get("reset"):
            self.errors.append("told to forget what it has")
        self.cursor = figures["cursor"]
        self.steps += figures["series"].get("step", {}).get("step", [])

    async def _get(self, target: str) -> tuple[int, bytes]:
        if self._streams is None or time.monotonic() - self._used > KEPT_S:
            if self._streams is not None:
                self._streams[1].close()
            self._streams = await asyncio.open_connection(*self._address)
        self._used = time.monotonic()
        reader, writer = self._streams
        host = f"{self._address[0]}:{self._address[1]}"
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nCookie: {self._cookie}\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


async def watch(watchers: list[Watcher], is_on: asyncio.Event, is_over: asyncio.Event) -> None:
    """Everybody asks once a second, each at an instant of their own."""

    async def one(watcher: Watcher, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while not is_over.is_set():
            await is_on.wait()
            due = time.monotonic() + PERIOD_S
            await watcher.ask()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    spread = PERIOD_S / len(watchers)
    async with asyncio.TaskGroup() as tasks:
        for number, watcher in enumerate(watchers):
            tasks.create_task(one(watcher, number * spread))


async def main() -> None:
    """Obey stdin; tell what was seen when it ends."""
    if hasattr(os, "nice"):
        os.nice(10)
    host, port, run = sys.argv[1:4]
    loop = asyncio.get_running_loop()
    cookies = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    path = f"/api/runs/{run}/metrics"
    watchers = [Watcher((host, int(port)), path, cookie) for cookie in cookies]
    is_on, is_over = asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(watch(watchers, is_on, is_over))
    while (said := (await loop.run_in_executor(None, sys.stdin.readline)).strip()) in ("on", "off"):
        (is_on.set if said == "on" else is_on.clear)()
    is_over.set()
    is_on.set()
    await watching
    print(json.dumps([vars(watcher) | {"_streams": None} for watcher in watchers]))


if __name__ == "__main__":
    asyncio.run(main())
