"""What a user reads at each of the forty faults of the table in docs/reliability.md.

Each fault is brought about and the sentence taken from the code that says it: nothing here repeats
a message. tests/faults/messages.py keeps them as a snapshot.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studio.core.errors import StudioError

RUNS, PAGE, TERMINAL = "the run's row and panel", "a notice on the page", "the terminal"
NOTES = "the run's warnings"
START, DATA, CHAT, SIDE = "beside Start", "the Data tab", "the Chat tab", "the machine's panel"


@dataclass(frozen=True)
class Fault:
    """One row: what breaks, where it is told, and what brings the sentence about."""

    number: int
    what: str
    where: str
    bring_about: Callable[[Path], object]
    quiet: bool  # nothing is wrong for the user: the answer is what can be seen, no remedy


FAULTS: dict[int, Fault] = {}


def fault(
    number: int, what: str, where: str, *, quiet: bool = False
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register what brings a fault about: it returns what is shown, or raises the StudioError."""

    def register(bring_about: Callable[[Path], object]) -> Callable[[Path], object]:
        if number in FAULTS:
            raise ValueError(f"F{number} is there already")
        FAULTS[number] = Fault(number, what, where, bring_about, quiet)
        return bring_about

    return register


_STEADY = (
    (r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN"),
    (r"[\d.]+ (MiB|GiB) free", r"N \1 free"),
    (r"[\d.]+ of [\d.]+ GiB were free", "N of N GiB were free"),
    (r"process \d+", "process N"),
    (r"\d\d \w{3} \d\d:\d\d\b", "DATE"),
    (r"\d\d:\d\d:\d\d", "TIME"),
    (r"\b127\.0\.0\.1:\d+", "ADDRESS"),
    (r"Port \d+", "Port N"),
)  # fmt: skip


def message_of(found: Fault, folder: Path) -> str:
    """Bring the fault about in an empty folder; what is shown, without what differs each time."""
    try:
        shown = found.bring_about(folder)
    except StudioError as error:
        shown = error
    text = " ".join(str(shown).split())
    text = text.replace(str(folder.resolve()), "FOLDER").replace(str(folder), "FOLDER")
    text = text.replace(socket.gethostname(), "HOST")
    for pattern, word in _STEADY:
        text = re.sub(pattern, word, text)
    return text
