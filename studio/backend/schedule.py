"""When to evaluate and when to save. Pure arithmetic on steps and seconds; no clock of its own.

Evaluation, sampling and saving together shall take at most a tenth of the run. The evaluations at
step 0, in the middle and at the end always happen: with fewer no best adapter could be told.
"""

from __future__ import annotations

from dataclasses import dataclass

BUDGET_FRAC = 0.1
SAVE_EVERY_S = 600.0
FIRST_RETRY_S = 5.0


class SaveRetry:
    """When a save that the disk refused is tried again: after 5 s, then twice as long each time,
    10 minutes at most. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._failures = 0
        self._again_at_s = 0.0

    def failed(self, now_s: float) -> None:
        """Wait longer than the last time."""
        self._again_at_s = now_s + min(SAVE_EVERY_S, FIRST_RETRY_S * 2**self._failures)
        self._failures += 1

    def succeeded(self) -> None:
        """Begin anew at the next refusal."""
        self._failures = 0

    def is_waiting(self, now_s: float) -> bool:
        """Whether even a save that is due has to wait: a full disk is not asked at each step."""
        return self._failures > 0 and now_s < self._again_at_s

    def is_due(self, now_s: float) -> bool:
        """Whether to try again, though no save is due by itself."""
        return self._failures > 0 and now_s >= self._again_at_s


@dataclass
class Schedule:
    """What is due after a step.

    Args:
        total_steps: of the run.
        eval_steps: steps between evaluations; 0: never evaluate.
        save_steps: steps between checkpoints.
        stretch: whether evaluations may be left out to stay in the budget (`auto`).
        save_with_eval: save where an evaluation was made, instead of every save_steps (`auto`).
    """

    total_steps: int
    eval_steps: int
    save_steps: int
    stretch: bool
    save_with_eval: bool
    last_cost_s: float = 0.0

    @property
    def middle(self) -> int:
        """The scheduled evaluation nearest behind half of the run."""
        return -(-self.total_steps // (2 * self.eval_steps)) * self.eval_steps

    def is_eval_due(
        self, step: int, *, spent_s: float, elapsed_s: float, step_s: float | None
    ) -> bool:
        """Whether to evaluate after `step`.

        Args:
            spent_s: on evaluation, sampling and saving so far.
            elapsed_s: since the run began.
            step_s: duration of a step.
        """
        if not self.eval_steps or step < 1:
            return False
        if step >= self.total_steps:
            return True
        if step % self.eval_steps:
            return False
        if not self.stretch or step == self.middle:
            return True
        projected_s = elapsed_s + (self.total_steps - step) * (step_s or 0.0)
        still_due = 1 + (step < self.middle)  # the last, and the one in the middle
        needed_s = spent_s + self.last_cost_s * (1 + still_due)
        return needed_s <= BUDGET_FRAC * projected_s

    def is_save_due(self, step: int, *, evaluated: bool, since_save_s: float) -> bool:
        """Whether to write a checkpoint after `step`; never after the last one, which is kept
        as the adapter itself."""
        if step >= self.total_steps:
            return False
        if since_save_s >= SAVE_EVERY_S:
            return True
        if self.save_with_eval and self.eval_steps:
            return evaluated
        return step % self.save_steps == 0
