"""Fit it for me: over random models, cards and wishes it fits, and nothing could be kept."""

from __future__ import annotations

import random

import pytest

from studio.core.config import OPTIMIZERS, RunConfig
from studio.core.fit_memory import LENGTHS, advise, propose, relaxations
from studio.core.memory import Demand, estimate
from studio.core.memory_methods import family
from studio.core.model_profile import ModelProfile, adapted_matrices
from tests.core.memory_demands import costs_for, resolved

GIB = 2**30
PROFILES = family()


def needs_of(profile: ModelProfile):
    def needs(config: RunConfig) -> int:
        return estimate(Demand(
            config=config, profile=profile, adapted=adapted_matrices(profile, config.lora),
            costs=costs_for(profile, config), rows_tokens=config.train.max_length,
        )).high  # fmt: skip

    return needs


def random_wish(chance: random.Random) -> RunConfig:
    return resolved({
        "lora": {"r": chance.choice((4, 8, 16, 64, 128)),
                 "target_modules": chance.choice(("all-linear", "attention"))},
        "quantization": {"load_in_4bit": chance.random() < 0.3,
                         "bnb_4bit_use_double_quant": chance.random() < 0.7},
        "train": {
            "per_device_train_batch_size": chance.choice((1, 2, 3, 4, 6, 8, 16)),
            "gradient_accumulation_steps": chance.choice((1, 2, 4, 5)),
            "max_length": chance.choice((128, 300, 512, 1000, 2048, 4096, 10_000)),
            "packing": chance.random() < 0.3,
            "activation_checkpointing": chance.random() < 0.5,
            "optim": chance.choice([name for name in OPTIMIZERS if name != "auto"]),
        },
    })  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_500_random_proposals_fit_and_nothing_could_be_kept(seed: int) -> None:
    chance, fitted = random.Random(seed), 0
    for _ in range(50):
        needs = needs_of(PROFILES[chance.choice(list(PROFILES))])
        wish, budget = random_wish(chance), round(chance.choice((8, 12, 16, 24, 48, 80)) * GIB)
        found = propose(wish, budget, needs)
        assert found.fits == (needs(found.config) <= budget)
        assert found.needs_bytes == needs(found.config)
        if not found.fits:
            # Then the smallest settings do not fit: nothing that the ladder has is left.
            assert not advise(found.config, needs)
            continue
        fitted += 1
        if needs(wish) <= budget:
            assert found.config == wish and not found.changes
        for relaxed in relaxations(wish, found.config):
            assert needs(relaxed) > budget
        saved = sum(change.saved_bytes for change in found.changes)
        assert needs(wish) - saved == found.needs_bytes
    assert fitted >= 5


def test_rows_of_a_step_stay_the_same() -> None:
    wish = resolved({"train": {"per_device_train_batch_size": 16, "max_length": 4096,
                               "gradient_accumulation_steps": 2}})  # fmt: skip
    found = propose(wish, 24 * GIB, needs_of(PROFILES["7 B"]))
    train = found.config.train
    assert found.fits
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 32
    assert train.max_length == 4096


def test_shorter_rows_come_last_and_say_what_they_cut() -> None:
    wish = resolved({"train": {"per_device_train_batch_size": 1, "max_length": 131_072}})
    needs = needs_of(PROFILES["7 B"])
    found = propose(wish, 12 * GIB, needs, rows_cut=lambda length: 131_072 - length)
    assert found.fits and found.config.quantization.load_in_4bit
    last = found.changes[-1]
    assert last.values.keys() == {"train.max_length"}
    assert last.lost_rows == 131_072 - found.config.train.max_length
    assert found.config.train.max_length in LENGTHS


def test_without_bitsandbytes_it_is_not_proposed() -> None:
    wish = resolved({"train": {"max_length": 2048}})
    found = propose(wish, 12 * GIB, needs_of(PROFILES["7 B"]), can_4bit=False)
    assert not found.fits and not found.config.quantization.load_in_4bit
    assert found.config.train.optim == wish.train.optim


def test_advice_says_what_each_notch_saves() -> None:
    needs = needs_of(PROFILES["7 B"])
    config = resolved({"train": {"activation_checkpointing": False}})
    found = advise(config, needs)
    assert [c.title for c in found][0] == "checkpointing"
    assert any(c.title == "4-bit" and c.saved_bytes > 7 * GIB for c in found)
