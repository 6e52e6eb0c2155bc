"""A run that is no longer finite stops at that step, with a cause, and harms nothing."""

import json

import pytest
import torch

from studio.backend import sft
from studio.core.events import read_records
from tests.backend.tiny import tensors, train


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss (or the gradients) of one step something else than a number."""

    def arm(step, value, where="loss"):
        original = sft.StudioTrainer.training_step

        def training_step(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            if self.state.global_step + 1 == step:
                if where == "loss":
                    return loss * value
                next(p for p in self.model.parameters() if p.requires_grad).grad[0] = value
            return loss

        monkeypatch.setattr(sft.StudioTrainer, "training_step", training_step)

    return arm


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_run_fails_at_that_very_step_with_cause_and_remedy(make_run, poison, where, value):
    poison(4, value, where)
    paths = make_run({"train": {"max_steps": 20, "save_steps": 2}})
    result = train(paths)
    assert result["state"] == "failed"
    assert result["steps"] == 3
    error = result["error"]
    assert error["type"] == "DivergedError"
    assert f"The {where} is no longer a finite number at step 4" in error["text"]
    assert "learning rate" in error["text"]
    assert "Checkpoint step 2 is sound" in error["text"]
    assert "train.learning_rate=" in error["remedy"]
    last = [r for r in read_records(paths.metrics).records if r["kind"] == "step"][-1]
    assert last["step"] == 4
    assert last["loss" if where == "loss" else "grad_norm"] is None
    assert "NaN" not in paths.metrics.read_text()
    json.loads(paths.exit_json.read_text())


def test_the_remedy_is_a_rate_that_can_be_set_even_in_the_warm_up(make_run, poison):
    poison(1, float("nan"))
    error = train(make_run({"train": {"learning_rate": 4e-3, "warmup_steps": 3}}))["error"]
    assert "with learning rate 0" in error["what"]
    assert "train.learning_rate=0.001 or lower" in error["remedy"]


@pytest.mark.parametrize("step", [0, 3])
def test_an_evaluation_that_is_not_finite_ends_the_run(make_run, monkeypatch, step):
    """Its NaN must reach no file, or exit.json cannot be written."""
    from studio.backend import callbacks

    real, calls = callbacks.mean_loss, []

    def mean_loss(*args, **kwargs):
        calls.append(1)
        return float("nan") if len(calls) == (1 if step == 0 else 2) else real(*args, **kwargs)

    monkeypatch.setattr(callbacks, "mean_loss", mean_loss)
    paths = make_run({"train": {"max_steps": 6, "eval_steps": 3}})
    result = train(paths)
    assert result["error"]["type"] == "DivergedError"
    wanted = "evaluation loss of the base model" if step == 0 else "number at step 3"
    assert wanted in result["error"]["text"]
    assert "NaN" not in paths.exit_json.read_text() + paths.metrics.read_text()


def test_weights_stay_finite_and_the_run_can_go_on(make_run, poison, monkeypatch):
    with monkeypatch.context() as patch:
        original = sft.StudioTrainer.training_step
        poison(5, float("nan"))
        paths = make_run({"train": {"max_steps": 8, "save_steps": 2}})
        assert train(paths)["state"] == "failed"
        patch.setattr(sft.StudioTrainer, "training_step", original)
        assert train(paths)["state"] == "done"
    assert all(torch.isfinite(t).all() for t in tensors(paths.adapter).values())


def test_weights_that_are_not_finite_are_never_saved(make_run, monkeypatch):
    from studio.backend.callbacks import RunCallback

    fill = RunCallback._fill

    def broken(self, folder):
        next(p for p in self.trainer.model.parameters() if p.requires_grad).data[0] = float("inf")
        fill(self, folder)

    monkeypatch.setattr(RunCallback, "_fill", broken)
    paths = make_run({"train": {"max_steps": 8, "save_steps": 2, "eval_steps": 100}})
    result = train(paths)
    assert result["state"] == "failed"
    assert result["error"]["type"] == "DivergedError"
    assert list(paths.checkpoints.iterdir()) == []
