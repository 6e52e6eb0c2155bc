"""One reading a second of the device and this process, as `device` records; and the heartbeat.

Owns the thread. Reads NVML (no GPU memory, no torch call that could wait for the GPU), torch's own
allocator counters once torch is there, the resident set and what the host has left. A reading that
fails is left out.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from studio.backend.journal import Journal
from studio.backend.memory_record import MemoryRecord
from studio.backend.paging import PagingWatch
from studio.hardware.machine import ram_bytes
from studio.hardware.nvml import GpuSample, Nvml
from studio.hardware.probe import rss_bytes

INTERVAL_S = 1.0


class Telemetry:
    """Background thread `telemetry`. Peaks are kept for the summary.

    Args:
        device: "cuda:N", "mps" or "cpu".
        nvml: stands in for the NVIDIA library in tests.
    """

    def __init__(
        self,
        journal: Journal,
        device: str,
        nvml: Nvml | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._journal = journal
        self._gpu = device.startswith("cuda")
        self._index = int(device.partition(":")[2] or 0) if self._gpu else 0
        self._nvml = (nvml or Nvml()) if self._gpu else None
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._uuid: str | None = None
        self.paging = PagingWatch(journal, self._nvml)
        self._sampled_rss_bytes = 0
        self.torch_is_ready = False  # while it is being imported, its parts are not all there
        self.peak_vram_bytes: int | None = None
        self.memory = MemoryRecord(journal.paths, device, self._process_bytes)
        journal.on_phase = self.memory.watch.enter

    @property
    def peak_rss_bytes(self) -> int:
        """The most this process held: between two readings, too, where the system tells."""
        return max(self._sampled_rss_bytes, self.memory.watch.peak_rss_bytes)

    def torch_came(self) -> None:
        """The libraries are imported: torch's counters may be asked from now on."""
        self.torch_is_ready = self.memory.watch.torch_is_ready = True

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def follow(self, uuid: str) -> None:
        """Read this GPU from now on, whatever its number is; a MIG slice keeps its number."""
        if self._nvml is not None and self._nvml.sample(uuid) is not None:
            self._uuid = uuid

    def close(self) -> None:
        """End the thread. May be called twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        if self._nvml:
            self._nvml.close()

    def _loop(self) -> None:
        while True:
            fields = self.read()
            self._journal.record("device", **fields)
            self.paging.look(fields, self._uuid or self._index)
            self._journal.beat()
            self.memory.write()
            if self._stop.wait(self._interval_s):
                return

    def read(self) -> dict[str, Any]:
        """The fields of one `device` record; what is unknown is left out."""
        rss = rss_bytes(os.getpid())
        self._sampled_rss_bytes = max(self._sampled_rss_bytes, rss or 0)
        used, total = ram_bytes()
        fields: dict[str, Any] = {
            "rss_bytes": rss, "host_available_bytes": total - used, "host_total_bytes": total,
        }  # fmt: skip
        if self._gpu:
            fields |= self._read_gpu()
        self.memory.watch.sample(rss=rss, process=fields.get("process_bytes"))
        return {key: value for key, value in fields.items() if value is not None}

    def _read_gpu(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        sample = self._sample()
        if sample is not None:
            self.memory.device = sample.name
            fields = {
                "device_used_bytes": sample.used_bytes,
                "device_total_bytes": sample.total_bytes,
                "process_bytes": sample.process_bytes,
                "utilisation_pct": sample.utilisation_pct,
                "temperature_c": sample.temperature_c,
                "power_w": sample.power_w,
            }
        torch = sys.modules.get("torch") if self.torch_is_ready else None
        if torch is not None and torch.cuda.is_initialized():
            fields["allocated_bytes"] = torch.cuda.memory_allocated(0)
            fields["reserved_bytes"] = torch.cuda.memory_reserved(0)
        used = fields.get("process_bytes") or fields.get("reserved_bytes")
        if used is not None:
            self.peak_vram_bytes = max(self.peak_vram_bytes or 0, used)
        return fields

    def _process_bytes(self) -> int | None:
        sample = self._sample() if self._nvml is not None else None
        return None if sample is None else sample.process_bytes

    def _sample(self) -> GpuSample | None:
        assert self._nvml is not None
        if self._uuid is not None:
            return self._nvml.sample(self._uuid, os.getpid())
        return self._nvml.sample(self._index, os.getpid())
