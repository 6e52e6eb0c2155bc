"""What happens between the steps of a run: records, orders, evaluation, checkpoints.

`RunCallback` is both the transformers callback and the trainer's hooks: it decides (with
`backend.schedule`), does the measuring and saving, and writes it down. Knows nothing of how the
model and the data came to be.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from studio.backend import checkpoints
from studio.backend.data import TrainingData
from studio.backend.inbox import DISK_REFUSED, Inbox
from studio.backend.journal import Journal
from studio.backend.keeping import Keeper, write_adapter
from studio.backend.measuring import GivenUp, greedy_answers, mean_loss
from studio.backend.schedule import SaveRetry, Schedule
from studio.backend.sft import StudioTrainer
from studio.core.config import RunConfig
from studio.core.errors import DivergedError, StoreError
from studio.core.runs import PAUSED
from studio.core.series import StepClock
from studio.hardware.platforms import write_json

STATE_FILE = "studio_state.json"
PAUSE_AFTER_S = 30.0  # so long a file of the run may refuse to be written
_MEASURED = ("eval", "sampling", "saving")
_LAST_TRIES = 2  # of a save before the end: there is no later one
_BETWEEN_TRIES_S = 1.0
_ASK_EVERY_S = 0.2
_MICRO_BATCHES = 32  # the longest of so many counts for the grace of a stop


@dataclass
class Progress:
    """Counters that outlive an attempt: they go into each checkpoint."""

    tokens_total: int = 0
    loss_sum: float = 0.0
    steps: int = 0
    train_s: float = 0.0
    tokens_trained: int = 0
    last_loss: float | None = None
    first_step_s: float | None = field(default=None, compare=False)

    @property
    def train_loss(self) -> float | None:
        """Mean of the logged losses of all steps."""
        return self.loss_sum / self.steps if self.steps else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second within steps, measuring and saving left out."""
        return self.tokens_total / self.train_s if self.train_s else None


@dataclass
class Run:
    """What the callback needs to know of its run."""

    paths: Any
    config: RunConfig
    journal: Journal
    inbox: Inbox
    data: TrainingData
    keeper: Keeper
    tokenizer: Any
    identity: dict[str, Any]  # what a checkpoint belongs to: config, data, model, versions
    eval_is_auto: bool
    save_is_auto: bool
    resumed_from: int | None = None


class RunCallback(TrainerCallback):
    """Drives one attempt. Everything runs in the trainer's main thread."""

    trainer: StudioTrainer

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress = Progress()
        self.schedule = Schedule(1, 0, 1, stretch=False, save_with_eval=False)
        self._clock = StepClock()
        self._step_began = 0.0
        self._saved_at = time.monotonic()
        self._saved_step: int | None = run.resumed_from
        self._tokens_before = self.progress.tokens_total
        self._retry = SaveRetry()
        self._micro_began = 0.0
        self._micro_s: deque[float] = deque(maxlen=_MICRO_BATCHES)
        self._asked_at, self._asked = 0.0, False
        self.eval_owed = False  # an order to end came before the evaluation of this step
        self.first_phase = contextlib.ExitStack()

    @property
    def last_saved(self) -> int | None:
        """Step of the newest checkpoint, None if there is none yet."""
        return self._saved_step

    # -- transformers' events --------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the schedule, measure the untrained adapter, start the clock of the first step."""
        train = self.run.config.train
        self.schedule = Schedule(
            total_steps=state.max_steps,
            eval_steps=int(train.eval_steps) if self.run.data.held_out else 0,
            save_steps=int(train.save_steps),
            stretch=self.run.eval_is_auto,
            save_with_eval=self.run.save_is_auto,
        )
        self._tokens_before = self.progress.tokens_total
        journal = self.run.journal
        journal.step = state.global_step
        journal.phase = "training"  # what is neither measuring nor saving from here on
        journal.update(
            now=True, state="running", phase="training", message="Training",
            step=state.global_step, total_steps=state.max_steps,
        )  # fmt: skip
        if self.run.resumed_from is None and not self.run.inbox.poll():
            self.measure(0)
        elif self.eval_owed and not self.run.inbox.is_end_asked():
            self.measure(state.global_step)
        self.trainer.note_random_numbers()
        self.first_phase.enter_context(journal.in_phase("first_step", "First step"))
        self._stop_if_asked(control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_began = self._micro_began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between micro-batches: an order to end leaves the step that is under way."""
        self._end_micro_batch()
        self._stop_if_asked(control)

    def _end_micro_batch(self) -> None:
        now = time.monotonic()
        self._micro_s.append(now - self._micro_began)
        self._micro_began = now

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide what follows this step; the log comes first, then evaluation, then saving."""
        now = time.monotonic()
        duration = now - self._step_began
        self._end_micro_batch()
        self._clock.add(duration)
        self.progress.train_s += duration
        self.first_phase.close()
        step, journal = state.global_step, self.run.journal
        if self.progress.first_step_s is None:
            self.progress.first_step_s = journal.elapsed_s()
        journal.step = step
        self.trainer.note_random_numbers()
        self._stop_if_asked(control)
        ending = self.run.inbox.end_state is not None
        is_due = self.schedule.is_eval_due(
            step, spent_s=self.spent_s, elapsed_s=journal.elapsed_s(), step_s=self._clock.step_s
        )
        evaluated = is_due and not ending
        self.eval_owed = is_due and ending
        control.should_evaluate = evaluated
        save_due = self._retry.is_due(now) or self.schedule.is_save_due(
            step, evaluated=evaluated, since_save_s=now - self._saved_at
        )
        asked = self.run.inbox.take_save()
        control.should_save = ending or asked or (save_due and not self._retry.is_waiting(now))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One record a step."""
        if not logs or "loss" not in logs:
            return
        progress = self.progress
        # num_tokens starts at zero in each attempt
        tokens = self._tokens_before + int(logs.get("num_tokens", 0))
        added, progress.tokens_total = tokens - progress.tokens_total, tokens
        progress.loss_sum += logs["loss"]
        progress.last_loss = logs["loss"]
        progress.steps += 1
        duration = self._clock.last_s
        self.run.journal.record(
            "step", step=state.global_step, loss=logs["loss"],
            learning_rate=logs.get("learning_rate"), grad_norm=logs.get("grad_norm"),
            tokens_total=tokens, tokens_per_s=round(added / duration, 1) if duration else None,
        )  # fmt: skip
        self._show(state)

    # -- the trainer's hooks ---------------------------------------------------------------------

    def measure(self, step: int) -> None:
        """Evaluate on the held-out rows, answer the fixed prompts, keep the adapter if it is the
        best so far. Left at once where the run shall end; the next attempt does it then."""
        began = time.monotonic()
        self.eval_owed = False
        try:
            self._measure(step)
        except GivenUp:
            self.eval_owed = True
            self.run.journal.failed_phase = None
            self._stop_if_asked(self.trainer.control)
        except StoreError as error:  # the adapter kept before is still there
            self.run.journal.failed_phase = None
            self.run.journal.warn(f"The best adapter, of step {step}, could not be kept. {error}")
        self.schedule.last_cost_s = time.monotonic() - began

    def _measure(self, step: int) -> None:
        run, began, model = self.run, time.monotonic(), self.trainer.model
        autocast = self.trainer.accelerator.autocast
        if run.data.held_out:
            with run.journal.in_phase("eval", "Evaluating"):
                loss = mean_loss(
                    model, run.data.held_out, autocast=autocast, give_up=run.inbox.is_end_asked,
                    batch_size=2 * run.config.train.per_device_train_batch_size,
                    pad_token_id=run.tokenizer.pad_token_id,
                )  # fmt: skip
            run.journal.record(
                "eval", step=step, eval_loss=loss, eval_rows=len(run.data.held_out),
                eval_s=round(time.monotonic() - began, 3),
            )  # fmt: skip
            if not math.isfinite(loss):
                raise self._not_finite("evaluation loss", loss, step)
        try:
            if run.data.prompts:
                with run.journal.in_phase("sampling", "Answering the sample prompts"):
                    self._sample(step, model, autocast)
        except GivenUp:  # the loss is known: only the answers are missing
            run.journal.failed_phase = None
            self._stop_if_asked(self.trainer.control)
        if run.data.held_out:
            with run.journal.in_phase("saving", "Keeping the best adapter"):
                run.keeper.offer(model, step, loss)

    def save(self, step: int) -> None:
        """Write a checkpoint. A disk that refuses ends no run: it goes on, or pauses where its
        records cannot be written either."""
        run = self.run
        if step == self._saved_step or step == 0:
            return
        try:
            run.journal.sync()  # what led here is durable before the checkpoint is
        except StoreError as error:
            self.pause(error)
        refused = self._try_save(step)
        for _ in range(_LAST_TRIES - 1 if run.inbox.end_state is not None else 0):
            if refused:
                time.sleep(_BETWEEN_TRIES_S)
                refused = self._try_save(step)
        if refused:
            self._not_saved(step, refused)

    def _try_save(self, step: int) -> StoreError | None:
        journal, began = self.run.journal, time.monotonic()
        try:
            with journal.in_phase("saving", f"Saving step {step}"):
                checkpoints.save(self.run.paths.checkpoints, step, self._fill, self._facts())
        except StoreError as error:
            journal.failed_phase = None
            return error
        self._saved_step, self._saved_at = step, time.monotonic()
        self._retry.succeeded()
        journal.update(last_save_s=round(self._saved_at - began, 3))
        return None

    def _not_saved(self, step: int, error: StoreError) -> None:
        inbox = self.run.inbox
        self._retry.failed(time.monotonic())
        what = f"The checkpoint of step {step} was not saved"
        self.run.journal.warn(f"{what}. {error}")
        if inbox.end_state is not None and inbox.refusal is None:
            saved = f"step {self._saved_step}" if self._saved_step else "the beginning"
            inbox.refusal = StoreError(
                f"{what}. {error.what}", value=error.value,
                remedy=f"{error.remedy}. A resume goes on from {saved}",
            )  # fmt: skip

    def pause(self, error: StoreError) -> None:
        """End the attempt, to be resumed, since the disk refuses what the run must write."""
        self.run.inbox.end(PAUSED, DISK_REFUSED, error)
        self.trainer.control.should_training_stop = True

    def diverged(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Write the broken step down and end the run; the weights are still those of the step
        before."""
        self.run.journal.record(
            "step", step=step, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm,
            tokens_total=self.progress.tokens_total, tokens_per_s=None,
        )  # fmt: skip
        what, value = ("gradient", grad_norm) if math.isfinite(loss) else ("loss", loss)
        raise self._not_finite(what, value, step, f", with learning rate {learning_rate:.2g}")

    def _not_finite(self, what: str, value: float, step: int, clause: str = "") -> DivergedError:
        if step == 0:
            return DivergedError(
                f"The {what} of the base model is not a finite number", value=value,
                remedy="Check the model's files, or set model.dtype=float32",
            )  # fmt: skip
        saved = self._saved_step
        goes_on = f"Checkpoint step {saved} is sound. " if saved else "No checkpoint was made yet. "
        lower = self.run.config.train.learning_rate / 4  # the one now may be 0, in the warm-up
        return DivergedError(
            f"The {what} is no longer a finite number at step {step}{clause}",
            value=value,
            remedy=f"{goes_on}Start again with train.learning_rate={lower:.1g} or lower, or "
            "model.dtype=float32",
        )

    # -- inside ----------------------------------------------------------------------------------

    @property
    def spent_s(self) -> float:
        """Seconds for measuring and saving in this attempt."""
        return sum(self.run.journal.phase_seconds.get(name, 0.0) for name in _MEASURED)

    def _stop_if_asked(self, control: Any) -> None:
        if fault := self.run.journal.standing_fault(min_age_s=PAUSE_AFTER_S):
            self.pause(fault)
        if self.run.inbox.poll():
            control.should_training_stop = True
            control.should_save = True

    def _sample(self, step: int, model: Any, autocast: Any) -> None:
        run = self.run
        answers = greedy_answers(
            model, run.tokenizer, run.data.prompts, autocast=autocast,
            system_prompt=run.config.data.system_prompt, give_up=self._is_end_asked,
        )  # fmt: skip
        for answer in answers:
            prompt = answer.prompt
            run.journal.sample(
                step=step, prompt_index=prompt.index, prompt=prompt.shown,
                messages=prompt.messages, reference=prompt.reference, answer=answer.text,
                truncated=answer.truncated, tokens=answer.tokens,
            )  # fmt: skip

    def _is_end_asked(self) -> bool:
        """After each token of an answer: the folder of orders is looked at a few times a second."""
        now = time.monotonic()
        if now - self._asked_at >= _ASK_EVERY_S:
            self._asked_at, self._asked = now, self.run.inbox.is_end_asked()
        return self._asked

    def _fill(self, folder: Path) -> None:
        write_adapter(self.trainer.model, folder)
        self.trainer.write_state(folder)
        progress = {k: v for k, v in vars(self.progress).items() if k != "first_step_s"}
        write_json(
            folder / STATE_FILE,
            {
                "progress": progress,
                "evaluations": self.run.keeper.evaluations.to_dict(),
                "eval_owed": self.eval_owed,
            },
        )

    def _facts(self) -> dict[str, Any]:
        return {**self.run.identity, "attempt": self.run.journal.attempt}

    def _show(self, state: Any) -> None:
        journal, elapsed = self.run.journal, self.run.journal.elapsed_s()
        share = self.spent_s / elapsed if elapsed else 0.0
        eta = self._clock.eta_s(state.max_steps - state.global_step, overhead_frac=share)
        journal.update(
            step=state.global_step, epoch=round(state.epoch or 0.0, 4), phase="training",
            message="Training", eta_s=None if eta is None else round(eta, 1),
            micro_batch_s=round(max(self._micro_s, default=0.0), 3),
        )  # fmt: skip
