"""Countable terms equal real tensors to the byte; `make memory` does so for all eight families."""

from __future__ import annotations

import pytest

from tests.memory.exact import compare_trained, compare_weights, profile
from tests.memory.models import ALL

pytestmark = [
    # peft 0.21 asks the model for the old name of a property.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing.*. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # bitsandbytes says so without CUDA; the states are the same.
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_base_weights_to_the_byte(kind: str) -> None:
    wrong = [found for found in compare_weights(kind) if not found.is_exact]
    assert not wrong


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_trained_numbers_gradients_and_states_to_the_byte(kind: str) -> None:
    found = list(compare_trained(kind))
    assert len(found) > 40
    assert not [part for part in found if not part.is_exact]


@pytest.mark.parametrize("kind", ALL)
def test_profiles_count_every_number_once(kind: str) -> None:
    import torch

    from tests.memory.models import model_class, small_config

    with torch.device("meta"):
        model = model_class(kind).from_config(small_config(kind))
    assert profile(kind).total_params == sum(p.numel() for p in model.parameters())
