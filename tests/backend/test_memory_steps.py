"""What a step holds and what was published, against the estimate: the quick part of `make memory`.

Held-out sizes only: the coefficients come from other ones (core.step_costs.POINTS).
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from studio.core.errors import ModelError
from studio.core.step_costs import POINTS, RANKS
from tests.memory.models import small_config
from tests.memory.published import QUOTED, predicted_gb
from tests.memory.steps import combinations, compare

pytestmark = [
    # peft 0.21 asks the model for the old name of a property.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing.*. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # bitsandbytes says so without CUDA; the states are the same.
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]


@pytest.mark.parametrize("number", [1, 9, 41, 71], ids=lambda n: str(combinations()[n]))
def test_what_a_step_holds_within_5_percent(number: int) -> None:
    predicted, real = compare(combinations()[number])
    assert real > 100_000
    assert predicted == pytest.approx(real, rel=0.05)


def test_the_sizes_are_held_out() -> None:
    every = combinations()
    assert len(every) >= 60
    assert not {(c.batch, c.length) for c in every} & set(POINTS)
    assert not {c.r for c in every} & set(RANKS)


def test_the_peak_of_a_step_at_sizes_it_was_not_fitted_to() -> None:
    from studio.backend.activations import count_steps
    from studio.backend.profile import measure_costs
    from studio.core.step_costs import Variant

    config, variant = small_config("llama", 6), Variant(checkpointing=True, padded=True)
    costs = measure_costs(config, variant)
    for batch, length, r, layers in ((3, 700, 16, 5), (1, 3000, 32, 6)):
        (counted,) = count_steps(config, variant, r=r, layers=layers, sizes=[(batch, length)])
        size = {"batch": batch, "length": length, "r": r, "layers": layers}
        assert costs.peak.bytes_at(**size) == pytest.approx(counted.peak, rel=0.02)
        assert costs.held.bytes_at(**size) == pytest.approx(counted.held, rel=0.001)


def test_the_fused_head_is_counted_as_trl_runs_it() -> None:
    """Plain torch operators, as on a CPU; Triton works in place and cannot be counted here."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    from studio.backend.activations import LiveBytes
    from studio.core.memory_terms import fused_logits

    for tokens, hidden, vocab, backward in ((512, 256, 65_536, True), (5000, 1024, 8000, True),
                                            (4096, 512, 151_936, False)):  # fmt: skip
        with FakeTensorMode():
            weight = torch.empty(vocab, hidden)
            states = torch.empty(tokens, hidden, requires_grad=backward)
            targets = torch.zeros(tokens, dtype=torch.long)
            known = {t.untyped_storage()._cdata for t in (weight, states, targets)}
            live = LiveBytes(known)
            with live, torch.set_grad_enabled(backward):
                found = ChunkedLogProbFunction.apply(
                    states.clone(), weight, None, targets, 1.0, 32768, None, 1.0,
                    ("log_probs", "entropy", "is_top1"),
                )  # fmt: skip
                if backward:
                    found[0].sum().backward()
        said = fused_logits(tokens, hidden, vocab, item_bytes=4, in_place=False, backward=backward)
        assert said == pytest.approx(live.peak, rel=0.02)


@pytest.mark.slow
def test_published_rows() -> None:
    errors = [abs(predicted_gb(row) / row.peak_gb - 1) for row in QUOTED]
    assert statistics.median(errors) <= 0.12
    assert max(errors) <= 0.20


def test_bad_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    from studio.backend.profile import profile_of, read_profile

    with pytest.raises(ModelError, match="no config.json"):
        profile_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ModelError, match="unknown to transformers"):
        profile_of(tmp_path)
    config = small_config("llama")
    config.num_hidden_layers = -3
    with pytest.raises(ModelError, match="num_hidden_layers in config.json makes no sense"):
        read_profile(config)
    from transformers import AutoConfig

    with pytest.raises(ModelError, match="cannot build a language model"):
        read_profile(AutoConfig.for_model("vit"))
