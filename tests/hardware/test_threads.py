"""The rule for thread counts, and the environment that carries it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.hardware import threads


@pytest.mark.parametrize(
    ("params", "cores", "load", "count"),
    [
        (5_500_000, 1, 0.0, 1),
        (5_500_000, 2, 0.0, 1),
        (5_500_000, 2, 1.0, 1),
        (5_500_000, 16, 0.2, 1),
        (5_500_000, 16, 3.0, 1),
        (0, 4, 2.0, 1),
        (1_700_000_000, 2, 0.0, 2),
        (1_700_000_000, 2, 1.1, 1),
        (1_700_000_000, 8, 2.0, 6),
        (1_700_000_000, 8, 50.0, 1),
        (1_700_000_000, 64, 0.0, threads.MAX_THREADS),
    ],
)
def test_choose_threads(params: int, cores: int, load: float, count: int) -> None:
    chosen, reason = threads.choose_threads(params, cores, load)
    assert chosen == count
    assert reason


@given(st.integers(0, 10**11), st.integers(0, 512), st.floats(0, 1000, allow_nan=False))
def test_choose_threads_stays_within_the_cores(params: int, cores: int, load: float) -> None:
    count, reason = threads.choose_threads(params, cores, load)
    assert 1 <= count <= max(1, cores)
    assert str(count) in reason


def test_env_for_sets_every_pool_and_keeps_the_rest() -> None:
    environment = threads.env_for(3, {"HOME": "/home/x", "OMP_NUM_THREADS": "9"})
    assert environment["HOME"] == "/home/x"
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_cpu_quota_of_a_container(tmp_path: Path) -> None:
    assert threads._cgroup_cpu_quota(str(tmp_path)) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads._cgroup_cpu_quota(str(tmp_path)) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads._cgroup_cpu_quota(str(tmp_path)) is None


def test_cpu_count_is_at_least_one() -> None:
    assert threads.cpu_count() >= 1
    assert threads.load_average() >= 0.0
