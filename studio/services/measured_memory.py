"""What runs took, beside what they were predicted to take; and what a device's runs teach.

Owns reading the memory records of a workspace's runs, fitting the estimate's two constants to each
device from three runs on (`core.fit_constants`), keeping them in the workspace's cache, where
trainers and a new start find them, and the sentence that says how good the estimate is here.
Nothing is read before somebody asks; a record that cannot be read is counted and passed over.
Thread safe. Knows nothing of torch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.core.errors import StudioError
from studio.core.fit_constants import (
    CONSTANTS_FILE,
    ENOUGH_RUNS,
    Fit,
    fit,
    kept_constants,
    to_kept,
)
from studio.core.memory import Constants, constants_of
from studio.core.run_memory import HOST, RunMemory, read_record
from studio.core.runs import DONE, STOPPED, RunPaths, read_json
from studio.hardware.platforms import make_folder, write_json

if TYPE_CHECKING:
    from studio.services.store import RunStore
    from studio.services.summary import RunSummary

log = logging.getLogger(__name__)
_LEARNED_FROM = (DONE, STOPPED)  # a run that ran out of memory says nothing of what it needs


@dataclass(frozen=True)
class RunView:
    """A run's memory as the page shows it.

    Attributes:
        record: None where there is none, or it is damaged (`damaged`).
        fit: what the runs of its device teach; None where the device is not known.
    """

    record: RunMemory | None
    fit: Fit | None
    damaged: bool = False

    @property
    def sentence(self) -> str:
        """How good the estimate is on this device."""
        if self.record is None or self.fit is None:
            return ""
        return accuracy(self.fit, "computer" if self.record.device == HOST else "card")


class MeasuredMemory:
    """Of one workspace.

    Args:
        use: told of a device's constants once they are fitted (`MemoryService.fit_constants`).
        read_only: fit, but write nothing.
    """

    def __init__(
        self, workspace: Path, runs: RunStore,
        use: Callable[[str, Constants], None] = lambda device, constants: None,
        *, read_only: bool = False,
    ) -> None:  # fmt: skip
        self._file = workspace / CONSTANTS_FILE
        self._runs = runs
        self._use = use
        self._read_only = read_only
        self._lock = threading.Lock()
        self._read: dict[str, tuple[Any, RunMemory | None]] = {}  # by run id, with its record
        self._fits: dict[str, Fit] = {}
        self.damaged = 0  # records of this workspace that cannot be read

    def of_run(self, run_id: str) -> RunView:
        """A run's memory, and how good the estimate is on its device. Raises StoreError for an
        unknown run."""
        run = self._runs.get(run_id)
        kept = _record_of(run, self._runs.paths(run_id))
        if kept is None:
            return RunView(None, None)
        try:
            record = read_record(kept)
        except ValueError:
            return RunView(None, None, damaged=True)
        if run.read_only:  # a run from elsewhere says nothing of this machine
            return RunView(record, None)
        return RunView(record, self.refresh().get(record.device, Fit(0)))

    def refresh(self) -> dict[str, Fit]:
        """Look at all runs that ended; fit anew where there are others than before. By device."""
        runs = self._runs.list()
        with self._lock:
            seen = {run.id: self._record(run) for run in runs if run.state in _LEARNED_FROM}
            if self._is_known(seen):
                return dict(self._fits)
            self._read = seen
            self.damaged = sum(
                kept is not None and record is None for kept, record in seen.values()
            )
            by_device: dict[str, list[RunMemory]] = {}
            for _, record in seen.values():  # newest first, as the store lists them
                if record is not None:
                    by_device.setdefault(record.device, []).append(record)
            self._fits = {
                device: fit(records, constants_of(records[0].kind))
                for device, records in by_device.items()
            }
            self._hand_on()
            return dict(self._fits)

    def _is_known(self, seen: dict[str, tuple[Any, RunMemory | None]]) -> bool:
        return list(seen) == list(self._read) and all(
            kept is self._read[run_id][0] for run_id, (kept, _) in seen.items()
        )

    def _record(self, run: RunSummary) -> tuple[Any, RunMemory | None]:
        """The run's record as it is kept, and read; what was read before is not read again."""
        kept = (run.exit or {}).get("memory")
        before = self._read.get(run.id)
        if before is not None and before[0] is kept:
            return before
        if kept is None or run.read_only:  # a run from elsewhere ran on another machine
            return None, None
        try:
            return kept, read_record(kept)
        except ValueError as error:
            log.warning("the memory record of run %s is damaged: %s", run.id, error)
            return kept, None

    def _hand_on(self) -> None:
        """Give the fitted constants to the estimator, and keep them for the next start."""
        found = {device: made.constants for device, made in self._fits.items() if made.constants}
        for device, constants in found.items():
            self._use(device, constants)
        before = kept_constants(read_json(self._file))
        if self._read_only or not found or {**before, **found} == before:
            return
        try:
            make_folder(self._file.parent)
            write_json(self._file, to_kept({**before, **found}))
        except (OSError, StudioError) as error:  # full: they are fitted again next time
            log.warning("the fitted constants could not be kept: %s", error)


def _record_of(run: RunSummary, paths: RunPaths) -> Any:
    """As the attempt's end or, while it runs and where it was killed, the trainer left it."""
    if run.exit is not None:
        return run.exit.get("memory")
    return read_json(paths.memory_json)


def accuracy(found: Fit, thing: str) -> str:
    """For example "On this card we are within 6 % (median 3 %): 5 runs of 3 different recipes, each
    predicted from the others."

    Args:
        thing: "card" or "computer".
    """
    if found.median is None or found.worst is None:
        runs = f"{found.runs} of {ENOUGH_RUNS}"
        return f"Not enough runs yet to fit the estimate to this {thing}: {runs}."
    kinds = f" of {found.kinds} {'recipe' if found.kinds == 1 else 'different recipes'}"
    return (
        f"On this {thing} we are within {_percent(found.worst)} (median {_percent(found.median)}): "
        f"{found.runs} runs{kinds if found.kinds < found.runs else ''}, each predicted from the "
        "others."
    )


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value > 0.95 else f"{max(0.1, value):.1f} %"


def use_kept(workspace: Path, use: Callable[[str, Constants], None]) -> None:
    """Hand on the constants that earlier runs taught: one small file, so that a start may do it."""
    for device, constants in kept_constants(read_json(workspace / CONSTANTS_FILE)).items():
        use(device, constants)
