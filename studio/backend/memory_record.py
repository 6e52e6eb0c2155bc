"""The run's memory record: what was predicted beside the peaks so far.

Owns putting the two together and when memory.json is written: from the sampler's thread, at most
every few seconds and only if something is new, so that a step never waits for it. Where the disk
refuses, the record waits for exit.json, which holds the same. Its form is `core.run_memory`'s.
Knows no torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from studio.backend.memory_watch import MemoryWatch
from studio.core.errors import StoreError
from studio.core.memory import Constants, Estimate
from studio.core.run_memory import HOST, to_record
from studio.core.runs import RunPaths
from studio.hardware.platforms import write_json

WRITE_EVERY_S = 3.0
NOT_YET = "it is made once a run of this model is done"
log = logging.getLogger(__name__)


class MemoryRecord:
    """Of one attempt.

    Args:
        kind: the run's device, "cpu", "mps" or "cuda:N".
        process_bytes: what NVML counts for this process now.
    """

    def __init__(
        self, paths: RunPaths, kind: str, process_bytes: Callable[[], int | None] = lambda: None
    ) -> None:
        self.kind = kind
        self.device = kind if kind.startswith("cuda") else HOST
        self.watch = MemoryWatch(on_cuda=kind.startswith("cuda"), process_bytes=process_bytes)
        self._paths = paths
        self._estimate: Estimate | None = None
        self._constants: Constants | None = None
        self._why_not = NOT_YET
        self._written_at = float("-inf")
        self._written: tuple[int, bool] = (0, False)

    @property
    def has_estimate(self) -> bool:
        """Whether an estimate is kept, one that knows the activations."""
        return self._estimate is not None and not self._estimate.unknown

    def predict(self, estimate: Estimate, constants: Constants) -> None:
        """Keep the estimate of this run and the constants that it was made with."""
        self._estimate, self._constants = estimate, constants

    def cannot_predict(self, why: str) -> None:
        """Keep why there is no estimate."""
        self._why_not = why

    def to_dict(self) -> dict[str, Any]:
        """The record up to now."""
        estimate = None if self._estimate is None else self._estimate.to_dict()
        return to_record(
            self.device, self.kind, self.watch.measured(), estimate=estimate,
            constants=self._constants, no_estimate=self._why_not,
        )  # fmt: skip

    def write(self) -> None:
        """Write memory.json if it is due. A disk that refuses is asked again at the next turn."""
        if time.monotonic() - self._written_at < WRITE_EVERY_S:
            return
        self._written_at = time.monotonic()
        record = self.to_dict()  # looks at the peaks, which may change them
        state = (self.watch.changes, self._estimate is not None)
        if state == self._written:
            return
        try:
            write_json(self._paths.memory_json, record)
        except StoreError as error:
            log.info("the memory record waits: %s", error)
        else:
            self._written = state
