"""How a child says how far it is: progress.json, which its parent reads (services.import_process).

Owns the file's writing, at most four times a second, whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRESS_EVERY_S = 0.25


class ProgressFile:
    """progress.json of a request's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"
        self._next = 0.0

    def tell(self, frac: float, text: str) -> None:
        """Say the share that is done and what is being done; most calls do nothing."""
        self.tell_facts(lambda: {"frac": min(1.0, frac), "text": text})

    def tell_facts(self, facts: Callable[[], dict[str, Any]]) -> None:
        """The same for any facts, which are asked for only when they are written."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PROGRESS_EVERY_S
        staged = self._path.with_suffix(".tmp")
        staged.write_text(json.dumps(facts()), encoding="utf-8")
        staged.replace(self._path)
