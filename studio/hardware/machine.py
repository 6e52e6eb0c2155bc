"""Facts about this machine that do not change while we run: torch build, memory, CPU, mounts.

Owns reading them from files and package metadata. It imports neither torch nor any other heavy
package: the installed torch's own `version.py` is read as text. Knows nothing of runs.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

# Oldest driver for a CUDA major version (NVIDIA, "CUDA compatibility", minor versions).
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SLOW_FILE_SYSTEMS = ("9p", "drvfs", "v9fs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs")


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch: version "2.13.0+cpu", CUDA "13.0" or None for a CPU build."""

    version: str
    cuda: str | None

    @property
    def label(self) -> str:
        """For example "torch 2.13.0, CUDA 13.0" or "torch 2.13.0, CPU build"."""
        number = self.version.partition("+")[0]
        return f"torch {number}, " + (f"CUDA {self.cuda}" if self.cuda else "CPU build")

    @property
    def oldest_driver(self) -> int | None:
        """Major version of the oldest NVIDIA driver this build runs on."""
        if self.cuda is None:
            return None
        return OLDEST_DRIVER.get(int(self.cuda.partition(".")[0]))


@functools.cache
def torch_build() -> TorchBuild | None:
    """The installed torch, without importing it; None where there is none."""
    try:
        version = importlib.metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    text = ""
    for folder in (spec.submodule_search_locations or []) if spec else []:
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
    return parse_torch_build(version, text)


def parse_torch_build(version: str, version_py: str) -> TorchBuild:
    """`version_py` is the text of torch/version.py; without it the local tag (+cu126) decides."""
    written = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", version_py, re.MULTILINE)
    full = written.group(1) if written else version
    cuda = re.search(r"^cuda[^=\n]*=\s*['\"](\d+(?:\.\d+)*)", version_py, re.MULTILINE)
    if cuda:
        return TorchBuild(full, cuda.group(1))
    tag = re.search(r"\+cu(\d+)(\d)$", version)
    if tag and not version_py:
        return TorchBuild(full, f"{tag.group(1)}.{tag.group(2)}")
    return TorchBuild(full, None)


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_module(name: str) -> bool:
    """Whether a top-level module could be imported; does not import it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return False


@dataclass(frozen=True)
class MemoryGroup:
    """A control group that limits memory, and the files that tell what it uses."""

    limit_bytes: int
    folder: Path
    usage_file: str

    @property
    def used_bytes(self) -> int:
        """Without the file cache, which the kernel gives back."""
        cache = _stat_value(self.folder / "memory.stat", "inactive_file")
        return max(0, (_read_int(self.folder / self.usage_file) or 0) - cache)


def ram_bytes(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> tuple[int, int]:
    """(used, total) bytes of memory this process may use: the container's limit counts."""
    machine = psutil.virtual_memory()
    group = memory_group(root, membership)
    if group is None:
        return machine.total - machine.available, machine.total
    return group.used_bytes, group.limit_bytes


def memory_limit(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """The least limit of memory of this process's control group and those around it; None without
    one."""
    group = memory_group(root, membership)
    return None if group is None else group.limit_bytes


def memory_group(root: Path, membership: Path) -> MemoryGroup | None:
    """The one with the least limit, this process's own or one around it; None where there is none.
    Both versions of control groups."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found: list[MemoryGroup] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if ".." in group:
            continue
        if number == "0" and not controllers:
            found += _groups(root, group, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            found += _groups(root / "memory", group, *names)
    most = psutil.virtual_memory().total  # version 1 says 2**63 where there is none
    limited = [group for group in found if group.limit_bytes < most]
    return min(limited, key=lambda group: group.limit_bytes, default=None)


def _groups(root: Path, group: str, limit_file: str, usage_file: str) -> list[MemoryGroup]:
    """Those with a limit, from the inside out."""
    folder, found = root / group.strip("/"), []
    while folder != root.parent:
        limit = _read_int(folder / limit_file)
        if limit is not None:
            found.append(MemoryGroup(limit, folder, usage_file))
        folder = folder.parent
    return found


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _stat_value(path: Path, key: str) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        return 0  # older kernels have no such file: nothing to take off
    return 0


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets the CPU tells of; empty where the system does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(line.group(1).split()) if line else frozenset()


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (else it is emulated, and slower)."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def is_wsl(release: str | None = None) -> bool:
    """Whether this Linux runs inside Windows."""
    text = platform.release() if release is None else release
    return sys.platform == "linux" and "microsoft" in text.lower()


def file_system(path: Path, mounts: list[tuple[str, str]] | None = None) -> str | None:
    """Type of the file system that holds path ("ext4", "9p", ...), None where unknown.

    Args:
        mounts: (mount point, type) pairs; read from the system by default.
    """
    if mounts is None:
        mounts = [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    target = path.resolve()
    best: tuple[int, str] | None = None
    for point, kind in mounts:
        folder = Path(point)
        inside = folder == target or folder in target.parents
        if inside and (best is None or len(folder.parts) >= best[0]):
            best = (len(folder.parts), kind)
    return best[1].lower() if best else None


def is_slow(kind: str | None) -> bool:
    """Whether a file system of this type is a network or Windows share."""
    return kind is not None and kind.lower() in SLOW_FILE_SYSTEMS
