"""Facts read from text: torch's build, container limits, mounts, WSL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.hardware import machine

CUDA_PY = "__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '13.0'\n"
CPU_PY = "__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("version", "text", "label", "driver"),
    [
        ("2.13.0", CUDA_PY, "torch 2.13.0, CUDA 13.0", 580),
        ("2.13.0+cpu", CPU_PY, "torch 2.13.0, CPU build", None),
        ("2.13.0+cu126", "", "torch 2.13.0, CUDA 12.6", 525),
        ("2.13.0", "", "torch 2.13.0, CPU build", None),
    ],
)
def test_parse_torch_build(version: str, text: str, label: str, driver: int | None) -> None:
    build = machine.parse_torch_build(version, text)
    assert build.label == label
    assert build.oldest_driver == driver


def test_torch_build_is_that_of_the_installed_torch() -> None:
    import torch

    machine.torch_build.cache_clear()
    build = machine.torch_build()
    assert build is not None
    assert build.version == torch.__version__
    assert build.cuda == torch.version.cuda


def test_ram_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=16 * 2**30, available=10 * 2**30)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    membership = tmp_path / "membership"
    membership.write_text("0::/user.slice/job\n")
    inner = tmp_path / "user.slice" / "job"
    inner.mkdir(parents=True)
    assert machine.ram_bytes(tmp_path, membership) == (6 * 2**30, 16 * 2**30)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.ram_bytes(tmp_path, membership) == (6 * 2**30, 16 * 2**30)
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**30}\n")
    assert machine.ram_bytes(tmp_path, membership) == (2 * 2**30, 4 * 2**30)
    (inner / "memory.max").write_text(f"{3 * 2**30}\n")  # a group of its own counts
    (inner / "memory.current").write_text(f"{2**29}\n")
    assert machine.ram_bytes(tmp_path, membership) == (2**29, 3 * 2**30)
    assert machine.ram_bytes(tmp_path, tmp_path / "absent") == (6 * 2**30, 16 * 2**30)


def test_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "9p"), (str(tmp_path / "other"), "xfs")]
    assert machine.file_system(tmp_path / "a" / "b", mounts) == "9p"
    assert machine.file_system(Path("/"), mounts) == "ext4"
    assert machine.is_slow("9p")
    assert machine.is_slow("NFS")
    assert not machine.is_slow("ext4")
    assert not machine.is_slow(None)


def test_is_wsl_by_kernel_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert machine.is_wsl("5.15.167.4-microsoft-standard-WSL2")
    assert not machine.is_wsl("6.1.0-18-amd64")


def test_package_version() -> None:
    assert machine.package_version("pytest")
    assert machine.package_version("no-such-package-here") is None
    assert machine.has_module("json")
    assert not machine.has_module("no_such_module_here")


def test_memory_limit_is_the_least_of_the_groups_around(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    inner = root / "user.slice" / "job"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{2**28}\n")
    (root / "memory.max").write_text(f"{2**29}\n")
    membership.write_text("0::/user.slice/job\n")
    assert machine.memory_limit(root, membership) == 2**28
    membership.write_text("0::/../../etc\n")
    assert machine.memory_limit(root, membership) is None
    old = root / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text(str(2**27))
    (old.parent / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    membership.write_text("5:cpu,memory:/job\n1:name=systemd:/x\n")
    assert machine.memory_limit(root, membership) == 2**27
    assert machine.memory_limit(root, tmp_path / "absent") is None
