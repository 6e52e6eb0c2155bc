"""A training that ran out of memory: what is known of it, in numbers and in a sentence.

Owns `MemoryFault` (kept as `error.memory` in exit.json and in vanished.json), reading the numbers
out of the allocators' messages, and how far an estimate that was too low is raised. Pure: knows
nothing of torch, processes or files. All sizes are bytes; None: not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

GPU, HOST = "gpu", "host"
KIB = 2**10
_UNITS = {"b": 1, "B": 1, "K": KIB, "M": KIB**2, "G": KIB**3, "T": KIB**4}
_SIZE = r"(\d{1,18}(?:\.\d{1,6})?) ?(bytes|[KMGT]i?B|B)\b"  # MPS says GB and means GiB
# torch's allocators for CUDA, the CPU and MPS; numpy's.
_PATTERNS = {
    "asked_bytes": rf"[Tt]ried to allocate {_SIZE}|[Uu]nable to allocate {_SIZE}",
    "total_bytes": rf"total capacity of {_SIZE}",
    "free_bytes": rf"of which {_SIZE} is free",
    "used_bytes": rf"this process has {_SIZE} memory in use",
    "limit_bytes": rf"{_SIZE} allowed|max allowed: {_SIZE}",
    "allocated_bytes": rf"{_SIZE} is allocated by PyTorch|MPS allocated: {_SIZE}",
    "unused_bytes": rf"{_SIZE} is reserved by PyTorch but unallocated",
}
_OTHER = re.compile(rf"Process (\d{{1,10}}) has {_SIZE} memory in use")
AT_LEAST = 1.02  # what a run needed is known from below only: it ended there
_MAX_OTHERS = 8
_MAX_NAME_CHARS = 80


@dataclass(frozen=True)
class OtherProgram:
    """A program that held memory of the card. `name` is None where the system does not tell."""

    pid: int | None
    bytes: int | None
    name: str | None = None


@dataclass(frozen=True)
class MemoryFault:
    """How a training ran out of memory.

    Attributes:
        holder: whose memory: gpu or host.
        phase: of the run (core.events). step: completed steps.
        asked_bytes: the allocation that was refused; None where the system killed instead.
        free_bytes: what there was at that moment.
        total_bytes: of the card or the computer.
        used_bytes: held by the training, driver and libraries included.
        limit_bytes: what the process may take at most, where something limits it further.
        budget_bytes: what the training could have had in all: held and free.
        allocated_bytes: by tensors. unused_bytes: reserved by PyTorch in pieces too small.
        others: programs that held memory of the card.
    """

    holder: str
    phase: str = ""
    step: int = 0
    asked_bytes: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None
    budget_bytes: int | None = None
    allocated_bytes: int | None = None
    unused_bytes: int | None = None
    others: tuple[OtherProgram, ...] = ()

    @property
    def needed_bytes(self) -> int | None:
        """What the training needed at the least: what it held and what it asked for."""
        known = [self.budget_bytes or 0]
        if self.used_bytes is not None:
            known.append(self.used_bytes + (self.asked_bytes or 0))
        return max(known) or None

    @property
    def others_bytes(self) -> int:
        """Held by other programs, as far as they say."""
        return sum(other.bytes or 0 for other in self.others)

    def to_dict(self) -> dict[str, Any]:
        """For exit.json."""
        return {**asdict(self), "others": [asdict(other) for other in self.others]}

    @classmethod
    def from_dict(cls, values: Any) -> MemoryFault | None:
        """From a run's file, whatever stands there; None where it is no such record."""
        if not isinstance(values, Mapping) or values.get("holder") not in (GPU, HOST):
            return None
        sizes = {
            field.name: _size(values.get(field.name))
            for field in fields(cls) if field.name.endswith("_bytes")
        }  # fmt: skip
        phase, listed = values.get("phase"), values.get("others")
        others = [_other(entry) for entry in listed] if isinstance(listed, list) else []
        return cls(
            holder=values["holder"], phase=phase if isinstance(phase, str) else "",
            step=_size(values.get("step")) or 0, **sizes,
            others=tuple(other for other in others[:_MAX_OTHERS] if other is not None),
        )  # fmt: skip


def _size(value: Any) -> int | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and math.isfinite(value) and 0 <= value < 2**60 else None


def _other(entry: Any) -> OtherProgram | None:
    if not isinstance(entry, Mapping):
        return None
    name = entry.get("name")
    known = name[:_MAX_NAME_CHARS] if isinstance(name, str) and name else None
    return OtherProgram(_size(entry.get("pid")), _size(entry.get("bytes")), known)


def parse(text: str) -> dict[str, Any]:
    """The numbers of an allocator's message: fields of `MemoryFault`; what it does not say is
    left out."""
    found: dict[str, Any] = {}
    for name, pattern in _PATTERNS.items():
        if match := re.search(pattern, text):
            amount, unit = (part for part in match.groups() if part is not None)
            found[name] = _bytes_of(amount, unit)
    others = tuple(
        OtherProgram(int(pid), _bytes_of(amount, unit))
        for pid, amount, unit in _OTHER.findall(text)
    )
    # Where it does not know itself, the numbers are those of another system: a container's host.
    knows_itself = "used_bytes" in found
    return found | ({"others": others[:_MAX_OTHERS]} if others and knows_itself else {})


def _bytes_of(amount: str, unit: str) -> int:
    return round(float(amount) * _UNITS[unit[0]])


def size_text(amount: int) -> str:
    """ "1.9 GiB", "24 GiB"; below 1 GiB in MiB, below 1 MiB in KiB."""
    if amount < KIB**2:
        return f"{amount / KIB:.0f} KiB"
    if amount < KIB**3:
        return f"{amount / KIB**2:.0f} MiB"
    return f"{amount / KIB**3:.1f} GiB".replace(".0 GiB", " GiB")


def asked_and_free(fault: MemoryFault) -> str:
    """For example "2 GiB was asked for, and 407 MiB of 23.7 GiB was free". "" where nothing is
    known."""
    of_all = f" of {size_text(fault.total_bytes)}" if fault.total_bytes is not None else ""
    if fault.limit_bytes is not None:
        of_all = f" of the {size_text(fault.limit_bytes)} that it may take"
    parts = []
    if fault.asked_bytes is not None:
        parts.append(f"{size_text(fault.asked_bytes)} was asked for")
    if fault.free_bytes is not None:
        parts.append(f"{size_text(fault.free_bytes)}{of_all} was free")
    elif parts and of_all:
        parts.append(f"so much{of_all} was no longer free")
    return ", and ".join(parts)


def others_text(fault: MemoryFault) -> str:
    """ "9.1 GiB of the card belonged to python (process 4242)"; "" where nobody else is known."""
    if not fault.others:
        return ""
    large = sorted(fault.others, key=lambda other: -(other.bytes or 0))[:3]
    names = ", ".join(program_name(other) for other in large)
    more = f" and {len(fault.others) - 3} more" if len(fault.others) > 3 else ""
    amount = size_text(fault.others_bytes) if fault.others_bytes else "Memory"
    return f"{amount} of the card belonged to {names}{more}"


def program_name(other: OtherProgram) -> str:
    """ "python (process 4242)", "process 4242" or "another program"."""
    if other.pid is None:
        return other.name or "another program"
    return f"{other.name} (process {other.pid})" if other.name else f"process {other.pid}"


def raise_factor(fault: MemoryFault, predicted_bytes: int, resident_bytes: int) -> float:
    """By how much the part of an estimate that is no weights is multiplied, so that it says a
    little more than what the run is known to have needed; 1.0 where it said so already.

    Args:
        predicted_bytes: what the failed configuration was said to need.
        resident_bytes: of it weights and trained numbers, which are counted to the byte.
    """
    needed = fault.needed_bytes
    passing = predicted_bytes - resident_bytes
    if needed is None or AT_LEAST * needed <= predicted_bytes or passing <= 0:
        return 1.0
    return (AT_LEAST * needed - resident_bytes) / passing
