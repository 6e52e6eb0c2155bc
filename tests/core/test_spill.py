"""Spilling, paging and a crowded card, told from made-up readings."""

import pytest

from studio.core.out_of_memory import OtherProgram
from studio.core.spill import CROWDED, PAGING, SPILL, Reading, SpillWatch

GIB = 2**30
FULL = {"device_used_bytes": 23.9 * GIB, "device_total_bytes": 24 * GIB, "own_bytes": 23.5 * GIB}


class Run:
    """Readings a second apart of a training with a given pace."""

    def __init__(self, *, driver_spills=False):
        self.watch = SpillWatch(driver_spills=driver_spills)
        self.t_s, self.step, self.done = 0.0, 0, 0.0

    def go(self, seconds, step_s, **state):
        told = []
        for _ in range(seconds):
            self.t_s += 1.0
            self.done += 1.0 / step_s if state.get("training", True) else 0.0
            self.step = int(self.done + 1e-9)
            grown = {k: v(self.t_s) if callable(v) else v for k, v in state.items()}
            told += self.watch.add(Reading(t_s=self.t_s, step=self.step, **grown))
        return told

    def causes(self, *args, **state):
        return [cause for cause, _ in self.go(*args, **state)]


def test_a_calm_run_says_nothing():
    run = Run(driver_spills=True)
    assert run.go(60, 0.4, **FULL, reserved_bytes=22 * GIB, faults=0, swapped_bytes=0,
                  rss_bytes=4 * GIB) == []  # fmt: skip


def test_windows_spill_by_step_time():
    run = Run(driver_spills=True)
    assert run.causes(20, 1.0, device_used_bytes=20 * GIB, device_total_bytes=24 * GIB) == []
    told = run.go(40, 8.0, **FULL)
    assert [cause for cause, _ in told] == [SPILL]
    text = told[0][1]
    assert "23.9 GiB of 24 GiB" in text and "instead of 1.0 s" in text
    assert "Sysmem Fallback" in text
    assert run.causes(60, 8.0, **FULL) == []  # told once


def test_windows_spill_from_the_first_step_is_told_by_the_allocator():
    run = Run(driver_spills=True)
    told = run.go(2, 9.0, **FULL, reserved_bytes=28 * GIB)
    assert [cause for cause, _ in told] == [SPILL]
    assert "4.1 GiB of the training lie outside it" in told[0][1]


@pytest.mark.parametrize(
    ("spills", "then"),
    [
        (False, {**FULL}),  # a driver that refuses instead
        (True, {"device_used_bytes": 20 * GIB, "device_total_bytes": 24 * GIB}),  # room is left
        (True, {"device_total_bytes": 24 * GIB}),  # nobody says how full it is
    ],
)
def test_slow_steps_alone_are_no_spill(spills, then):
    run = Run(driver_spills=spills)
    run.go(20, 1.0, **then)
    assert run.causes(60, 8.0, **then) == []


def test_time_of_evaluations_is_not_that_of_steps():
    run = Run(driver_spills=True)
    run.go(20, 1.0, **FULL)
    assert run.causes(60, 1.0, training=False, **FULL) == []
    assert run.causes(20, 1.0, **FULL) == []


def test_one_long_step_among_quick_ones_is_no_spill():
    run = Run(driver_spills=True)
    run.go(20, 1.0, **FULL)
    run.go(5, 5.0, **FULL)
    assert run.causes(20, 1.0, **FULL) == []


def test_paging_with_slower_steps():
    run = Run()
    calm = {"faults": 500, "swapped_bytes": 0, "rss_bytes": 6 * GIB}
    assert run.causes(20, 1.0, **calm) == []
    told = run.go(40, 6.0, faults=lambda t: int(500 + 900 * t), swapped_bytes=GIB,
                  rss_bytes=5 * GIB)  # fmt: skip
    assert [cause for cause, _ in told] == [PAGING]
    assert "1 GiB of it lie on the disk, 900 pages a second" in told[0][1]
    assert "instead of 1.0 s" in told[0][1]


def test_paging_from_the_first_step_takes_ten_seconds_to_be_sure():
    run = Run()
    state = {"faults": lambda t: int(900 * t), "swapped_bytes": GIB, "rss_bytes": 5 * GIB}
    assert run.causes(10, 50.0, **state) == []
    assert run.causes(5, 50.0, **state) == [PAGING]


@pytest.mark.parametrize(
    "state",
    [
        {"faults": lambda t: int(900 * t), "swapped_bytes": 0, "rss_bytes": 5 * GIB},
        {"faults": lambda t: int(20 * t), "swapped_bytes": GIB, "rss_bytes": 5 * GIB},
        {"faults": lambda t: int(900 * t), "swapped_bytes": GIB, "rss_bytes": 5 * GIB,
         "training": False},
        {"swapped_bytes": GIB, "rss_bytes": 5 * GIB},
    ],
    ids=["a file is read", "long swapped out and not missed", "loading", "not counted"],
)  # fmt: skip
def test_what_is_no_paging(state):
    assert Run().causes(60, 50.0, **state) == []


def test_another_program_is_named_where_it_is_listed():
    chrome = OtherProgram(4242, 6 * GIB, "chrome")
    state = {"device_used_bytes": 23.9 * GIB, "device_total_bytes": 24 * GIB}
    told = Run().go(3, 1.0, **state, own_bytes=14 * GIB, others=(OtherProgram(7, GIB), chrome))
    assert [cause for cause, _ in told] == [CROWDED]
    assert "9.9 GiB of it belong to chrome (process 4242): 6 GiB, process 7: 1 GiB" in told[0][1]
    unlisted = Run().go(3, 1.0, **state, own_bytes=14 * GIB)
    assert "another program" in unlisted[0][1]


@pytest.mark.parametrize(
    "state",
    [
        {**FULL},  # full of ourselves
        {"device_used_bytes": 12 * GIB, "device_total_bytes": 24 * GIB, "own_bytes": GIB},
        {"device_used_bytes": 23.9 * GIB, "device_total_bytes": 24 * GIB},  # ours is not known
        {"device_used_bytes": 7.9 * GIB, "device_total_bytes": 8 * GIB, "own_bytes": 7.1 * GIB},
        {},
    ],
    ids=["ours", "room", "unknown", "a desktop", "no card"],
)
def test_what_is_no_crowd(state):
    assert Run().causes(30, 1.0, **state) == []


def test_a_resumed_step_count_that_falls_back_does_no_harm():
    run = Run(driver_spills=True)
    run.go(20, 1.0, **FULL)
    run.done = 3.0
    assert run.causes(30, 1.0, **FULL) == []
