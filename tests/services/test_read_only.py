"""A second studio on a workspace: it says who holds it, and each writing method refuses."""

from __future__ import annotations

import dataclasses
import inspect
import os
import socket

import pytest

from studio.core.errors import BusyError
from studio.services.read_only import WRITING, Guarded, holder_words
from studio.services.settings import Settings
from studio.services.studio import build_studio

# What only reads. Anything else belongs into WRITING; a method in neither fails the test below.
# (The inspector and the machine's probe have nothing to write with.)
READING = {
    "supervisor": {"active", "close", "run_in_background", "tick"},
    "runs": {
        "paths", "ids", "list", "get", "find_request", "samples", "heldout_prompts", "zip_run",
        "zip_adapter",
    },
    "datasets": {"list", "get", "rows", "samples", "has"},
    "edits": {"history"},
    "models": {"list", "catalogue", "downloaded", "info", "resolve", "inspect_path", "size",
               "has_token"},
    "chat": {"stream", "unload", "evict", "status", "close"},
}  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    settings = Settings(workspace=tmp_path / "w", port=7999)
    first = build_studio(settings)
    second = build_studio(dataclasses.replace(settings, port=8000))
    yield first, second
    second.close()
    first.close()


def methods(service) -> set[str]:
    return {
        name for name, _ in inspect.getmembers(type(service), callable) if not name.startswith("_")
    }


def test_every_public_method_is_known_to_write_or_to_read(pair):
    first, _ = pair
    for kind, reading in READING.items():
        there = methods(getattr(first, kind))
        known = reading | WRITING.get(kind, frozenset())
        assert there <= known, f"{kind}: say whether these write: {there - known}"
        assert not reading & WRITING.get(kind, frozenset())


def test_every_writing_method_refuses_with_one_sentence(pair, tmp_path):
    first, second = pair
    before = sorted(str(path) for path in (tmp_path / "w").rglob("*"))
    for kind, names in WRITING.items():
        service = getattr(second, kind)
        for name in sorted(names & methods(getattr(first, kind))):
            with pytest.raises(BusyError) as refused:
                getattr(service, name)("x")
            text = str(refused.value)
            assert text.startswith("This studio is read-only. Another studio (process "), name
            assert str(os.getpid()) in text and text.endswith("another --workspace.")
    assert sorted(str(path) for path in (tmp_path / "w").rglob("*")) == before


def test_it_says_who_holds_the_workspace_and_reads_on(pair):
    _, second = pair
    for said in (str(os.getpid()), socket.gethostname(), "since ", "http://127.0.0.1:7999"):
        assert said in second.notice
    assert second.runs.list() == [] and second.datasets.list() == []
    assert second.supervisor.active() is None and isinstance(second.runs, Guarded)


@pytest.mark.parametrize("record", [{}, {"pid": None}, {"pid": 3, "since": "x", "url": ""}])
def test_a_holder_that_left_little_is_named_all_the_same(record):
    words = holder_words(record)
    assert words.startswith("Another studio (process ") and "None" not in words
