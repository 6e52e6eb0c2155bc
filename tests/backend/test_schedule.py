"""When it is evaluated and saved, which adapter is kept, and the order of rows."""

import pytest

from studio.backend.keeping import Evaluations, verdict
from studio.backend.schedule import Schedule
from studio.backend.sft import EpochSampler
from studio.core.plan import MAX_EVALUATIONS, evaluation_interval


def simulate(total, *, cost_s, step_s, start_s=10.0, stretch=True):
    """Steps evaluated and the share of the time that measuring took."""
    schedule = Schedule(total, evaluation_interval(total), 1, stretch=stretch, save_with_eval=True)
    elapsed, spent, steps = start_s + cost_s, cost_s, [0]
    schedule.last_cost_s = cost_s
    for step in range(1, total + 1):
        elapsed += step_s
        if schedule.is_eval_due(step, spent_s=spent, elapsed_s=elapsed, step_s=step_s):
            steps.append(step)
            spent, elapsed = spent + cost_s, elapsed + cost_s
    return steps, spent / elapsed


@pytest.mark.parametrize("total", [1, 2, 5, 10, 30, 60, 100, 1000])
@pytest.mark.parametrize("cost_s", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("step_s", [0.1, 1.0])
def test_measuring_takes_a_tenth_or_happens_three_times(total, cost_s, step_s):
    steps, share = simulate(total, cost_s=cost_s, step_s=step_s)
    assert share <= 0.1 or len(steps) <= 3
    assert len(steps) <= MAX_EVALUATIONS
    assert (steps[0], steps[-1]) == (0, total)
    if total > 2:
        assert len(steps) >= 3


def test_cheap_evaluations_all_happen_and_dear_ones_are_left_out():
    cheap, _ = simulate(100, cost_s=0.01, step_s=1.0)
    dear, _ = simulate(100, cost_s=3.0, step_s=1.0)
    assert cheap == list(range(0, 101, 10))
    assert 3 <= len(dear) < len(cheap)


def test_an_interval_that_was_asked_for_is_kept():
    steps, _ = simulate(20, cost_s=100.0, step_s=0.1, stretch=False)
    assert steps == [0, *range(2, 21, 2)] or steps == list(range(0, 21, evaluation_interval(20)))


def test_saves_follow_evaluations_or_their_own_interval_or_the_clock():
    auto = Schedule(100, 10, 10, stretch=True, save_with_eval=True)
    assert auto.is_save_due(10, evaluated=True, since_save_s=1)
    assert not auto.is_save_due(10, evaluated=False, since_save_s=1)
    assert auto.is_save_due(11, evaluated=False, since_save_s=601)
    own = Schedule(100, 10, 7, stretch=True, save_with_eval=False)
    assert [s for s in range(1, 100) if own.is_save_due(s, evaluated=False, since_save_s=1)] == [
        *range(7, 100, 7)
    ]
    assert not own.is_save_due(100, evaluated=True, since_save_s=9999)
    blind = Schedule(100, 0, 7, stretch=True, save_with_eval=True)
    assert blind.is_save_due(7, evaluated=False, since_save_s=1)


def seen(*pairs, kept=None):
    evaluations = Evaluations()
    for step, loss in pairs:
        evaluations.add(step, loss)
    evaluations.kept_step = evaluations.best_step if kept is None else kept
    return evaluations


def test_the_loss_of_the_base_is_not_that_of_an_adapter():
    assert seen((0, 3.0)).last_trained is None
    assert seen((0, 3.0), (5, 2.0), (9, 2.5)).last_trained == 2.5


@pytest.mark.parametrize(
    ("evaluations", "keep", "state", "expected"),
    [
        (seen((0, 3.0), (60, 2.0), (120, 1.5), (180, 1.9)), "best", "done",
         "Best at step 120 (evaluation loss 3.000 to 1.500); later steps overfit; using 120."),
        (seen((0, 3.0), (60, 2.0), (120, 2.001)), "best", "done", "later steps brought nothing"),
        (seen((0, 3.0), (60, 2.0)), "best", "done", "Best at the last evaluation, step 60"),
        (seen((0, 3.0), (60, 3.5)), "best", "done", "No step was better"),
        (seen((0, 3.0), (60, 2.0), kept=90), "last", "done", "Using the last step (90), as asked"),
        (seen(), "best", "done", "Nothing was measured"),
        (seen((0, 3.0)), "best", "stopped", "held-out rows after step 0; using step 90"),
    ],
)  # fmt: skip
def test_verdict(evaluations, keep, state, expected):
    assert expected in verdict(evaluations, keep, state=state, step=90, train_loss=1.0)


def test_of_equal_losses_the_earlier_wins_and_nan_never():
    evaluations = seen((0, 1.0), (5, 2.0), (10, 2.0), (15, float("nan")))
    assert (evaluations.best_step, evaluations.best) == (5, 2.0)
    assert Evaluations.from_dict(evaluations.to_dict()).history[:3] == evaluations.history[:3]


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("count", [1, 7, 64, 301])
def test_each_epoch_has_every_row_once_in_another_order(count, group):
    lengths = [(i * 37) % 100 + 1 for i in range(count)]
    sampler = EpochSampler(lengths, 4, group=group, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(count))
    assert orders[0] == orders[2]
    if count > 7:
        assert orders[0] != orders[1]


def test_grouping_saves_padding_and_begins_with_the_longest():
    lengths = [(i * 37) % 100 + 1 for i in range(200)]

    def padded(group):
        order = list(EpochSampler(lengths, 4, group=group, seed=0))
        batches = [[lengths[i] for i in order[n : n + 4]] for n in range(0, 200, 4)]
        return sum(4 * max(batch) for batch in batches), batches

    grouped, batches = padded(True)
    assert grouped < 0.7 * padded(False)[0]
    assert max(batches[0]) == max(lengths)
