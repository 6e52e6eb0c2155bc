"""What NVIDIA's management library says about the GPUs: memory, use, temperature, power.

Owns: loading NVML late, reading samples, and going on after a failure (no driver, a driver that
was just updated, a lost GPU, MIG slices, values the card does not tell). It never raises: what
cannot be read is None, what went wrong is `note`. Knows nothing of torch: it costs no GPU memory.
Indices are NVML's (PCI bus order); CUDA counts the same way only where CUDA_DEVICE_ORDER is
PCI_BUS_ID, so a caller that can should ask by UUID.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_FIRST_RETRY_S = 2.0
_LAST_RETRY_S = 120.0


@dataclass(frozen=True)
class GpuSample:
    """One GPU (or one MIG slice) at one moment. None: the system does not tell.

    `used_bytes` is total minus free, so it counts what the driver reserves for itself.
    `process_bytes` is what the given pid holds; None under WSL and in most containers.
    """

    index: int
    uuid: str
    name: str
    used_bytes: int | None
    total_bytes: int | None
    process_bytes: int | None
    utilisation_pct: float | None
    temperature_c: float | None
    power_w: float | None
    compute_capability: tuple[int, int] | None
    is_mig: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Nvml:
    """Thread-safe reader; one per process is enough.

    Args:
        module: stands in for `pynvml` in tests.
        clock: monotonic seconds.
    """

    def __init__(self, module: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._module = module
        self._clock = clock
        self._lock = threading.Lock()
        self._ready = False
        self._retry_at = 0.0
        self._wait_s = _FIRST_RETRY_S
        self._note: str | None = None

    @property
    def note(self) -> str | None:
        """Why there is nothing to show, as one sentence; None while all is well."""
        return self._note

    def devices(self, pid: int | None = None) -> list[GpuSample]:
        """A sample of each GPU, MIG slices instead of their parent; [] where there is none."""
        with self._lock:
            return self._read(lambda nvml: self._sample_all(nvml, pid)) or []

    def sample(self, which: int | str = 0, pid: int | None = None) -> GpuSample | None:
        """A sample of one GPU, by index or by UUID; None where it cannot be read."""
        for found in self.devices(pid):
            if which in (found.index, found.uuid):
                return found
        return None

    def processes(self, which: int | str = 0) -> list[tuple[int, int | None]]:
        """(pid, bytes) of the programs that hold memory of a GPU, by index or UUID; bytes None
        where it does not tell. [] where nobody is listed: under WSL, and where it cannot be read.
        """
        with self._lock:
            return self._read(lambda nvml: _listed(nvml, which)) or []

    def driver_version(self) -> str | None:
        """For example "580.65.06"; None without an NVIDIA driver."""
        with self._lock:
            return self._read(lambda nvml: _text(nvml.nvmlSystemGetDriverVersion()))

    def close(self) -> None:
        """Give NVML back. May be called twice; a later call opens it again."""
        with self._lock:
            self._shut()

    def _read(self, ask: Callable[[Any], Any]) -> Any:
        nvml = self._open()
        if nvml is None:
            return None
        try:
            answer = ask(nvml)
        except nvml.NVMLError as error:
            # The driver was reloaded or the GPU fell off the bus: start over, but not at once.
            self._failed(
                f"The NVIDIA driver does not answer ({error}): no readings until it does; "
                "trainings go on. Look at nvidia-smi if it stays so"
            )
            return None
        self._wait_s = _FIRST_RETRY_S
        return answer

    def _open(self) -> Any:
        if self._ready:
            return self._module
        if self._clock() < self._retry_at:
            return None
        try:
            if self._module is None:
                self._module = importlib.import_module("pynvml")
        except ImportError:
            self._failed("GPU readings need the package nvidia-ml-py, which is not installed")
            return None
        try:
            self._module.nvmlInit()
        except self._module.NVMLError as error:
            self._failed(_init_note(self._module, error))
            return None
        self._ready, self._note = True, None
        return self._module

    def _failed(self, note: str) -> None:
        self._shut()
        self._note = note
        self._retry_at = self._clock() + self._wait_s
        self._wait_s = min(_LAST_RETRY_S, self._wait_s * 2)

    def _shut(self) -> None:
        if not self._ready:
            return
        self._ready = False
        # A library that is already gone cannot be shut; there is nothing left to give back.
        with contextlib.suppress(self._module.NVMLError):
            self._module.nvmlShutdown()

    def _sample_all(self, nvml: Any, pid: int | None) -> list[GpuSample]:
        found: list[GpuSample] = []
        self._note = None
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = _value(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                self._note = f"GPU {index} does not answer"
                continue
            slices = _mig_handles(nvml, handle)
            parent = _sample(nvml, handle, index, pid, is_mig=False)
            if slices is None:
                found.append(parent)
                continue
            found.extend(
                _sample(nvml, part, index, pid, is_mig=True, parent=parent) for part in slices
            )
        return found


def _init_note(nvml: Any, error: Exception) -> str:
    if _code(error) in _codes(nvml, "LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED"):
        return "No NVIDIA driver on this machine"
    if _code(error) in _codes(nvml, "LIB_RM_VERSION_MISMATCH"):
        return "The NVIDIA driver was updated since the last start of the machine: restart it"
    return f"The NVIDIA driver does not answer ({error})"


def _value(nvml: Any, ask: Callable[..., Any], *args: Any) -> Any:
    """One reading, or None where the card, the rights or the platform do not give it."""
    try:
        return ask(*args)
    except nvml.NVMLError as error:
        if _code(error) in _codes(nvml, "UNINITIALIZED", "DRIVER_NOT_LOADED"):
            raise
        return None


def _code(error: Exception) -> int | None:
    return getattr(error, "value", None)


def _codes(nvml: Any, *names: str) -> set[int]:
    """NVML's numbers for error names; a name this version does not know is left out."""
    known = (getattr(nvml, f"NVML_ERROR_{name}", None) for name in names)
    return {code for code in known if code is not None}


def _mig_handles(nvml: Any, handle: Any) -> list[Any] | None:
    """Handles of the slices, or None where the GPU is not sliced."""
    mode = _value(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != 1:
        return None
    count = _value(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    slices = (
        _value(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        for number in range(count)
    )
    return [part for part in slices if part is not None]


def _sample(
    nvml: Any,
    handle: Any,
    index: int,
    pid: int | None,
    *,
    is_mig: bool,
    parent: GpuSample | None = None,
) -> GpuSample:
    memory = _value(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _value(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    # A slice has neither sensor nor power meter of its own: its card's are shown.
    if parent is None:
        temperature = _value(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        milliwatts = _value(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
        power = None if milliwatts is None else milliwatts / 1000.0
        capability = _value(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    else:
        temperature, power = parent.temperature_c, parent.power_w
        capability = parent.compute_capability
    return GpuSample(
        index=index,
        uuid=_text(_value(nvml, nvml.nvmlDeviceGetUUID, handle) or f"gpu-{index}"),
        name=_text(_value(nvml, nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"),
        used_bytes=None if memory is None else int(memory.used),
        total_bytes=None if memory is None else int(memory.total),
        process_bytes=None if pid is None else _process_bytes(nvml, handle, pid),
        utilisation_pct=None if rates is None else float(rates.gpu),
        temperature_c=None if temperature is None else float(temperature),
        power_w=power,
        compute_capability=None if capability is None else (int(capability[0]), int(capability[1])),
        is_mig=is_mig,
    )


def _listed(nvml: Any, which: int | str) -> list[tuple[int, int | None]]:
    """Computing and drawing programs; one that does both is listed twice and counts once."""
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = _value(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        uuid = _value(nvml, nvml.nvmlDeviceGetUUID, handle)
        if which != index and (uuid is None or _text(uuid) != which):
            continue
        held: dict[int, int | None] = {}
        for ask in (
            nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):  # fmt: skip
            for entry in _value(nvml, ask, handle) or []:
                size = entry.usedGpuMemory
                held[int(entry.pid)] = max(held.get(int(entry.pid)) or 0, int(size or 0)) or None
        return list(held.items())
    return []


def _process_bytes(nvml: Any, handle: Any, pid: int) -> int | None:
    listed = _value(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    held = [entry.usedGpuMemory for entry in listed if entry.pid == pid]
    known = [int(value) for value in held if value is not None]
    return sum(known) if known else None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
