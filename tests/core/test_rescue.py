"""What would have fitted: every option fits, none gives up more than it must, none changes the
adapter's shape."""

from __future__ import annotations

import random

import pytest

from studio.core.fit_memory import changed
from studio.core.memory_methods import family
from studio.core.rescue import rescue, what_is_left
from tests.core.memory_demands import resolved
from tests.core.test_fit_memory import needs_of, random_wish

GIB = 2**30
SEVEN_B = needs_of(family()["7 B"])


def config(**train):
    return resolved({"train": {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_length": 1024,
        "activation_checkpointing": False, "optim": "adamw_torch_fused", **train,
    }})  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_every_option_fits_and_keeps_the_adapter(seed):
    chance = random.Random(seed)
    for _ in range(10):
        wish = random_wish(chance)
        budget = int(SEVEN_B(wish) * chance.uniform(0.3, 0.98))
        found = rescue(wish, budget, SEVEN_B)
        if not found.options:
            assert found.least_bytes and found.least_bytes > budget
        keys = [option.key for option in found.options]
        assert len(set(keys)) == len(keys)
        for option in found.options:
            then = changed(wish, option.values)
            assert SEVEN_B(then) == option.needs_bytes <= budget
            assert option.saved_bytes == SEVEN_B(wish) - option.needs_bytes
            assert then.lora == wish.lora
            assert option.title and option.changes


def test_a_little_too_much_has_several_ways_out():
    wish = config()
    found = rescue(wish, int(0.9 * SEVEN_B(wish)), SEVEN_B)
    titles = [option.title for option in found.options]
    assert titles[0] == "checkpointing"
    assert "batch 4 x 4" in titles
    assert titles[-1].startswith("rows of at most")


def test_single_change_goes_no_further_than_it_must():
    wish = config(activation_checkpointing=True, per_device_train_batch_size=16)
    smaller = changed(wish, {"train.per_device_train_batch_size": 8})
    found = rescue(wish, SEVEN_B(smaller), SEVEN_B)
    assert "batch 8 x 4" in [option.title for option in found.options]


def test_rows_that_would_be_cut_are_counted():
    wish = config()
    found = rescue(wish, int(0.9 * SEVEN_B(wish)), SEVEN_B, rows_cut=lambda n: 2000 - n)
    (shorter,) = [o for o in found.options if "train.max_length" in o.values]
    assert shorter.changes[0].lost_rows == 1024 - shorter.values["train.max_length"]


def test_nothing_fits():
    found = rescue(config(), GIB, SEVEN_B)
    assert found.options == () and found.least_bytes > GIB


@pytest.mark.parametrize(
    ("train", "step", "total", "left"),
    [
        ({"num_train_epochs": 3.0}, 0, 90, {}),
        ({"num_train_epochs": 3.0}, 5, 90, {"train.num_train_epochs": 3}),
        ({"num_train_epochs": 3.0}, 30, 90, {"train.num_train_epochs": 2}),
        ({"num_train_epochs": 3.0}, 89, 90, {"train.num_train_epochs": 1}),
        ({"num_train_epochs": 0.5}, 3, 9, {"train.num_train_epochs": 0.5}),
        ({"max_steps": 40}, 15, 40, {"train.max_steps": 25}),
        ({"max_steps": 40}, 40, 40, {"train.max_steps": 1}),
    ],
)
def test_what_is_left(train, step, total, left):
    assert what_is_left(config(**train), step, total) == left
