"""A trainer that the system killed for want of memory leaves what was known of that memory."""

from __future__ import annotations

import json

import pytest

from studio.core.endings import OomKills
from studio.core.out_of_memory import MemoryFault
from studio.core.runs import RunPaths
from studio.services import endings

GIB = 2**30


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A run whose trainer is gone; the counters grew."""
    monkeypatch.setattr(endings, "oom_kills", lambda group: OomKills(4, 10))
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.state_json.write_text('{"phase": "eval", "step": 7}')

    def write(limit=None, *, device=True, before=3):
        kills = {"group": before, "system": 10}
        process = {"attempt": 2, "oom_kills": kills, "memory_limit_bytes": limit}
        paths.process_json.write_text(json.dumps(process))
        record = {"kind": "device", "rss_bytes": 6 * GIB, "host_available_bytes": GIB,
                  "host_total_bytes": 8 * GIB}  # fmt: skip
        paths.metrics.write_text(json.dumps(record) + "\n" if device else "")
        endings.explain_vanished(paths, -9)
        return endings.vanished(paths)

    return write


def test_the_last_reading_is_kept(killed):
    record = killed()
    assert record["text"].startswith("The computer ran out of main memory (RAM), and")
    assert MemoryFault.from_dict(record["memory"]) == MemoryFault(
        "host", "eval", 7, free_bytes=GIB, total_bytes=8 * GIB, used_bytes=6 * GIB,
        budget_bytes=7 * GIB,
    )  # fmt: skip


def test_a_limit_of_its_own_was_the_end(killed):
    record = killed(limit=int(6.5 * GIB))
    assert "the container or control group may take 6.5 GiB" in record["text"]
    assert "1.0 of 8.0 GiB were free" in record["text"]
    assert record["remedy"].startswith("Raise that limit")
    found = MemoryFault.from_dict(record["memory"])
    assert (found.limit_bytes, found.budget_bytes) == (int(6.5 * GIB), int(6.5 * GIB))
    assert found.free_bytes == GIB // 2


def test_without_a_reading_nothing_is_made_up(killed):
    assert MemoryFault.from_dict(killed(device=False)["memory"]) == MemoryFault("host", "eval", 7)


def test_a_kill_of_another_kind_says_nothing_of_memory(killed):
    assert "memory" not in killed(before=4)
