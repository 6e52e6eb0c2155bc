"""Cards that are silent, sliced, gone or many, held against NVIDIA's library as it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import StudioError
from studio.hardware.nvml import Nvml
from studio.hardware.probe import MachineProbe
from studio.services.memory import MemoryService
from studio.services.models import ModelStore
from tests.conftest import ROOT
from tests.hardware.test_nvml import GIB, Clock, FakeNvml
from tests.services.fake_counter import FakeCounter, FakeMachine

MODEL = "Qwen/Qwen3-8B"


class Machine(FakeMachine):
    """Abilities of a machine with CUDA; readings through the real code, from a library we break."""

    def __init__(self, workspace: Path, library: FakeNvml) -> None:
        super().__init__()
        self.clock = Clock()
        self.probe = MachineProbe(workspace, nvml=Nvml(library, self.clock))

    def live(self, pid: int | None = None) -> dict[str, Any]:
        return self.probe._read_live(0)  # afresh: the probe keeps a reading for half a second


class Library(FakeNvml):
    """Each card has its own free memory: 21 GiB, 11 GiB, 1 GiB."""

    def _nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        info = super()._nvmlDeviceGetMemoryInfo(handle)
        info.used += 10 * GIB * handle[1]
        return info


def service(workspace: Path, library: FakeNvml) -> tuple[MemoryService, Machine]:
    machine = Machine(workspace, library)
    models = ModelStore(workspace, ROOT / "presets")
    return MemoryService(workspace, models, machine, child=FakeCounter()), machine  # type: ignore[arg-type]


def on(device: str) -> RunConfig:
    return build_config({"runtime": {"device": device}})


def test_each_of_several_cards_has_its_own_answer(workspace: Path) -> None:
    memory, _ = service(workspace, Library(gpus=3))
    free = [memory.estimate(MODEL, on(f"cuda:{n}")).device.free_bytes for n in range(3)]
    assert free == [21 * GIB, 11 * GIB, 1 * GIB]
    fits = [memory.estimate(MODEL, on(f"cuda:{n}")).fits for n in range(3)]
    assert fits == [True, False, False]


def test_a_card_that_is_not_there_is_unknown_and_the_others_are_named(workspace: Path) -> None:
    memory, _ = service(workspace, Library(gpus=2))
    found = memory.estimate(MODEL, on("cuda:5"))
    assert found.fits is None and found.estimate.expected > 0
    assert "there is cuda:0, cuda:1" in found.warnings[0]
    with pytest.raises(StudioError, match="free memory of this device is unknown"):
        memory.propose(MODEL, on("cuda:5"))


@pytest.mark.parametrize("code", [FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND, 999])
def test_without_the_library_the_items_stay_and_the_rest_is_unknown(
    workspace: Path, code: int
) -> None:
    library = Library()
    library.broken["nvmlInit"] = code
    memory, _ = service(workspace, library)
    found = memory.estimate(MODEL, RunConfig())
    assert found.fits is None and "the memory of this device is unknown" in found.sentence
    assert found.warnings[0].endswith(": its free memory is unknown")
    assert {"weights", "adapter", "activations"} <= {item.name for item in found.estimate.items}


def test_a_library_that_fails_in_between_comes_back(workspace: Path) -> None:
    library = Library()
    memory, machine = service(workspace, library)
    before = memory.estimate(MODEL, RunConfig())
    library.broken = {
        "nvmlDeviceGetCount": FakeNvml.NVML_ERROR_UNINITIALIZED,
        "nvmlInit": FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED,
    }
    failed = memory.estimate(MODEL, RunConfig())
    assert failed.fits is None and failed.estimate.items == before.estimate.items
    assert "unknown" in failed.warnings[0] and "Traceback" not in failed.warnings[0]
    library.broken = {}
    machine.clock.now_s += 3600
    assert memory.estimate(MODEL, RunConfig()) == before


def test_a_card_that_falls_off_the_bus_leaves_the_other(workspace: Path) -> None:
    library = Library(gpus=2)
    library.broken["nvmlDeviceGetMemoryInfo"] = FakeNvml.NVML_ERROR_GPU_IS_LOST
    memory, _ = service(workspace, library)
    found = memory.estimate(MODEL, RunConfig())
    assert found.fits is None and found.device.free_bytes is None and found.warnings


def test_slices_are_held_against_the_fullest(workspace: Path) -> None:
    memory, _ = service(workspace, Library(slices=3))
    found = memory.estimate(MODEL, RunConfig())
    assert found.device.free_bytes == 1 * GIB and found.fits is False
    assert "MIG" in found.warnings[0]
    assert "MIG 1g" in found.device.name


@pytest.mark.parametrize(
    ("total", "used"), [(0, 0), (8 * GIB, 9 * GIB), (24 * GIB, None), (None, 3)]
)
def test_readings_that_make_no_sense(workspace: Path, total: Any, used: Any) -> None:
    machine = FakeMachine(total_bytes=total, used_bytes=used)
    models = ModelStore(workspace, ROOT / "presets")
    memory = MemoryService(workspace, models, machine, child=FakeCounter())
    found = memory.estimate(MODEL, RunConfig())
    assert found.fits in (False, None)
    free = found.device.free_bytes
    assert free is None or free >= 0
    if free is None:
        assert "does not tell" in found.warnings[0]
