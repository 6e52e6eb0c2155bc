"""GPU readings against a fake of NVIDIA's library: present, absent, failing, sliced, silent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from studio.hardware.nvml import Nvml

GIB = 2**30


class FakeNvml:
    """Stands in for the module pynvml. `broken` maps a function name to the error it raises."""

    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            self.value = value
            super().__init__(f"code {value}")

    def __init__(self, gpus: int = 1, slices: int = 0) -> None:
        self.gpus = gpus
        self.slices = slices
        self.broken: dict[str, int] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.broken:
                raise self.NVMLError(self.broken[name])
            return getattr(self, f"_{name}", lambda *_: None)(*args)

        return call

    def _nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def _nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, int]:
        return ("gpu", index)

    def _nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        if not self.slices:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: int) -> Any:
        if number >= self.slices:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return ("mig", number)

    def _nvmlDeviceGetName(self, handle: Any) -> str:
        return "NVIDIA Test GPU" + (" MIG 1g" if handle[0] == "mig" else "")

    def _nvmlDeviceGetUUID(self, handle: Any) -> bytes:
        return f"{handle[0].upper()}-{handle[1]}".encode()

    def _nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=24 * GIB, used=3 * GIB, free=21 * GIB)

    def _nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=87, memory=12)

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return 61

    def _nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 250_500

    def _nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return (8, 9)

    def _nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        return [
            SimpleNamespace(pid=10, usedGpuMemory=1 * GIB),
            SimpleNamespace(pid=11, usedGpuMemory=None),
        ]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_devices_reads_every_value() -> None:
    nvml = Nvml(FakeNvml())
    [sample] = nvml.devices(pid=10)
    assert sample.to_dict() == {
        "index": 0,
        "uuid": "GPU-0",
        "name": "NVIDIA Test GPU",
        "used_bytes": 3 * GIB,
        "total_bytes": 24 * GIB,
        "process_bytes": 1 * GIB,
        "utilisation_pct": 87.0,
        "temperature_c": 61.0,
        "power_w": 250.5,
        "compute_capability": (8, 9),
        "is_mig": False,
    }
    assert nvml.note is None
    assert nvml.driver_version() == "580.65.06"


@pytest.mark.parametrize("pid", [11, 12], ids=["not told", "not listed"])
def test_process_bytes_are_none_where_the_system_does_not_tell(pid: int) -> None:
    [sample] = Nvml(FakeNvml()).devices(pid=pid)
    assert sample.process_bytes is None


def test_sample_finds_by_index_and_by_uuid() -> None:
    nvml = Nvml(FakeNvml(gpus=2))
    by_index, by_uuid = nvml.sample(1), nvml.sample("GPU-1")
    assert by_index is not None
    assert by_index == by_uuid
    assert nvml.sample("GPU-7") is None


def test_values_a_card_does_not_tell_are_none() -> None:
    fake = FakeNvml()
    silent = (
        "MemoryInfo",
        "UtilizationRates",
        "Temperature",
        "PowerUsage",
        "ComputeRunningProcesses",
    )
    fake.broken = {f"nvmlDeviceGet{name}": fake.NVML_ERROR_NOT_SUPPORTED for name in silent}
    [sample] = Nvml(fake).devices(pid=10)
    assert sample.name == "NVIDIA Test GPU"
    assert (sample.used_bytes, sample.total_bytes, sample.process_bytes) == (None, None, None)
    assert (sample.utilisation_pct, sample.temperature_c, sample.power_w) == (None, None, None)


def test_slices_stand_for_their_gpu() -> None:
    samples = Nvml(FakeNvml(slices=2)).devices()
    assert [sample.uuid for sample in samples] == ["MIG-0", "MIG-1"]
    assert all(sample.is_mig and sample.temperature_c == 61.0 for sample in samples)


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    fake = FakeNvml(gpus=2)
    real = fake._nvmlDeviceGetHandleByIndex

    def lose_first(index: int) -> Any:
        if index == 0:
            raise fake.NVMLError(fake.NVML_ERROR_GPU_IS_LOST)
        return real(index)

    fake._nvmlDeviceGetHandleByIndex = lose_first  # type: ignore[method-assign]
    nvml = Nvml(fake)
    assert [sample.index for sample in nvml.devices()] == [1]
    assert nvml.note == "GPU 0 does not answer"


@pytest.mark.parametrize(
    ("code", "note"),
    [
        (FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND, "No NVIDIA driver"),
        (FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED, "No NVIDIA driver"),
        (FakeNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart it"),
        (999, "does not answer"),
    ],
)
def test_no_driver_is_a_note_and_no_error(code: int, note: str) -> None:
    fake = FakeNvml()
    fake.broken["nvmlInit"] = code
    nvml = Nvml(fake)
    assert nvml.devices() == []
    assert nvml.driver_version() is None
    assert note in (nvml.note or "")


def test_failures_are_retried_with_growing_pauses() -> None:
    fake, clock = FakeNvml(), Clock()
    fake.broken["nvmlInit"] = 999
    nvml = Nvml(fake, clock)
    tries = []
    for _ in range(1000):
        nvml.devices()
        tries.append(fake.calls.count("nvmlInit"))
        clock.now_s += 1.0
    assert tries[0] == 1
    assert tries[1] == 1, "not again within the pause"
    assert tries[2] == 2
    assert 6 < tries[-1] < 20, "seldom, but for ever"


def test_reading_goes_on_after_the_driver_was_reloaded() -> None:
    fake, clock = FakeNvml(), Clock()
    nvml = Nvml(fake, clock)
    assert len(nvml.devices()) == 1
    fake.broken["nvmlDeviceGetUtilizationRates"] = fake.NVML_ERROR_UNINITIALIZED
    assert nvml.devices() == []
    assert "does not answer" in (nvml.note or "")
    fake.broken.clear()
    assert nvml.devices() == [], "still in the pause"
    clock.now_s += 5.0
    assert len(nvml.devices()) == 1
    assert nvml.note is None
    assert fake.calls.count("nvmlInit") == 2


def test_close_may_be_called_twice_and_reading_opens_again() -> None:
    fake = FakeNvml()
    nvml = Nvml(fake)
    nvml.devices()
    nvml.close()
    nvml.close()
    assert fake.calls.count("nvmlShutdown") == 1
    assert len(nvml.devices()) == 1


def test_a_missing_package_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("studio.hardware.nvml.importlib.import_module", refuse)
    nvml = Nvml()
    assert nvml.devices() == []
    assert "nvidia-ml-py" in (nvml.note or "")


def test_the_real_library_never_raises() -> None:
    nvml = Nvml()
    try:
        found = nvml.devices()
        assert found or nvml.note
    finally:
        nvml.close()


def test_programs_on_a_card_are_listed_once_each() -> None:
    fake = FakeNvml(gpus=2)
    silent = SimpleNamespace(pid=8, usedGpuMemory=None)
    compute = [SimpleNamespace(pid=7, usedGpuMemory=GIB), silent]
    drawing = [SimpleNamespace(pid=7, usedGpuMemory=GIB // 2)]
    fake._nvmlDeviceGetComputeRunningProcesses = lambda handle: compute if handle[1] else []
    fake._nvmlDeviceGetGraphicsRunningProcesses = lambda handle: drawing if handle[1] else []
    reader = Nvml(fake)
    assert reader.processes(1) == [(7, GIB), (8, None)]
    assert reader.processes("GPU-1") == [(7, GIB), (8, None)]
    assert reader.processes(0) == reader.processes("GPU-9") == []
    fake.broken["nvmlDeviceGetComputeRunningProcesses"] = fake.NVML_ERROR_NOT_SUPPORTED
    assert reader.processes(1) == [(7, GIB // 2)]
    fake.broken["nvmlDeviceGetCount"] = fake.NVML_ERROR_GPU_IS_LOST
    assert reader.processes(1) == []
