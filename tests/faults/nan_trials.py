"""A number that is not finite, anywhere in a step: told at that very step, never saved.

    python -m tests.faults.nan_trials --trials 100

The real trainer on a tiny model, in this process. At a random step and micro-batch the loss, a
gradient, one batch or an adapter weight becomes NaN or infinite, or an activation overflows as it
would in float16. The run must fail at that step (a weight spoilt after it: at the next), its record
must hold null and not 0.0, and every checkpoint and the kept adapter must be sound.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from studio.core.events import read_records
from studio.core.runs import RunPaths
from tests.faults.result import Result, run_from_command_line

STEPS, MICRO_BATCHES = 6, 2
KINDS = ("loss", "gradient", "batch", "weights", "overflow", "weights after the step")


@dataclass(frozen=True)
class Poison:
    """What becomes which value, and when."""

    kind: str
    value: float
    step: int
    micro_batch: int
    pick: float  # which parameter or layer, as a share of all

    @property
    def told_at(self) -> int:
        """The step whose record must tell."""
        return self.step + 1 if self.kind == "weights after the step" else self.step


def draw_poison(draw: random.Random, number: int) -> Poison:
    """Every kind equally often."""
    kind = KINDS[number % len(KINDS)]
    last = STEPS - 1 if kind == "weights after the step" else STEPS
    return Poison(
        kind, draw.choice([math.nan, math.inf, -math.inf]), draw.randint(1, last),
        draw.randrange(MICRO_BATCHES), draw.random(),
    )  # fmt: skip


@contextlib.contextmanager
def active(poison: Poison) -> Iterator[list[int]]:
    """The poison in the trainer; the list is filled where it was given."""
    from studio.backend.callbacks import RunCallback
    from studio.backend.sft import StudioTrainer

    hits: list[int] = []
    seen = {"step": 0, "micro": 0}
    real_step, real_end = StudioTrainer.training_step, RunCallback.on_step_end

    def training_step(self: Any, model: Any, *rest: Any, **named: Any) -> Any:
        step = self.state.global_step + 1
        seen["micro"] = seen["micro"] + 1 if seen["step"] == step else 0
        seen["step"] = step
        now = (step, seen["micro"]) == (poison.step, poison.micro_batch)
        if not now or poison.kind == "weights after the step":
            return real_step(self, model, *rest, **named)
        hits.append(step)
        with spoilt_inside(model, poison):
            loss = real_step(self, model, *rest, **named)
        if poison.kind == "gradient":
            chosen(trained(model), poison).grad.view(-1)[0] = poison.value
        return loss * poison.value if poison.kind == "loss" else loss

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if poison.kind == "weights after the step" and state.global_step == poison.step:
            hits.append(poison.step)
            chosen(trained(self.trainer.model), poison).data.view(-1)[0] = poison.value
        real_end(self, args, state, control, **named)

    with (
        mock.patch.object(StudioTrainer, "training_step", training_step),
        mock.patch.object(RunCallback, "on_step_end", on_step_end),
    ):
        yield hits


@contextlib.contextmanager
def spoilt_inside(model: Any, poison: Poison) -> Iterator[None]:
    """One forward pass with a spoilt weight, input or activation."""
    import torch

    handle = None
    if poison.kind == "weights":
        chosen(trained(model), poison).data.view(-1)[0] = poison.value
    elif poison.kind == "batch":
        layer = model.get_input_embeddings()
        handle = layer.register_forward_hook(lambda m, i, out: torch.full_like(out, poison.value))
    elif poison.kind == "overflow":
        layers = [m for name, m in model.named_modules() if name.endswith("lora_A.default")]
        handle = chosen(layers, poison).register_forward_hook(
            lambda m, i, out: (out.float() + 1.0).mul(1e6).half().to(out.dtype)
        )
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def chosen(items: list[Any], poison: Poison) -> Any:
    return items[int(poison.pick * len(items))]


def problems(paths: RunPaths, poison: Poison, end: dict[str, Any]) -> list[str]:
    """What is wrong with the run after it met the poison."""
    found = []
    error = end.get("error") or {}
    if (end["state"], error.get("type")) != ("failed", "DivergedError"):
        found.append(f"it ended as {end['state']} with {error.get('type')}")
    steps = [r for r in read_records(paths.metrics).records if r["kind"] == "step"]
    # A spoilt weight may be met by a checkpoint of its own step before the next one begins.
    caught_at = {poison.told_at, poison.step}
    last = steps[-1]["step"] if steps else 0
    if last not in caught_at:
        found.append(f"the last step logged is {last}, wanted {poison.told_at}")
    broken = [r["step"] for r in steps if r["loss"] is None or r["grad_norm"] is None]
    if any(step < poison.step for step in broken):
        found.append(f"a sound step is shown as broken: {broken}")
    evals = [r for r in read_records(paths.metrics).records if r["kind"] == "eval"]
    told_by_eval = any(r["eval_loss"] is None for r in evals)
    if last == poison.told_at and last not in broken and not told_by_eval:
        found.append(f"step {last} is logged with numbers: {steps[-1]}")
    text = paths.metrics.read_text() + paths.exit_json.read_text()
    if "NaN" in text or "Infinity" in text:
        found.append("a file holds NaN or Infinity")
    return found + unsound(paths)


def unsound(paths: RunPaths) -> list[str]:
    """Weights on the disk that are not finite."""
    import torch
    from safetensors.torch import load_file

    files = [*paths.root.glob("checkpoints/*/*.safetensors"), *paths.adapter.glob("*.safetensors")]
    return [
        f"{file.relative_to(paths.root)} holds {name} that is not finite"
        for file in files
        for name, tensor in load_file(file).items()
        if not torch.isfinite(tensor).all()
    ]


def run(trials: int, *, seed: int = 0) -> Result:
    """One run a trial; what is not given in its run is a failure of the harness."""
    from tests.backend.tiny import RunMaker, save_model, train

    result = Result(
        "NaN and Inf in training", "caught within one logging step, nothing of it saved"
    )
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")  # the device lease
        make_run = RunMaker(root / "runs", save_model(root / "model"))
        for number in range(trials):
            poison = draw_poison(draw, number)
            held_out = 0.1 if number % 2 else 0.0
            paths = make_run({
                "data": {"val_frac": held_out},
                "train": {"max_steps": STEPS, "gradient_accumulation_steps": MICRO_BATCHES,
                          "per_device_train_batch_size": 1, "eval_steps": 3,
                          "save_steps": draw.choice([1, 2, 50]), "eval_max_rows": 2},
            }, rows=20)  # fmt: skip
            with mock.patch("studio.backend.measuring.MAX_NEW_TOKENS", 2), active(poison) as hits:
                end = train(paths)
            found = problems(paths, poison, end) if hits else ["nothing was spoilt"]
            result.trials += 1
            result.check(not found, f"seed {seed}, {poison}: {'; '.join(found)}")
            result.count(poison.kind)
    return result


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    return run_from_command_line(run, __doc__, trials=100)


if __name__ == "__main__":
    raise SystemExit(main())
