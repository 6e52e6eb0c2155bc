"""Viewers who ask the same share one answer, for a moment; a failure is nobody's answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from studio.live_answers import FRESH_S, MAX_KEPT, MAX_KEPT_BYTES, LiveAnswers


class Source:
    """Counts how often it is asked; waits for `go`."""

    def __init__(self, size: int = 1) -> None:
        self.asked, self.size, self.go = 0, size, threading.Event()
        self.go.set()

    def __call__(self) -> bytes:
        self.go.wait(10)
        self.asked += 1
        return bytes(self.size)


def test_one_answer_for_all_who_ask_the_same():
    now = [0.0]
    source = Source()

    async def ask():
        answers = LiveAnswers(lambda: now[0])
        source.go.clear()
        waiting = [asyncio.create_task(answers.get(("r", "1-0"), source)) for _ in range(25)]
        await asyncio.sleep(0)
        source.go.set()
        assert set(await asyncio.gather(*waiting)) == {b"\0"} and source.asked == 1
        now[0] = FRESH_S - 0.1
        await answers.get(("r", "1-0"), source)
        assert source.asked == 1
        await answers.get(("r", "2-0"), source)
        assert source.asked == 2, "another cursor is another answer"
        now[0] = FRESH_S
        await answers.get(("r", "1-0"), source)
        assert source.asked == 3, "an old answer was given"
        for number in range(3 * MAX_KEPT):
            await answers.get(("r", number), source)
        assert len(answers._kept) == MAX_KEPT and not answers._asked

    asyncio.run(ask())


def test_failures_and_large_answers_are_not_kept():
    def broken() -> bytes:
        raise ValueError("gone")

    async def ask():
        answers, large = LiveAnswers(), Source(MAX_KEPT_BYTES + 1)
        for _ in range(2):
            with pytest.raises(ValueError, match="gone"):
                await answers.get(("r", ""), broken)
            await answers.get(("x", ""), large)
        assert large.asked == 2

    asyncio.run(ask())
