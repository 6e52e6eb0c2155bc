"""The arithmetic on lengths against counting row by row; packing against TRL's own."""

from __future__ import annotations

import json
import random
import time

import pytest

from studio.core.packing import pack_best_fit
from studio.core.token_stats import (
    Steps,
    TokenSummary,
    cut_at,
    explain,
    histogram,
    length_that_keeps,
    padding,
)


def counted(values: list[int]) -> Steps:
    places = sorted(set(values))
    return Steps(places, [values.count(place) for place in places])


def make_summary(rows: list[list[int]], refused: int = 0) -> TokenSummary:
    """From masks: each row is a list of 0 and 1, whether the token there is learned."""
    learned = [[i for i, bit in enumerate(row) if bit and i] for row in rows]
    return TokenSummary(
        rows=len(rows), refused=refused, never_trained=sum(not places for places in learned),
        tokens=sum(map(len, rows)), trained_tokens=sum(map(len, learned)),
        longest=max(map(len, rows)), lengths=counted([len(row) for row in rows]),
        answer_starts=counted([places[0] for places in learned if places]),
        answer_ends=counted([places[-1] for places in learned if places]),
        trained=counted([place for places in learned for place in places]),
        sample=[len(row) for row in rows],
    )  # fmt: skip


def random_rows(seed: int, count: int = 60) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.random() < 0.3 for _ in range(draw.randint(1, 40))] for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_length", [1, 2, 7, 20, 39, 40, 1000])
def test_a_cut_equals_counting_row_by_row(seed, max_length):
    rows = random_rows(seed)
    cut = cut_at(make_summary(rows), max_length)
    kept = [row[:max_length] for row in rows]
    assert cut.rows_cut == sum(len(row) > max_length for row in rows)
    assert cut.tokens == sum(map(len, kept))
    assert cut.cut_tokens == sum(map(len, rows)) - cut.tokens
    assert cut.trained_tokens == sum(sum(row[1:]) for row in kept)
    assert cut.no_trained_token == sum(not any(row[1:]) for row in kept)
    lost = [any(row[1:]) and not any(row[1:max_length]) for row in rows]
    assert cut.answer_lost == sum(lost)
    ends = [max(i for i, bit in enumerate(row) if bit) for row in rows if any(row[1:])]
    assert cut.answer_cut == sum(end >= max_length for end in ends)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_the_length_that_keeps_a_share_is_the_smallest(share):
    rows = random_rows(3, 101)
    length = length_that_keeps(make_summary(rows), share)
    whole = sum(len(row) <= length for row in rows)
    assert whole >= share * 101 > sum(len(row) <= length - 1 for row in rows)


def test_bars_hold_every_row_once():
    rows = random_rows(1)
    bars = histogram(make_summary(rows), bins=7)
    assert sum(bar["rows"] for bar in bars) == 60
    assert [bar["from"] for bar in bars[1:]] == [bar["to"] + 1 for bar in bars[:-1]]


def test_the_sentence_names_what_is_lost_and_the_way_out():
    summary = make_summary([[0, 1, 1]] * 97 + [[0, 0, 0, 0, 1]] * 3)
    assert explain(cut_at(summary, 4)) == (
        "3 rows cut (3.0 %), 3 lose the whole answer; 5 would keep 99 %"
    )
    assert explain(cut_at(summary, 5)) == "0 rows cut (0.0 %)"


def test_a_summary_travels_as_json():
    summary = make_summary(random_rows(2))
    again = TokenSummary.from_dict(json.loads(json.dumps(summary.to_dict())))
    assert again == summary
    assert cut_at(again, 9) == cut_at(summary, 9)


def test_any_max_length_is_answered_within_20_ms_from_a_large_summary():
    draw = random.Random(0)
    places = sorted(draw.sample(range(1, 60_000), 4096))
    steps = Steps(places, [draw.randint(1, 500) for _ in places])
    summary = TokenSummary(
        rows=steps.total, refused=0, never_trained=0, tokens=1 << 30, trained_tokens=1 << 29,
        longest=60_000, lengths=steps, answer_starts=steps, answer_ends=steps, trained=steps,
        sample=[draw.choice(places) for _ in range(2000)],
    )  # fmt: skip
    times = []
    for max_length in range(1000, 50_000, 5000):
        began = time.perf_counter()
        cut_at(summary, max_length)
        padding(summary, max_length, batch_size=4)
        times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 0.02


def test_padding_is_what_batches_of_the_sample_have():
    equal = make_summary([[0, 1, 1, 1]] * 64)
    assert [p.waste_share for p in padding(equal, 4, batch_size=4)] == [0.0, 0.0, 0.0]
    mixed = make_summary([[0, 1]] * 500 + [[0] * 19 + [1]] * 500)
    random_order, grouped, packed = padding(mixed, 20, batch_size=4, accumulation=2)
    assert random_order.waste_share == pytest.approx(0.42, abs=0.04)  # 1 - 11 / (2/16 + 20*15/16)
    assert grouped.waste_share < 0.02
    assert random_order.steps_per_epoch == grouped.steps_per_epoch == 125
    assert packed.steps_per_epoch == pytest.approx(550 / 8, abs=1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capacity", [1, 17, 64, 300])
def test_packing_is_that_of_trl(seed, capacity):
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    draw = random.Random(seed)
    lengths = [draw.randint(0, 80) for _ in range(draw.choice([1, 5, 999, 1000, 1001, 2300]))]
    lengths[0] = 5
    rows = [[row] * length for row, length in enumerate(lengths)]
    datasets.disable_progress_bars()
    theirs = trl.pack_dataset(datasets.Dataset.from_dict({"input_ids": rows}), capacity, "bfd")
    ours = pack_best_fit(lengths, capacity)
    flat = [[row for row in members for _ in range(min(lengths[row], capacity))]
            for members in ours]  # fmt: skip
    assert flat == theirs[:]["input_ids"]
    assert [[min(lengths[row], capacity) for row in members] for members in ours] == theirs[:][
        "seq_lengths"
    ]
