"""Predicted beside measured: records, bars, and the constants that runs teach."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.core.fit_constants import ENOUGH_RUNS, fit, kept_constants, to_kept
from studio.core.memory import CPU, CUDA, GIB, MIB, Constants
from studio.core.run_memory import (
    EVALUATION,
    LOADING,
    SAMPLING,
    SAVING,
    TRAINING,
    read_record,
)
from tests.core.memory_records import CARD, item, record, records

TRUTH = Constants(700 * MIB, 0.15, 0.1)


def read(kind: str, truth: Constants = TRUTH, count: int = 4, **options):
    return [read_record(made) for made in records(kind, truth, count, **options)]


def test_bars_of_each_phase_and_the_peak() -> None:
    run = read_record(record("cuda:0", TRUTH, 2 * GIB, GIB))
    bars = {bar.phase: bar for bar in run.bars()}
    assert list(bars) == [LOADING, TRAINING, EVALUATION, SAMPLING, SAVING]
    training = bars[TRAINING]
    assert [part.name for part in training.predicted] == [
        "weights", "optimizer", "context", "activations", "fragmentation",
    ]  # fmt: skip
    assert training.predicted_bytes == run.predicted.expected
    assert [part.name for part in bars[LOADING].predicted] == ["weights", "context"]
    # No item of an evaluation is among the items: its sum stands for it, with its share of gaps.
    whole = next(p for p in bars[EVALUATION].predicted if p.name == "whole_evaluation")
    gaps = next(p for p in bars[EVALUATION].predicted if p.name == "fragmentation")
    assert (whole.bytes, gaps.bytes) == (GIB // 4, round(CUDA.fragmentation * (GIB // 4)))
    assert training.measured_bytes == run.peak_bytes
    assert [part.name for part in training.measured] == [
        "allocated_bytes", "reserved_bytes", "nvml_process_bytes",
    ]  # fmt: skip
    assert (run.peak_phase, run.is_complete, run.device) == (TRAINING, True, CARD)
    assert run.peak_bytes == 3 * GIB + 1000 + round(0.15 * GIB) + 700 * MIB


def test_on_a_cpu_the_resident_set_is_what_was_taken() -> None:
    run = read_record(record("cpu", TRUTH, 2 * GIB, GIB))
    assert [part.name for part in run.bars()[1].measured] == ["rss_bytes"]
    assert run.peak_bytes == run.measured[TRAINING]["rss_bytes"]


@pytest.mark.parametrize("kind", ["cuda:0", "cpu"])
def test_known_constants_come_back(kind: str) -> None:
    base = CUDA if kind == "cuda:0" else CPU
    found = fit(read(kind), base)
    assert found.runs == 4
    assert found.constants is not None
    assert found.constants.context_bytes == pytest.approx(TRUTH.context_bytes, rel=0.05)
    assert found.constants.fragmentation == pytest.approx(TRUTH.fragmentation, rel=0.05)
    assert (found.constants.spread, found.constants.loading) == (base.spread, base.loading)
    assert found.worst is not None and found.worst < 0.02
    assert found.median <= found.worst


def test_fewer_than_three_runs_teach_nothing() -> None:
    for count in range(ENOUGH_RUNS):
        found = fit(read("cpu", count=count), CPU)
        assert (found.runs, found.constants, found.errors) == (count, None, ())
        assert found.median is found.worst is None


def test_the_same_run_three_times_stays_near_where_it_began() -> None:
    """Context and gaps cannot be told apart: both move, and together they explain the runs."""
    runs = [read_record(record("cpu", TRUTH, 2 * GIB, GIB))] * 3
    found = fit(runs, CPU)
    assert found.constants is not None
    assert 0 < found.constants.context_bytes < 2 * CPU.context_bytes
    assert 0 <= found.constants.fragmentation < 1
    assert found.worst < 0.02


def test_a_card_whose_processes_are_not_listed_keeps_its_context() -> None:
    found = fit(read("cuda:0", lists_processes=False), CUDA)
    assert found.constants is not None
    assert found.constants.context_bytes == CUDA.context_bytes
    assert found.constants.fragmentation == pytest.approx(0.15, rel=0.01)
    assert found.worst < 0.01  # held against the allocator's figure and the same context


def test_an_error_is_told_as_it_is_and_by_runs_that_did_not_teach_it() -> None:
    """One of four runs took 2 GiB more than its like: the others do not predict it."""
    made = records("cuda:0", TRUTH)
    for values in made[2]["measured"].values():
        for name in ("allocated_bytes", "reserved_bytes", "nvml_process_bytes"):
            values[name] += 2 * GIB
    found = fit([read_record(one) for one in made], CUDA)
    real = made[2]["measured"][TRAINING]["nvml_process_bytes"]
    assert found.errors[2] == pytest.approx(-2 * GIB / real, rel=0.02)
    assert found.worst == pytest.approx(2 * GIB / real, rel=0.02)
    assert found.median < 0.02


def test_incomplete_records_are_no_runs() -> None:
    made = records("cpu", TRUTH, 3)
    made[0]["estimate"]["unknown"] = ["activations"]
    made[1]["estimate"] = None
    del made[2]["measured"][TRAINING]
    runs = [read_record(one) for one in made]
    assert [run.is_complete for run in runs] == [False, False, False]
    assert fit(runs, CPU).runs == 0
    assert runs[1].bars()[0].predicted == ()
    assert runs[1].bars()[0].measured_bytes > 0


DAMAGE = {
    "nothing": None,
    "a list": [1],
    "no device": lambda made: made.pop("device"),
    "a number for a name": lambda made: made["device"].update(name=5),
    "a text for a size": lambda made: made["measured"][TRAINING].update(rss_bytes="many"),
    "a negative size": lambda made: made["measured"][TRAINING].update(rss_bytes=-1),
    "an endless size": lambda made: made["estimate"]["total"].update(expected=float("inf")),
    "no number": lambda made: made["estimate"]["phases"].update(layers=float("nan")),
    "items as text": lambda made: made["estimate"].update(items="weights"),
    "an item as text": lambda made: made["estimate"]["items"].append("weights"),
    "a truth for a share": lambda made: made["constants"].update(fragmentation=True),
    "a share of a thousand": lambda made: made["constants"].update(fragmentation=1000),
    "no constants": lambda made: made.update(constants=None),
    "unknown as a number": lambda made: made["estimate"].update(unknown=5),
    "measured as a list": lambda made: made.update(measured=[]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_a_value_error(what: str) -> None:
    damage = DAMAGE[what]
    made = copy.deepcopy(record("cpu", TRUTH, GIB, GIB)) if callable(damage) else damage
    if callable(damage):
        damage(made)
    with pytest.raises(ValueError, match=r"."):
        read_record(made)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(where=st.sampled_from(["device", "estimate", "constants", "measured"]), value=JSON)
def test_anything_in_a_file_is_a_record_or_a_value_error(where: str, value: object) -> None:
    made = {**record("cuda:0", TRUTH, GIB, GIB), where: value}
    try:
        run = read_record(made)
    except ValueError:
        return
    run.bars()
    assert run.peak_bytes is None or run.peak_bytes >= 0
    fit([run] * 3, CUDA)


def test_constants_make_the_journey_through_a_file_and_damage_is_left_out() -> None:
    kept = json.loads(json.dumps(to_kept({CARD: TRUTH})))
    assert kept_constants(kept) == {CARD: TRUTH}
    kept["devices"]["other"] = {"context_bytes": "much"}
    assert kept_constants(kept) == {CARD: TRUTH}
    for nothing in (None, [], {"devices": 3}, {}):
        assert kept_constants(nothing) == {}


def test_other_constants_change_nothing_but_their_two_items() -> None:
    found = read_record(record("cpu", TRUTH, 2 * GIB, GIB)).predicted
    assert found.expected_with(CPU) == found.expected
    more = dataclasses.replace(CPU, context_bytes=CPU.context_bytes + 7)
    assert found.expected_with(more) == found.expected + 7


def test_a_run_whose_loading_was_the_most_has_no_gaps_to_learn_from() -> None:
    made = record("cpu", CPU, GIB, GIB)
    estimate = made["estimate"]
    estimate["items"] = [
        item("weights", GIB), item("optimizer", 1000), item("context", CPU.context_bytes),
        item("loading", 2 * GIB - 1000, "loading"),
    ]  # fmt: skip
    estimate["phases"]["loading"] = 2 * GIB - 1000
    estimate["total"]["expected"] = sum(part["bytes"] for part in estimate["items"])
    found = read_record(made)
    assert found.predicted is not None
    assert found.predicted.passing == 0
    more_gaps = dataclasses.replace(CPU, fragmentation=1.0)
    assert found.predicted.expected_with(more_gaps) == 3 * GIB + CPU.context_bytes
    bars = {bar.phase: bar for bar in found.bars()}
    assert bars["loading"].predicted_bytes == 3 * GIB + CPU.context_bytes
    training = {part.name for part in bars["training"].predicted}
    assert "loading" not in training and "fragmentation" in training
