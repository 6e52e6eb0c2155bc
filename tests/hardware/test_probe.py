"""What the machine can do, with faked GPUs and torch builds: each "no" has its sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from studio.hardware import machine, probe
from studio.hardware.machine import TorchBuild
from studio.hardware.nvml import GpuSample, Nvml
from studio.hardware.probe import MachineProbe

GIB = 2**30
CUDA_13 = TorchBuild("2.13.0", "13.0")
CPU = TorchBuild("2.13.0+cpu", None)


def gpu(total_gib: float = 24.0, capability: tuple[int, int] | None = (8, 9)) -> GpuSample:
    return GpuSample(
        index=0, uuid="GPU-0", name="NVIDIA Test GPU", used_bytes=GIB,
        total_bytes=int(total_gib * GIB), process_bytes=None, utilisation_pct=3.0,
        temperature_c=50.0, power_w=40.0, compute_capability=capability,
    )  # fmt: skip


class FakeNvml(Nvml):
    def __init__(self, gpus: list[GpuSample], driver: str | None = "580.1") -> None:
        super().__init__()
        self.gpus, self.driver = gpus, driver

    @property
    def note(self) -> str | None:
        return None if self.gpus else "No NVIDIA driver on this machine"

    def devices(self, pid: int | None = None) -> list[GpuSample]:
        return self.gpus

    def driver_version(self) -> str | None:
        return self.driver


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    def use(value: TorchBuild | None) -> None:
        monkeypatch.setattr(machine, "torch_build", lambda: value)

    return use


def test_a_gpu_that_fits_is_used(build, tmp_path: Path) -> None:
    build(CUDA_13)
    found = MachineProbe(tmp_path, FakeNvml([gpu()])).capabilities()
    assert found["cuda"] is True
    assert found["bf16"] is True
    assert "cuda" not in found["reasons"]
    assert found["summary"] == "NVIDIA Test GPU, 24 GiB"
    assert found["torch"] == "torch 2.13.0, CUDA 13.0"


@pytest.mark.parametrize(
    ("torch", "gpus", "driver", "sentence"),
    [
        (CPU, [], None, "No NVIDIA driver on this machine: training runs on the CPU"),
        (None, [gpu()], "580.1", "torch is not installed"),
        (CPU, [gpu()], "580.1", "CPU build cannot use the GPU: delete .venv"),
        (CUDA_13, [gpu()], "550.9", "needs NVIDIA driver 580 or newer, this machine has 550.9"),
    ],
)
def test_no_cuda_has_its_sentence(build, tmp_path: Path, torch, gpus, driver, sentence) -> None:
    build(torch)
    found = MachineProbe(tmp_path, FakeNvml(gpus, driver)).capabilities()
    assert found["cuda"] is False
    assert sentence in found["reasons"]["cuda"]
    assert found["proposal"]["values"]["model"]["id"] == "starter"


def test_an_older_gpu_has_no_bf16(build, tmp_path: Path) -> None:
    build(CUDA_13)
    found = MachineProbe(tmp_path, FakeNvml([gpu(capability=(7, 5))])).capabilities()
    assert found["bf16"] is False
    assert "compute capability 7.5" in found["reasons"]["bf16"]


def test_every_capability_that_is_off_has_a_reason(tmp_path: Path) -> None:
    found = MachineProbe(tmp_path).capabilities()
    for name in ("cuda", "mps", "bnb", "bf16"):
        assert found[name] is True or len(found["reasons"][name]) > 20


@pytest.mark.parametrize(
    ("total_gib", "four_bit"), [(23.6, True), (15.6, True), (11.6, True), (7.6, True), (5.8, False)]
)
def test_propose_fits_the_card(total_gib: float, four_bit: bool) -> None:
    proposal = probe.propose([gpu(total_gib)], bnb=True)
    assert proposal["values"]["model"]["id"] != "starter"
    assert proposal["values"]["quantization"]["load_in_4bit"] is four_bit
    assert f"{total_gib:.0f} GiB" in proposal["why"]


def test_propose_without_a_gpu_is_the_starter() -> None:
    proposal = probe.propose([], bnb=True)
    assert proposal["values"]["model"]["id"] == "starter"
    assert "CPU" in proposal["why"]


def test_propose_is_a_valid_config() -> None:
    from studio.core.config_io import build_config

    for gpus in ([], [gpu(5)], [gpu(8)], [gpu(24)]):
        build_config(probe.propose(gpus, bnb=True)["values"])


def test_live_reads_memory_and_disk(tmp_path: Path) -> None:
    live = MachineProbe(tmp_path, FakeNvml([gpu()])).live()
    assert live["gpu"][0]["total_bytes"] == 24 * GIB
    assert live["rss_bytes"] > 2**20
    assert 0 < live["ram_used_bytes"] <= live["ram_total_bytes"]
    assert live["free_disk_bytes"] > 0
    assert live["note"] is None


def test_live_of_a_process_that_is_gone_has_no_rss(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert MachineProbe(tmp_path, FakeNvml([])).live(done.pid)["rss_bytes"] is None


def test_the_probe_imports_no_torch(repo_root: Path) -> None:
    code = (
        "import sys; from studio.hardware.probe import MachineProbe; p = MachineProbe();"
        "p.live(); p.capabilities();"
        "print([m for m in ('torch', 'transformers', 'bitsandbytes') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_proposed_models_stand_in_the_catalogue_and_fit(repo_root: Path) -> None:
    from studio.core.catalogue import load_catalogue

    known = {model.id: model for model in load_catalogue(repo_root / "presets" / "catalogue")}
    for least_gib, model_id, _, _ in probe.PROPOSALS:
        # A card sold as 24 GiB tells 23.6, so the threshold lies a little below its size.
        assert least_gib + 2 >= known[model_id].vram_gib or least_gib < 8
