"""Orders to a running trainer: command files and SIGTERM. Polled between micro-batches.

Owns which order wins and acknowledging it. The signal handler only sets a flag: files written in
a handler could tear what the main thread writes. Knows nothing of torch or of how to stop.
"""

from __future__ import annotations

import json
import signal
import threading
from types import FrameType

from studio.core.runs import PAUSED, STOPPED, RunPaths, pending_commands
from studio.hardware.platforms import create_exclusive

_ENDS = {"stop": STOPPED, "stop_now": STOPPED, "pause": PAUSED}


class Inbox:
    """What the user asked for. `end_state` is set once the run shall end, and stays."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._terminated = threading.Event()
        self.end_state: str | None = None
        self.at_once = False
        self.cause: str | None = None
        self._save = False

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
        for file, verb in pending_commands(self._paths):
            if verb == "save":
                self._save = True
            elif self.end_state is None or verb == "stop_now":
                self.end_state = _ENDS[verb]
                self.cause = f"asked to {verb.replace('_', ' ')}"
            self.at_once = self.at_once or verb == "stop_now"
            create_exclusive(file.with_suffix(".ack"), json.dumps({"verb": verb}).encode())
        if self._terminated.is_set() and self.end_state is None:
            self.end_state = STOPPED
            self.cause = "asked to end by a signal"
        return self.end_state is not None

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wanted, self._save = self._save, False
        return wanted
