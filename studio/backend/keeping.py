"""Which adapter is kept: the one with the best evaluation loss, or the last one; and the verdict.

Owns the run's `adapter/` folder, in plain peft layout, so that any peft program can load it. A
better adapter replaces it at once: a crash never loses the best one. Knows nothing of schedules.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from studio.backend.checkpoints import (
    WEIGHTS,
    check_finite,
    disk_refusals,
    naming,
    refuse_without,
    replace_folder,
    restore_folder,
)
from studio.core.errors import StoreError
from studio.core.runs import read_json
from studio.hardware.platforms import write_json

NOTE = "lora_studio.json"  # beside the adapter: of which step and base; peft does not read it
BASE, WARM = "the base model", "the weights it began with"


@dataclass
class Evaluations:
    """Evaluation losses so far; saved in each checkpoint."""

    first: float | None = None
    last: float | None = None
    best: float | None = None
    best_step: int | None = None
    kept_step: int | None = None
    history: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, loss: float) -> bool:
        """Note a loss; returns whether it is the best of a trained adapter. Of equals the earlier
        wins: it is trained less."""
        self.history.append((step, loss))
        self.last = loss
        if step == 0:
            self.first = loss
            return False
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best):
            return False
        self.best, self.best_step = loss, step
        return True

    @property
    def last_trained(self) -> float | None:
        """The newest loss of a trained adapter; at step 0 it is the base that was measured."""
        return next((loss for step, loss in reversed(self.history) if step > 0), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluations:
        """The inverse of `to_dict`."""
        return cls(**{**values, "history": [tuple(pair) for pair in values.get("history", [])]})


class Keeper:
    """Writes `adapter/`.

    Args:
        folder: the run's adapter folder.
        keep: "best" or "last".
        note: goes into the note beside the adapter: what it belongs to.
        begun_as: what was measured at step 0, for the verdict.
    """

    def __init__(
        self,
        folder: Path,
        keep: str,
        *,
        note: Mapping[str, Any] | None = None,
        begun_as: str = BASE,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._note = dict(note or {})
        self._begun_as = begun_as
        self.evaluations = Evaluations()
        restore_folder(folder)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on with the evaluations of a checkpoint.

        An adapter that an interrupted attempt kept later than that checkpoint is still a measured
        one of this run: it stays unless a better one comes.
        """
        self.evaluations = Evaluations.from_dict(saved)
        note = read_json(self._folder / NOTE)
        if note is None or not isinstance(note.get("eval_loss"), int | float):
            return
        best = self.evaluations.best
        if best is None or note["eval_loss"] < best:
            self.evaluations.best = float(note["eval_loss"])
            self.evaluations.best_step = int(note["step"])
        self.evaluations.kept_step = int(note["step"])

    def _settle(self) -> None:
        """After a refused write: what is kept, and the best to beat, is what lies there. Where
        nothing does, the next measured adapter is the best, and `finish` writes one."""
        with contextlib.suppress(StoreError):
            restore_folder(self._folder)
        note = read_json(self._folder / NOTE) or {}
        loss = note.get("eval_loss")
        self.evaluations.kept_step = int(note["step"]) if "step" in note else None
        measured = isinstance(loss, int | float)
        self.evaluations.best = float(loss) if measured else None
        self.evaluations.best_step = self.evaluations.kept_step if measured else None

    def offer(self, model: Any, step: int, loss: float) -> bool:
        """Note an evaluation and keep the adapter if it is the best. Returns whether it was.

        Raises StoreError where the disk refuses: then the one kept before stays the best one there
        is, so that the next that beats it is kept.
        """
        is_best = self.evaluations.add(step, loss)
        if is_best and self._keep == "best":
            try:
                self._write(model, step, loss)
            except StoreError:
                self._settle()
                raise
        return is_best

    def finish(self, model: Any, step: int) -> None:
        """Write the last adapter where that is asked or where none was measured."""
        nothing_measured = self.evaluations.best_step is None or self.evaluations.kept_step is None
        if self._keep == "last" or nothing_measured:
            self._write(model, step, None)

    def _write(self, model: Any, step: int, loss: float | None) -> None:
        refuse_without(self._folder.parent)
        staged = self._folder.with_name(f".staging-{self._folder.name}")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            with naming(f"The adapter of step {step}", staged, self._folder):
                with disk_refusals(staged):
                    write_adapter(model, staged)
                check_finite(staged / WEIGHTS, step)
                write_json(staged / NOTE, {**self._note, "step": step, "eval_loss": loss})
                replace_folder(staged, self._folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self.evaluations.kept_step = step

    def verdict(self, *, state: str, step: int, train_loss: float | None) -> str:
        """One or two sentences on what came out and which adapter is used."""
        return verdict(
            self.evaluations, self._keep, state=state, step=step, train_loss=train_loss,
            begun_as=self._begun_as,
        )  # fmt: skip


def write_adapter(model: Any, folder: Path) -> None:
    """The adapter alone in peft's layout: adapter_config.json, adapter_model.safetensors."""
    model.save_pretrained(folder, safe_serialization=True)
    # A card with a template text only; this run's own record is run.json.
    (folder / "README.md").unlink(missing_ok=True)


def verdict(
    seen: Evaluations, keep: str, *, state: str, step: int, train_loss: float | None,
    begun_as: str = BASE,
) -> str:  # fmt: skip
    """See Keeper.verdict; pure."""
    begin = f"Ended as {state} at step {step}. " if state != "done" else ""
    if seen.best is None or seen.best_step is None:
        loss = "" if train_loss is None else f" Training loss {train_loss:.3f}."
        if seen.last_trained is not None:
            return f"{begin}The best step could not be kept; using step {step}.{loss}"
        when = "" if seen.first is None else " after step 0"
        return f"{begin}Nothing was measured on held-out rows{when}; using step {step}.{loss}"
    if keep == "last":
        return f"{begin}Using the last step ({step}), as asked; best was step {seen.best_step}."
    used = f"using {seen.kept_step}"
    if seen.first is not None and seen.best >= seen.first:
        return (
            f"{begin}No step was better on held-out rows than {begun_as} "
            f"({seen.best:.3f} against {seen.first:.3f}); {used}. "
            "Try a lower learning rate or more rows."
        )
    change = "" if seen.first is None else f" (evaluation loss {seen.first:.3f} to {seen.best:.3f})"
    later = [loss for at, loss in seen.history if at > seen.best_step]
    if not later:
        return f"{begin}Best at the last evaluation, step {seen.best_step}{change}; {used}."
    if later[-1] > seen.best * 1.01:
        return f"{begin}Best at step {seen.best_step}{change}; later steps overfit; {used}."
    return f"{begin}Best at step {seen.best_step}{change}; later steps brought nothing; {used}."
