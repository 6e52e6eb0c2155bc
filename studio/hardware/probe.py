"""What this machine is (`capabilities`) and does right now (`live`), for the page and the plan.

Owns the sentences that say why something is off here, and the proposal of method, model and batch.
Imports no torch: the page asks this every second. Knows nothing of runs or of the page.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from studio.hardware import machine
from studio.hardware.nvml import GpuSample, Nvml
from studio.hardware.platforms import free_bytes
from studio.hardware.threads import cpu_count

GIB = 2**30
_LIVE_AGE_S = 0.5  # several tabs and endpoints share one reading
_CAPABILITIES_AGE_S = 30.0

# Smallest GPU memory (GiB) for a base model, with the method and batch that fit with 1024 tokens.
# The ids stand in presets/catalogue; "starter" is the bundled model.
PROPOSALS: tuple[tuple[float, str, bool, int], ...] = (
    (22.0, "Qwen/Qwen3-8B", True, 4),
    (15.0, "Qwen/Qwen3-4B-Instruct-2507", True, 8),
    (11.0, "Qwen/Qwen3-4B-Instruct-2507", True, 4),
    (7.0, "Qwen/Qwen3-1.7B", True, 4),
    (4.0, "Qwen/Qwen3-0.6B", False, 4),
)


class MachineProbe:
    """Thread-safe; one per process.

    Args:
        workspace: its disk is watched; the current folder by default.
        nvml: stands in for the NVIDIA library in tests.
    """

    def __init__(self, workspace: Path | None = None, nvml: Nvml | None = None) -> None:
        self.workspace = workspace or Path.cwd()
        self.nvml = nvml or Nvml()
        self._lock = threading.Lock()
        self._live: tuple[float, dict[str, Any]] | None = None
        self._capabilities: tuple[float, dict[str, Any]] | None = None
        psutil.cpu_percent(interval=None)  # the first call only starts the measurement

    def live(self, pid: int | None = None) -> dict[str, Any]:
        """Readings of this moment: GPUs, memory, disk, CPU; None where the system does not tell.

        Args:
            pid: whose memory `rss_bytes` and the GPUs' `process_bytes` show; ours by default.
        """
        if pid is not None:
            return self._read_live(pid)
        with self._lock:
            if self._live is None or time.monotonic() - self._live[0] > _LIVE_AGE_S:
                self._live = (time.monotonic(), self._read_live(os.getpid()))
            return self._live[1]

    def _read_live(self, pid: int) -> dict[str, Any]:
        used, total = machine.ram_bytes()
        return {
            "gpu": [sample.to_dict() for sample in self.nvml.devices(pid)],
            "rss_bytes": rss_bytes(pid),
            "ram_used_bytes": used,
            "ram_total_bytes": total,
            "free_disk_bytes": free_bytes(self.workspace),
            "cpu_pct": psutil.cpu_percent(interval=None),
            "note": self.nvml.note,
        }

    def capabilities(self) -> dict[str, Any]:
        """What this machine can do; `reasons` holds one sentence for each one that is off."""
        with self._lock:
            kept = self._capabilities
            if kept is None or time.monotonic() - kept[0] > _CAPABILITIES_AGE_S:
                kept = self._capabilities = (time.monotonic(), self._read_capabilities())
            return kept[1]

    def _read_capabilities(self) -> dict[str, Any]:
        gpus = self.nvml.devices()
        driver = self.nvml.driver_version() if gpus else None
        build = machine.torch_build()
        reasons: dict[str, str] = {}
        cuda = _cuda(gpus, driver, build, self.nvml.note, reasons)
        mps = _mps(build, reasons)
        bnb = _bnb(reasons)
        bf16 = _bf16(gpus if cuda else [], reasons)
        ram = machine.ram_bytes()[1]
        return {
            "cuda": cuda,
            "mps": mps,
            "bnb": bnb,
            "bf16": bf16,
            "cpu_bf16": machine.cpu_has_bf16(),
            "reasons": reasons,
            "summary": summary(gpus if cuda else [], cpu_count(), ram, mps=mps),
            "proposal": propose(gpus if cuda else [], bnb=bnb, mps=mps),
            "torch": build.label if build else None,
            "driver": driver,
            "gpus": [gpu.to_dict() for gpu in gpus],
            "cores": cpu_count(),
            "ram_total_bytes": ram,
            "platform": f"{platform.system()} {platform.machine()}",
        }


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, None if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def program_names(pids: Iterable[int]) -> dict[int, str]:
    """What programs are called; one that is gone or foreign is left out."""
    names = {}
    for pid in pids:
        try:
            names[pid] = psutil.Process(pid).name()
        except (psutil.Error, ValueError):
            continue
    return names


def summary(gpus: list[GpuSample], cores: int, ram_total_bytes: int, *, mps: bool = False) -> str:
    """For example "NVIDIA GeForce RTX 4090, 24 GiB" or "CPU, 2 cores, 24 GiB"."""
    ram = f"{ram_total_bytes / GIB:.0f} GiB"
    if gpus:
        first = gpus[0]
        memory = f", {first.total_bytes / GIB:.0f} GiB" if first.total_bytes else ""
        more = f" (+{len(gpus) - 1} more)" if len(gpus) > 1 else ""
        return f"{first.name}{memory}{more}"
    kind = "Apple GPU" if mps else "CPU"
    return f"{kind}, {cores} core{'s' if cores != 1 else ''}, {ram}"


def driver_major(driver: str | None) -> int | None:
    """580 of "580.65.06"."""
    head = (driver or "").partition(".")[0]
    return int(head) if head.isdigit() else None


def _cuda(
    gpus: list[GpuSample],
    driver: str | None,
    build: machine.TorchBuild | None,
    note: str | None,
    reasons: dict[str, str],
) -> bool:
    if not gpus:
        reasons["cuda"] = f"{note or 'No NVIDIA GPU found'}: training runs on the CPU"
    elif build is None:
        reasons["cuda"] = "torch is not installed"
    elif build.cuda is None:
        reasons["cuda"] = (
            f"The installed {build.label} cannot use the GPU: delete .venv and start again, so "
            "that the build for this machine is installed"
        )
    elif (have := driver_major(driver)) and build.oldest_driver and have < build.oldest_driver:
        reasons["cuda"] = (
            f"{build.label} needs NVIDIA driver {build.oldest_driver} or newer, this machine has "
            f"{driver}: update the driver, or delete .venv and start again for a matching build"
        )
    else:
        return True
    return False


def _mps(build: machine.TorchBuild | None, reasons: dict[str, str]) -> bool:
    if sys.platform == "darwin" and platform.machine() == "arm64" and build is not None:
        return True
    reasons["mps"] = "mps is the GPU of Apple computers with an M chip"
    return False


def _bnb(reasons: dict[str, str]) -> bool:
    if machine.has_module("bitsandbytes"):
        return True
    reasons["bnb"] = "4-bit needs the package bitsandbytes, which is not installed"
    return False


def _bf16(cuda_gpus: list[GpuSample], reasons: dict[str, str]) -> bool:
    if cuda_gpus:
        capability = cuda_gpus[0].compute_capability
        if capability is None or capability >= (8, 0):
            return True
        reasons["bf16"] = (
            f"{cuda_gpus[0].name} (compute capability {capability[0]}.{capability[1]}) has no "
            "bfloat16; that needs 8.0 or newer (RTX 30 series). float16 is used"
        )
        return False
    if machine.cpu_has_bf16():
        return True
    reasons["bf16"] = "This CPU has no bfloat16 instructions; float32 is used"
    return False


def propose(gpus: list[GpuSample], *, bnb: bool, mps: bool = False) -> dict[str, Any]:
    """Model, method and batch for this machine, as config values, with one sentence why."""
    total = max((gpu.total_bytes or 0 for gpu in gpus), default=0)
    for least_gib, model, four_bit, batch in PROPOSALS:
        if total >= least_gib * GIB:
            method = "QLoRA" if four_bit and bnb else "LoRA"
            why = (
                f"{gpus[0].name} has {total / GIB:.0f} GiB: {model} with {method} and batch "
                f"{batch} fits with room for 1024 tokens a row."
            )
            return _proposal(model, method == "QLoRA", batch, why)
    where = "an Apple GPU" if mps else "the CPU" if not gpus else "a GPU of this size"
    why = f"The bundled starter model with LoRA: it trains in seconds on {where}, without network."
    return _proposal("starter", False, 8, why)


def _proposal(model: str, four_bit: bool, batch: int, why: str) -> dict[str, Any]:
    return {
        "values": {
            "model": {"id": model},
            "quantization": {"load_in_4bit": four_bit},
            "train": {"per_device_train_batch_size": batch},
        },
        "why": why,
    }
