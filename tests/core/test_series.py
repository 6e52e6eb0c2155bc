"""Smoothing against its closed form, downsampling that keeps spikes, remaining time."""

import math

import pytest

from studio.core.series import StepClock, downsample, smooth


def test_smooth_equals_the_weighted_mean():
    values, w = [3.0, 1.0, 4.0, 1.0, 5.0], 0.8
    for i, shown in enumerate(smooth(values, w)):
        weights = [w ** (i - k) for k in range(i + 1)]
        assert shown == pytest.approx(
            sum(a * b for a, b in zip(weights, values, strict=False)) / sum(weights)
        )


def test_smooth_of_a_constant_is_the_constant_and_holes_repeat():
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([None, 1.0, None, math.nan]) == [None, *[pytest.approx(1.0)] * 3]


def test_smooth_refuses_a_weight_of_one():
    with pytest.raises(ValueError, match="weight"):
        smooth([1.0], 1.0)


@pytest.mark.parametrize("count", [3, 100, 101, 5000])
def test_downsample_keeps_ends_and_spikes(count):
    ys = [0.0] * count
    ys[count // 2] = 9.0
    xs, kept = downsample(list(range(count)), ys, 100)
    assert len(xs) <= max(100, 3)
    assert (xs[0], xs[-1]) == (0, count - 1)
    assert max(kept) == 9.0
    assert xs == sorted(xs)


def test_downsample_passes_over_holes():
    xs, ys = downsample(list(range(50)), [None] * 50, 10)
    assert (xs, ys) == ([0, 49], [None, None])


def test_step_clock_ignores_one_slow_step():
    clock = StepClock()
    assert clock.eta_s(10) is None
    for duration in (1.0, 1.0, 50.0, 1.0):
        clock.add(duration)
    assert clock.eta_s(10) == pytest.approx(10.0)
    assert clock.eta_s(10, overhead_frac=0.1) == pytest.approx(10 / 0.9)
    assert clock.eta_s(-1) == 0.0
