"""What is kept of an out-of-memory error of a card: from its message, else from the allocator."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from studio.backend import memory_fault as module
from studio.backend.memory_fault import memory_fault
from tests.core.test_out_of_memory import CUDA

GIB = 2**30


def cuda(*, fails=False):
    """Stands in for torch with a card of 24 GiB of which 3 are free."""

    def info(index):
        if fails:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return 3 * GIB, 24 * GIB

    return SimpleNamespace(cuda=SimpleNamespace(
        is_initialized=lambda: True, mem_get_info=info, memory_allocated=lambda index: 18 * GIB,
        memory_stats=lambda index: {"reserved_bytes.all.current": 20 * GIB},
    ))  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_listed(monkeypatch):
    monkeypatch.setattr(module, "other_programs", lambda nvml, which: [])
    monkeypatch.setattr(module, "program_names", lambda pids: dict.fromkeys(pids, "chrome"))


def test_the_message_counts_more_than_what_is_left_after_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", cuda())
    found = memory_fault([RuntimeError(CUDA)], "gpu", "eval", step=7, on_gpu=True)
    assert (found.phase, found.step, found.asked_bytes) == ("eval", 7, 2 * GIB)
    assert found.used_bytes == round(14.1 * GIB) and found.free_bytes < GIB
    assert found.budget_bytes == found.used_bytes + found.free_bytes  # below the 20 GiB allowed
    assert found.others[0].name == "chrome"


def test_a_message_without_numbers_is_filled_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", cuda())
    found = memory_fault([RuntimeError("CUDA error: out of memory")], "gpu", "saving", on_gpu=True)
    assert (found.used_bytes, found.free_bytes, found.total_bytes) == (
        20 * GIB, 3 * GIB, 24 * GIB,
    )  # fmt: skip
    assert found.budget_bytes == 23 * GIB and found.asked_bytes is None


def test_a_limit_of_the_allocator_is_the_budget(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", cuda())
    text = CUDA.replace("20.00 GiB allowed", "12.00 GiB allowed")
    assert memory_fault([RuntimeError(text)], "gpu", "", on_gpu=True).budget_bytes == 12 * GIB


def test_a_card_that_is_gone_tells_nothing_more(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", cuda(fails=True))
    found = memory_fault([RuntimeError("CUDA error: out of memory")], "gpu", "", on_gpu=True)
    assert found.budget_bytes is None and found.free_bytes is None


def test_an_apple_gpu_has_the_limit_that_its_message_tells():
    text = ("MPS backend out of memory (MPS allocated: 6.50 GB, other allocations: 384.00 KB, max "
            "allowed: 9.00 GB). Tried to allocate 2.50 GB on private pool.")  # fmt: skip
    found = memory_fault([RuntimeError(text)], "gpu", "training")
    assert (found.used_bytes, found.budget_bytes) == (int(6.5 * GIB), 9 * GIB)
