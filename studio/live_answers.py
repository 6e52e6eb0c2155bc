"""What many viewers ask of one run at the same time is worked out once.

Pages ask once a second with the cursor of their last answer. Those that have the same cursor get
the same answer for FRESH_S, and with it the same next cursor: twenty-five viewers stay together and
cost the studio, which shares the processor with the training, hardly more than one. The price: a
viewer may see a change FRESH_S late.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

Key = tuple[object, ...]
T = TypeVar("T")

FRESH_S = 1.5  # more than a page's second, so that the slowest of them still finds it
MAX_KEPT = 64
MAX_KEPT_BYTES = 256 << 10  # a first answer of a long run is not kept


class LiveAnswers:
    """Bodies by run and cursor. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()
        self._asked: dict[Key, asyncio.Task[bytes]] = {}

    async def get(self, key: Key, make: Callable[[], bytes]) -> bytes:
        """The kept answer, or what `make` gives in a thread of its own; one at a time for a key."""
        kept = self._kept.get(key)
        if kept and self._clock() - kept[0] < FRESH_S:
            return kept[1]
        if key not in self._asked:
            began = self._clock()
            task = asyncio.create_task(asyncio.to_thread(make))
            self._asked[key] = task
            task.add_done_callback(lambda done: self._keep(key, began, done))
        return await asyncio.shield(self._asked[key])

    def _keep(self, key: Key, began: float, done: asyncio.Task[bytes]) -> None:
        self._asked.pop(key, None)
        if done.cancelled() or done.exception() or len(done.result()) > MAX_KEPT_BYTES:
            return
        self._kept[key] = (began, done.result())
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
