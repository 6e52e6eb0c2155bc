"""The readings behind the warnings: made of a device record, written once, and never in the way."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from studio.backend import memory_fault, paging
from studio.backend.paging import PagingWatch
from studio.core.out_of_memory import OtherProgram
from tests.hardware.test_nvml import FakeNvml, Nvml

GIB = 2**30
FULL = {"device_used_bytes": int(23.9 * GIB), "device_total_bytes": 24 * GIB,
        "process_bytes": 14 * GIB, "reserved_bytes": 13 * GIB}  # fmt: skip


class Notes:
    """Stands in for the journal."""

    def __init__(self):
        self.step, self.phase, self.texts = 3, "training", []

    def warn(self, text):
        self.texts.append(text)


def card(*programs):
    fake = FakeNvml()
    listed = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in programs]
    fake._nvmlDeviceGetComputeRunningProcesses = lambda handle: listed
    return Nvml(fake)


def test_a_card_filled_by_another_program_is_told_once_and_named(monkeypatch):
    own = os.getpid()
    monkeypatch.setattr(paging, "program_names", lambda pids: dict.fromkeys(pids, "chrome"))
    notes = Notes()
    watch = PagingWatch(notes, card((own, 14 * GIB), (4242, 9 * GIB)))
    for _ in range(3):
        watch.look(FULL, 0)
    assert len(notes.texts) == 1
    assert "chrome (process 4242): 9 GiB" in notes.texts[0]


@pytest.mark.parametrize("listed", [[], [(7, 14 * GIB), (8, 9 * GIB)]], ids=["WSL", "container"])
def test_where_nobody_is_listed_or_we_are_not_nobody_is_named(listed):
    notes = Notes()
    PagingWatch(notes, card(*listed)).look(FULL, 0)
    assert "belong to another program" in notes.texts[0]
    assert memory_fault.other_programs(card(*listed), 0) == []


def test_programs_of_the_card_without_us():
    listed = card((os.getpid(), GIB), (8, None))
    assert memory_fault.other_programs(listed, 0) == [OtherProgram(8, None)]


def test_a_driver_that_fails_warns_of_nothing():
    fake = FakeNvml()
    fake.broken["nvmlDeviceGetCount"] = fake.NVML_ERROR_GPU_IS_LOST
    notes = Notes()
    PagingWatch(notes, Nvml(fake)).look({"device_total_bytes": 24 * GIB}, 0)
    PagingWatch(notes, None).look({}, 0)
    assert notes.texts == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_this_system_tells_of_this_process():
    assert paging.page_faults() >= 0
    assert paging.swapped_bytes() >= 0
    notes = Notes()
    watch = PagingWatch(notes, None)
    watch.look({"rss_bytes": GIB}, 0)
    first = watch.untouched_bytes
    assert first is not None
    notes.phase = "loading"
    watch.look({"rss_bytes": GIB}, 0)
    assert watch.untouched_bytes == first
