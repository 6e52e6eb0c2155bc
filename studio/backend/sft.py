"""TRL's SFTTrainer with what a run of ours needs around it, and its arguments from a plan.

Owns every place where we step between transformers' loop and a run: row order, the check of each
step before it changes weights, evaluation, checkpoints. What is measured and kept is the caller's
(`Hooks`). Knows nothing of files of a run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from studio.backend.adapters import adapters_in_fp32
from studio.backend.data import row_lengths
from studio.core.config import RunConfig

_MEGABATCH = 50  # micro-batches sorted by length together, as transformers does


class Hooks(Protocol):
    """What the trainer asks its run."""

    def measure(self, step: int) -> None:
        """Evaluate and sample after `step`."""

    def save(self, step: int) -> None:
        """Write a checkpoint of `step`."""

    def diverged(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """The step under way is not finite. Must raise."""


class EpochSampler(torch.utils.data.Sampler[int]):
    """Row order as a function of seed and epoch alone.

    transformers' length-grouped order comes from the global random numbers, so a run resumed in a
    later epoch would see other rows than the uninterrupted one.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a micro-batch.
        group: whether micro-batches hold rows of similar length.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, group: bool, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._group = group
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        if not self._group:
            return iter(order)
        size = self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), size * _MEGABATCH):
            block = sorted(order[start : start + size * _MEGABATCH], key=self._lengths.__getitem__)
            batches += [block[i : i + size] for i in range(0, len(block), size)]
        # A short micro-batch stays last, as the loader expects; the others come in random order.
        tail = [batch for batch in batches if len(batch) < size]
        full = [batch for batch in batches if len(batch) == size]
        shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        if self._epoch == 0 and shuffled:  # the longest first: memory that is too small shows now
            longest = max(shuffled, key=lambda batch: max(self._lengths[row] for row in batch))
            shuffled.insert(0, shuffled.pop(shuffled.index(longest)))
        return iter([row for batch in (*shuffled, *tail) for row in batch])


class StudioTrainer(SFTTrainer):
    """One run's trainer. `hooks` is set before `train`."""

    hooks: Hooks

    def __init__(self, *, lengths: Sequence[int], group_by_length: bool, **options: Any) -> None:
        self._row_lengths = lengths
        self._group_by_length = group_by_length
        self._rng_state: dict[str, Any] | None = None
        super().__init__(**options)
        self.remove_callback(PrinterCallback)  # prints a dict a step to the log
        adapters_in_fp32(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(
            self._row_lengths, self.args.train_batch_size, group=self._group_by_length,
            seed=self.args.seed,
        )  # fmt: skip

    def _clip_grad_norm(self, model: Any) -> Any:
        """Runs before the optimizer: a step that is not finite never reaches the weights."""
        norm = super()._clip_grad_norm(model)
        loss = float(self._tr_loss)
        length = float(norm) if norm is not None else 0.0
        # Under float16 the loss scaler skips steps with infinite gradients: that is its work.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if not math.isfinite(loss) or not (math.isfinite(length) or scaled):
            step = self.state.global_step + 1
            self.hooks.diverged(step, loss, length, self._get_learning_rate())
        return norm

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """Stands between the log of a step and its checkpoint; ours measures without traces."""
        self.hooks.measure(self.state.global_step)
        self.control.should_evaluate = False
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.hooks.save(self.state.global_step)

    def write_state(self, folder: Path) -> None:
        """Optimizer, schedule, random numbers and counters of the last completed step."""
        self.store_flos()
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def note_random_numbers(self) -> None:
        """Remember the random numbers of this moment for the next checkpoint: a stop in the middle
        of a step saves the step before it, and dropout has drawn since."""
        state = {
            "python": random.getstate(),
            "numpy": numpy.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        }
        if torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.random.get_rng_state()
        self._rng_state = state

    def _save_rng_state(self, output_dir: str) -> None:
        if self._rng_state is None:
            self.note_random_numbers()
        torch.save(self._rng_state, Path(output_dir) / "rng_state.pth")


def build_trainer(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    config: RunConfig,
    *,
    output_dir: Path,
    callback: TrainerCallback,
) -> StudioTrainer:
    """The trainer of a resolved config; `dataset` is what `data.to_dataset` made."""
    return StudioTrainer(
        model=model,
        args=training_arguments(config, output_dir),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[callback],
        lengths=row_lengths(dataset),
        group_by_length=config.train.group_by_length and not config.train.packing,
    )


def training_arguments(config: RunConfig, output_dir: Path) -> SFTConfig:
    """transformers' arguments by their names of version 5; evaluation and saving are ours."""
    train = config.train
    device = config.runtime.device
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        # Below 1 transformers reads a share of all steps, from 1 a count that must be whole.
        warmup_steps=train.warmup_steps if train.warmup_steps < 1 else round(train.warmup_steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_length=train.max_length,
        packing=train.packing,
        packing_strategy="bfd",
        # Rows are labelled, cut, counted and packed by backend.tokenize and backend.data.
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="group_by_length" if train.group_by_length else "random",
        activation_checkpointing=bool(train.activation_checkpointing),
        optim=train.optim,
        seed=train.seed,
        data_seed=train.seed,
        bf16=config.model.dtype == "bfloat16",
        fp16=config.model.dtype == "float16",
        use_cpu=device == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # True would log a NaN loss as 0.0
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        push_to_hub=False,
        dataloader_pin_memory=device.startswith("cuda"),
        # A row of the data set is a number until it is read: its tokens are no column yet.
        remove_unused_columns=False,
        average_tokens_across_devices=False,
    )
