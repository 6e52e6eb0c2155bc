"""The summary of an attempt: exit.json. Written last, whatever happened. Knows no torch."""

from __future__ import annotations

from typing import Any

from studio.backend.failures import error_record
from studio.backend.inbox import DISK_REFUSED
from studio.backend.training import Attempt
from studio.core.errors import StudioError
from studio.core.runs import DONE, FAILED

_OVERHEAD = ("eval", "sampling", "saving")


def summarise(
    attempt: Attempt, state: str, *, error: StudioError | None = None, phase: str = ""
) -> dict[str, Any]:
    """The fields of exit.json (see docs of the run folder in core.runs).

    `eval_loss` is that of the kept adapter, `overhead_frac` the share of evaluation, sampling and
    saving in the whole time of the attempt.
    """
    journal, callback = attempt.journal, attempt.callback
    run_s = journal.elapsed_s()
    spent = sum(journal.phase_seconds.get(name, 0.0) for name in _OVERHEAD)
    record: dict[str, Any] = {
        "state": state, "attempt": journal.attempt, "cause": _cause(attempt, state, error),
        "error": None if error is None else error_record(error, phase),
        "steps": attempt.steps, "total_steps": attempt.record.get("total_steps"),
        "train_loss": None, "eval_loss": None, "eval_loss_first": None, "best_step": None,
        "kept_step": None, "verdict": "", "tokens_total": 0, "tokens_per_s": None,
        "peak_vram_bytes": attempt.telemetry.peak_vram_bytes,
        "peak_rss_bytes": attempt.telemetry.peak_rss_bytes,
        "time_to_first_step_s": None, "run_s": round(run_s, 3), "rows": None,
        "overhead_frac": round(spent / run_s, 4) if run_s else None,
        "phases_s": {name: round(value, 3) for name, value in journal.phase_seconds.items()},
        "warnings": journal.warnings,
        "memory": attempt.telemetry.memory.to_dict(),
        "adapter_dir": "adapter" if attempt.paths.adapter.is_dir() else None,
    }  # fmt: skip
    if attempt.data is not None:
        record["rows"] = attempt.data.counts
    if callback is not None:
        record |= _figures(attempt, state)
    elif error is None:
        record["verdict"] = f"Ended as {state} before the first step."
    if error is not None:
        record["verdict"] = " ".join(filter(None, [record["verdict"], str(error)]))
    return record


def _cause(attempt: Attempt, state: str, error: StudioError | None) -> str | None:
    if error is not None and attempt.inbox.cause in (None, DISK_REFUSED):
        return error.what
    return None if state == DONE else attempt.inbox.cause


def _figures(attempt: Attempt, state: str) -> dict[str, Any]:
    assert attempt.callback is not None
    progress, keeper = attempt.callback.progress, attempt.callback.run.keeper
    seen = keeper.evaluations
    kept_best = attempt.config.train.keep == "best" and seen.best is not None
    trainer_steps = attempt.trainer.state.max_steps if attempt.trainer else 0
    return {
        "total_steps": trainer_steps or attempt.record.get("total_steps"),
        "train_loss": progress.train_loss,
        "train_loss_last": progress.last_loss,
        "eval_loss": seen.best if kept_best else seen.last_trained,
        "eval_loss_first": seen.first,
        "best_step": seen.best_step,
        "kept_step": seen.kept_step,
        "verdict": "" if state == FAILED else keeper.verdict(
            state=state, step=attempt.steps, train_loss=progress.train_loss
        ),
        "tokens_total": progress.tokens_total,
        "tokens_per_s": None if progress.tokens_per_s is None else round(progress.tokens_per_s, 1),
        "time_to_first_step_s": progress.first_step_s,
    }  # fmt: skip
