"""Orders to a running trainer: command files and SIGTERM. Polled between micro-batches.

Owns which order wins, acknowledging it, and an end that the trainer gives itself (`end`). The
signal handler only sets a flag: files written in a handler could tear what the main thread writes.
Knows nothing of torch or of how to stop.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from pathlib import Path
from types import FrameType

from studio.core.errors import StoreError
from studio.core.runs import PAUSED, STOPPED, RunPaths, pending_commands
from studio.hardware.platforms import create_exclusive

log = logging.getLogger(__name__)
DISK_REFUSED = "the disk refused"
_ENDS = {"stop": STOPPED, "stop_now": STOPPED, "pause": PAUSED}


class Inbox:
    """What the user asked for. `end_state` is set once the run shall end, and stays."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._terminated = threading.Event()
        self.end_state: str | None = None
        self.at_once = False
        self.cause: str | None = None
        self.refusal: StoreError | None = None  # what the disk refused, where that ended the run
        self._save = False
        self._obeyed: set[str] = set()  # orders whose acknowledgement the disk may have refused

    def listen(self) -> None:
        """Let SIGTERM (and SIGINT, SIGHUP where they exist) ask for an end. Main thread only."""
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._terminated.set()

    def poll(self) -> bool:
        """Read new commands. Returns whether the run shall end now."""
        try:
            waiting = pending_commands(self._paths)
        except OSError as error:
            log.warning("orders cannot be read now: %s", error)
            waiting = []
        for file, verb in waiting:
            if file.name not in self._obeyed:
                self._obeyed.add(file.name)
                self._obey(verb)
            self._acknowledge(file, verb)
        if self._terminated.is_set():
            self.end(STOPPED, "asked to end by a signal")
        return self.end_state is not None

    def _obey(self, verb: str) -> None:
        if verb == "save":
            self._save = True
        elif self.end_state is None or verb == "stop_now":
            self.end_state = _ENDS[verb]
            self.cause = f"asked to {verb.replace('_', ' ')}"
        self.at_once = self.at_once or verb == "stop_now"

    def _acknowledge(self, file: Path, verb: str) -> None:
        """Tried again at each poll while the disk refuses: the order is obeyed all the same."""
        try:
            create_exclusive(file.with_suffix(".ack"), json.dumps({"verb": verb}).encode())
        except StoreError as error:
            log.warning("an order was obeyed, its answer cannot be written: %s", error)

    def end(self, state: str, cause: str, refusal: StoreError | None = None) -> None:
        """Let the run end; the first reason stays."""
        if self.end_state is None:
            self.end_state, self.cause, self.refusal = state, cause, refusal

    def is_end_asked(self) -> bool:
        """Whether an order to end waits or was obeyed. Obeys none: for the midst of a measurement,
        which is left first."""
        if self.end_state is not None or self._terminated.is_set():
            return True
        try:
            return any(verb in _ENDS for _, verb in pending_commands(self._paths))
        except OSError:
            return False  # `poll` tells of it

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wanted, self._save = self._save, False
        return wanted
