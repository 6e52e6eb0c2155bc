"""The numbers of an out-of-memory error at the moment it is caught: what was asked, what was free.

Owns asking the allocators and the system; what their messages say is read by `core.out_of_memory`.
Asks for little itself: there is no memory. What cannot be read is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import psutil

from studio.core.out_of_memory import GPU, MemoryFault, OtherProgram, parse
from studio.hardware.machine import ram_bytes
from studio.hardware.nvml import Nvml
from studio.hardware.probe import program_names, rss_bytes

_LIMITS = (("RLIMIT_DATA", "data"), ("RLIMIT_AS", "vms"))  # with psutil's name of what they limit


def memory_fault(
    errors: Iterable[BaseException], holder: str, phase: str, *, step: int = 0,
    on_gpu: bool = False, untouched_bytes: int | None = None,
) -> MemoryFault:  # fmt: skip
    """What is known of an error, and of those that led to it, right after it was raised.

    Args:
        errors: the newest first.
        on_gpu: whether the run trains on an NVIDIA card.
        untouched_bytes: see `_process_limits`.
    """
    told: dict[str, Any] = {}
    for error in errors:
        told = {**parse(str(error)), **told}
    fault = MemoryFault(holder=holder, phase=phase, step=step, **told)
    if holder != GPU:
        return _of_host(fault, untouched_bytes)
    if on_gpu:
        return _of_card(fault)
    return replace(fault, used_bytes=fault.allocated_bytes, budget_bytes=fault.limit_bytes)  # MPS


def _of_card(fault: MemoryFault) -> MemoryFault:
    """What the message left out, from the allocator; and what the card could have given in all."""
    torch = sys.modules.get("torch")
    free, total = fault.free_bytes, fault.total_bytes
    used, limit, allocated = fault.used_bytes, fault.limit_bytes, fault.allocated_bytes
    if torch is not None and torch.cuda.is_initialized():
        try:
            free_now, total_now = torch.cuda.mem_get_info(0)
            reserved = torch.cuda.memory_stats(0).get("reserved_bytes.all.current", 0)
            allocated = allocated or torch.cuda.memory_allocated(0)
        except RuntimeError:  # a card that is gone answers nothing more
            free_now, total_now, reserved = None, None, None
        free = free_now if free is None else free
        total = total_now if total is None else total
        used = reserved if used is None else used
    budget = used + free if used is not None and free is not None else None
    if limit is not None:
        budget = limit if budget is None else min(budget, limit)
    others = fault.others or tuple(other_programs(Nvml(), 0))
    named = program_names([other.pid for other in others if other.pid is not None])
    return replace(
        fault, free_bytes=free, total_bytes=total, used_bytes=used, allocated_bytes=allocated,
        budget_bytes=budget,
        others=tuple(replace(o, name=o.name or named.get(o.pid or 0)) for o in others),
    )  # fmt: skip


def other_programs(nvml: Nvml, which: int | str) -> list[OtherProgram]:
    """Who else holds memory of a card; nobody where the system does not tell (WSL, containers)."""
    listed = nvml.processes(which)
    if os.getpid() not in {pid for pid, _ in listed}:
        return []  # those numbers are of another system (a container's host): they name nobody here
    return [OtherProgram(pid, held) for pid, held in listed if pid != os.getpid()]


def asked_and_untouched(held: Any) -> int:
    """Of psutil's memory_info: what was asked for and lies nowhere, because nothing was written."""
    return int(getattr(held, "data", held.rss) + getattr(held, "shared", 0) - held.rss)


def _of_host(fault: MemoryFault, untouched_bytes: int | None) -> MemoryFault:
    """Main memory: the nearest of the computer's end, the control group's and the process's.

    The error may have let go of memory already; then what was free at that moment is not told.
    """
    used_all, total = ram_bytes()
    used, free, limit = rss_bytes(os.getpid()) or 0, max(0, total - used_all), None
    for held, left, most in _process_limits(untouched_bytes):
        if left < free:
            used, free, limit = held, max(0, left), most
    budget, free_then = used + free, free
    if fault.asked_bytes is not None and free >= fault.asked_bytes:
        used, free_then = max(used, budget - fault.asked_bytes), None
    return replace(
        fault, free_bytes=free_then, total_bytes=total, used_bytes=used, limit_bytes=limit,
        budget_bytes=budget,
    )  # fmt: skip


def _process_limits(untouched_bytes: int | None) -> list[tuple[int, int, int]]:
    """(bytes held, left and in all) of the limits that the system sets this process.

    They count what was asked for, touched or not. What is held is told in the same way, but with
    the files that lie in memory and without what the libraries ask for and leave alone (a GiB and
    more): so an estimate counts too.

    Args:
        untouched_bytes: that of a calm moment; None: not known, and what lies in memory is told.
    """
    if sys.platform == "win32":
        return []
    import resource

    found = []
    try:
        held = psutil.Process().memory_info()
    except psutil.Error:
        return []
    told = held.rss
    if untouched_bytes is not None:
        told = max(told, told + asked_and_untouched(held) - untouched_bytes)
    for name, what in _LIMITS:
        most = resource.getrlimit(getattr(resource, name))[0]
        now = getattr(held, what, None)
        if most != resource.RLIM_INFINITY and now is not None:
            found.append((told, most - now, most))
    return found
