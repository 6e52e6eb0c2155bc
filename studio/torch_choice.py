"""Which build of torch a machine needs, decided before any package is installed.

Owns the rule and asking PyTorch's own package index. Standard library only, like
`studio.bootstrap`, which uses it. Oldest drivers: 580 for CUDA 13 (the default Linux build), 570
for CUDA 12.8, 525 for any CUDA 12. The default Windows build is for CPUs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INDEX = "https://download.pytorch.org/whl"
INDEX_TIMEOUT_S = 4.0
BUILD_VARIABLE = "LORA_STUDIO_TORCH"  # plain, cpu, cu126, ...: overrides the choice of the build


@dataclass(frozen=True)
class TorchChoice:
    """Builds to try in this order ("plain" is the package index's own), and why."""

    builds: tuple[str, ...]
    reason: str


def choose_torch(system: str, driver: int | None, override: str | None = None) -> TorchChoice:
    """Pick the torch build for a machine.

    Args:
        system: "Linux", "Windows" or "Darwin", as platform.system() says.
        driver: major version of the NVIDIA driver (580), None without an NVIDIA GPU.
        override: the user's wish, see BUILD_VARIABLE.
    """
    if override:
        return TorchChoice((override,), f"{BUILD_VARIABLE}={override} is set")
    if system == "Darwin":
        return TorchChoice(("plain",), "macOS has one build")
    if driver is None:
        if system == "Windows":
            return TorchChoice(("plain",), "no NVIDIA GPU found, and the plain build is for CPUs")
        return TorchChoice(
            ("cpu", "plain"), "no NVIDIA GPU found, and the CPU build is 3 GB smaller"
        )
    if driver >= 580:
        if system == "Windows":
            return TorchChoice(
                ("cu130", "cu132", "cu128", "cu126", "plain"),
                f"NVIDIA driver {driver}; the plain Windows build cannot use a GPU",
            )
        return TorchChoice(("plain",), f"NVIDIA driver {driver} runs the default build")
    if driver >= 570:
        builds: tuple[str, ...] = ("cu128", "cu126", "plain")
    elif driver >= 525:
        builds = ("cu126", "cu128", "plain")
    else:
        return TorchChoice(
            ("cpu", "plain"), f"NVIDIA driver {driver} is too old for any build (525 or newer)"
        )
    return TorchChoice(builds, f"NVIDIA driver {driver} is older than the default build's 580")


def torch_arguments(
    choice: TorchChoice, version: str, is_offered: Callable[[str, str], bool]
) -> tuple[list[str], str]:
    """pip's arguments for the first build on offer, and its name; the plain pin as last resort."""
    for build in choice.builds:
        if build == "plain":
            break
        if is_offered(build, version):
            wanted = f"torch=={version}+{build}"
            return [wanted, "--extra-index-url", f"{INDEX}/{build}"], build
    return [f"torch=={version}"], "plain"


def is_offered(build: str, version: str) -> bool:
    """Whether PyTorch's own index answers and lists this build of this version."""
    try:
        with urllib.request.urlopen(f"{INDEX}/{build}/torch/", timeout=INDEX_TIMEOUT_S) as answer:
            text = answer.read().decode("utf-8", "replace")
    except (OSError, urllib.error.URLError):
        return False
    return f"torch-{version}%2B{build}-" in text or f"torch-{version}+{build}-" in text


def driver_major() -> int | None:
    """Major version of the NVIDIA driver, from nvidia-smi or /proc; None without one."""
    places = (
        shutil.which("nvidia-smi"),
        "/usr/lib/wsl/lib/nvidia-smi",
        r"C:\Windows\System32\nvidia-smi.exe",
    )
    for program in places:
        if not program or not os.path.exists(program):
            continue
        try:
            done = subprocess.run(
                [program, "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=15, check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        match = re.match(r"\s*(\d+)\.", done.stdout)
        if done.returncode == 0 and match:
            return int(match.group(1))
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"Module\s.*?(\d{3})\.\d+", text)
    return int(match.group(1)) if match else None
