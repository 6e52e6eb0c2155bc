"""The out-of-memory doctor: why a run ran out, what would have fitted, and the changed run.

Owns `Diagnosis` (from `error.memory` of the run, the estimator and the run's checkpoints) and
"Apply and retry": a new run with the changed settings that begins with the weights of the last
whole checkpoint, or from the beginning where there is none. The estimate is held against what the
run could really have had, and raised to what it needed where it had promised less. Knows nothing of
torch or of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.core.config import RunConfig
from studio.core.config_io import build_config, merge
from studio.core.endings import PHASE_WORDS
from studio.core.errors import BusyError, ConfigError, StudioError
from studio.core.memory import Estimate
from studio.core.out_of_memory import (
    GPU,
    MemoryFault,
    asked_and_free,
    others_text,
    raise_factor,
    size_text,
)
from studio.core.rescue import Option, Rescue, rescue, what_is_left
from studio.core.runs import FAILED, INTERRUPTED
from studio.services.memory import DataFacts
from studio.services.summary import mapping, number, whole
from studio.services.warm_start import newest_step

if TYPE_CHECKING:
    from studio.services.memory import MemoryService
    from studio.services.runs import RunParts
    from studio.services.summary import RunSummary
    from studio.services.supervisor import Supervisor

_RESIDENT = ("weights", "weights_quantized", "weights_other", "loading", "adapter", "gradients",
             "optimizer")  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What the page and the command line say of a run that ran out of memory.

    Attributes:
        sentence: whose memory, in which phase, what was asked and what was free.
        predicted_bytes: what the estimate had said; budget_bytes: what the run could have had;
            needed_bytes: what it needed at the least.
        options: the settings with the least loss first; empty where nothing fits or is known.
        step: of the checkpoint whose weights the changed run begins with; 0: from the beginning.
        begins: that, as a sentence.
        notes: what else to know: other programs, why there are no options.
    """

    run_id: str
    fault: MemoryFault
    sentence: str
    predicted_bytes: int | None
    budget_bytes: int | None
    needed_bytes: int | None
    options: tuple[Option, ...]
    step: int
    begins: str
    notes: tuple[str, ...]

    def option(self, key: str) -> Option:
        """By its key. Raises ConfigError."""
        for option in self.options:
            if option.key == key:
                return option
        raise ConfigError(
            "These settings are no longer among those that fit", value=key,
            remedy="Reload the page and choose again",
        )  # fmt: skip


class MemoryDoctor:
    """Of one workspace. Synchronous; the first question about a model takes seconds."""

    def __init__(self, parts: RunParts, memory: MemoryService, supervisor: Supervisor) -> None:
        self._parts = parts
        self._memory = memory
        self._supervisor = supervisor

    def diagnose(self, run_id: str) -> Diagnosis:
        """What is known and what would fit. Raises StoreError, BusyError if it ended otherwise."""
        run = self._parts.runs.get(run_id)
        fault = MemoryFault.from_dict((run.error or {}).get("memory"))
        if fault is None or run.state not in (FAILED, INTERRUPTED):
            raise BusyError("This run did not run out of memory", value=run_id)
        notes = [text for text in (others_text(fault),) if text]
        predicted, found = None, Rescue(())
        budget = fault.budget_bytes
        try:
            config = build_config(mapping(run.run_record.get("resolved")))
            budget = budget or self._memory.device(config).free_bytes
            predicted, found = self._rescue(run, config, fault, budget, notes)
        except StudioError as error:
            notes.append(str(error))
        step = newest_step(self._parts.runs.paths(run_id)) or 0
        return Diagnosis(
            run_id, fault, sentence_of(fault), predicted, budget, fault.needed_bytes,
            found.options, step, _begins(run, step), tuple(notes),
        )  # fmt: skip

    def retry(self, run_id: str, key: str) -> str:
        """Queue the changed run and return its id; the same choice twice is one run.

        Raises:
            BusyError: the run did not end so, came from elsewhere, or the studio is read-only.
            ConfigError: there is no such option (any more).
        """
        run = self._parts.runs.get(run_id)
        if run.read_only:
            raise BusyError("The run came from elsewhere and is read-only", value=run_id)
        attempt = (run.exit or {}).get("attempt") or run.state_record.get("attempt") or 1
        diagnosis = self.diagnose(run_id)
        option = diagnosis.option(key)
        config = changed_config(run, option, diagnosis.step)
        return self._supervisor.start(
            config, name=f"{run.name}, {option.title}",
            request_id=f"retry-{run_id}-{attempt}-{key}",
            warm_start=f"{run_id}@{diagnosis.step}" if diagnosis.step else None,
        )  # fmt: skip

    # -- inside ----------------------------------------------------------------------------------

    def _rescue(
        self, run: RunSummary, config: RunConfig, fault: MemoryFault, budget: int | None,
        notes: list[str],
    ) -> tuple[int | None, Rescue]:  # fmt: skip
        """The estimate of the run as it was, and the options."""
        facts = facts_of(run)
        model_id = str(mapping(run.run_record.get("model")).get("id") or config.model.id)

        def ask(wanted: RunConfig) -> Estimate:
            return self._memory.estimate(model_id, wanted, facts=facts).estimate

        was = ask(config)
        if was.unknown:
            notes.append(
                "The activations of this model cannot be counted, so nothing is promised. Try a "
                "smaller batch or shorter rows"
            )
            return None, Rescue(())
        if budget is None:
            notes.append("How much memory there was is not known, so nothing is promised")
            return was.expected, Rescue(())
        factor = raise_factor(fault, was.high, _resident(was))

        def needs(wanted: RunConfig) -> int:
            found = ask(wanted)
            fixed = _resident(found)
            return round(fixed + factor * (found.high - fixed))

        found = rescue(
            config, budget, needs, rows_cut=rows_over(run),
            can_4bit=self._parts.machine.capabilities().get("bnb") is not False,
        )  # fmt: skip
        notes += _remarks(fault, budget, needs(config), found)
        return was.expected, found


def facts_of(run: RunSummary) -> DataFacts:
    """The rows as the trainer saw them; where it came not so far, as long as they may be."""
    longest = whole(run.state_record.get("longest_tokens"))
    share = number(run.state_record.get("learned_share"))
    known = share is not None and 0 <= share <= 1
    return DataFacts(longest if longest > 0 else None, float(share or 0) if known else 1.0)


def rows_over(run: RunSummary) -> Callable[[int], int]:
    """How many rows are longer than a length, as the trainer counted them for the usual ones."""
    counted = mapping(run.state_record.get("rows_over"))
    return lambda length: whole(counted.get(str(length)))


def changed_config(run: RunSummary, option: Option, step: int) -> RunConfig:
    """The run's settings with the option's, for what is left of it behind a step."""
    left = what_is_left(build_config(run.config), step, run.total_steps)
    layers = [run.config]
    for path, value in {**option.values, **left}.items():
        section, _, key = path.partition(".")
        layers.append({section: {key: value}})
    return build_config(merge(*layers))


def sentence_of(fault: MemoryFault) -> str:
    """For example "The GPU ran out of memory in the first step: 2 GiB was asked for, ..."."""
    name = "The card" if fault.holder == GPU else "The computer"
    where = PHASE_WORDS.get(fault.phase, "")
    if fault.step > 0 and fault.phase in ("training", "first_step"):
        where = f"{where} after step {fault.step}"
    figures = asked_and_free(fault)
    return " ".join(f"{name} ran out of memory {where}".split()) + (f": {figures}" * bool(figures))


def advice_line(diagnosis: Diagnosis) -> str:
    """One line for a terminal; "" where there is nothing to advise."""
    if not diagnosis.options:
        return " ".join(f"{note}." for note in diagnosis.notes)
    told = "; or ".join(
        f"{option.title} (saves {size_text(option.saved_bytes)}, "
        f"{', '.join(dict.fromkeys(change.speed for change in option.changes))})"
        for option in diagnosis.options[:3]
    )
    return f"What would fit: {told}."


def _begins(run: RunSummary, step: int) -> str:
    if not step:
        return "It starts over: this run had saved no checkpoint yet"
    left = what_is_left(build_config(run.config), step, run.total_steps)
    steps, epochs = left.get("train.max_steps"), left.get("train.num_train_epochs")
    if steps is not None:
        how_long = f"trains the {steps:,} steps that are left"
    elif epochs is not None:
        how_long = f"trains {epochs:g} epoch{'' if epochs == 1 else 's'} more"
    else:
        how_long = "trains as long as this one would have"
    return f"It begins with the weights of step {step:,}, the last checkpoint, and {how_long}"


def _resident(estimate: Estimate) -> int:
    return sum(item.bytes for item in estimate.items if item.name in _RESIDENT)


def _remarks(fault: MemoryFault, budget: int, needed: int, found: Rescue) -> list[str]:
    """What the numbers mean beyond the options."""
    notes = []
    if fault.others_bytes and needed <= budget + fault.others_bytes:
        notes.append("Without these programs the run fits as it is: close them and resume it")
    if not found.options and found.least_bytes is not None:
        notes.append(
            f"Even with the smallest settings it needs about {size_text(found.least_bytes)}, and "
            f"{size_text(budget)} are there. Choose a smaller model, or another device"
        )
    return notes


def to_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """For JSON; sizes in bytes."""
    return {
        "sentence": diagnosis.sentence, "phase": diagnosis.fault.phase,
        "memory": diagnosis.fault.to_dict(), "predicted_bytes": diagnosis.predicted_bytes,
        "budget_bytes": diagnosis.budget_bytes, "needed_bytes": diagnosis.needed_bytes,
        "options": [_option_dict(option) for option in diagnosis.options],
        "begins": diagnosis.begins, "begins_at_step": diagnosis.step,
        "notes": list(diagnosis.notes), "advice": advice_line(diagnosis),
    }  # fmt: skip


def _option_dict(option: Option) -> Mapping[str, Any]:
    changes = [
        {"title": change.title, "values": dict(change.values), "saved_bytes": change.saved_bytes,
         "speed": change.speed, "lost_rows": change.lost_rows}
        for change in option.changes
    ]  # fmt: skip
    return {"key": option.key, "title": option.title, "changes": changes,
            "saved_bytes": option.saved_bytes, "needs_bytes": option.needs_bytes,
            "quantizes": option.quantizes}  # fmt: skip
