"""What this machine can do, why not, and what to do about it: one list of checks.

Owns the sentences of `python -m studio doctor` and of the chip in the page's header. Questions to
torch are answered by a child process; this one stays light. Knows nothing of runs.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studio.hardware import machine
from studio.hardware.platforms import free_bytes
from studio.hardware.probe import GIB, MachineProbe
from studio.hardware.threads import choose_threads, load_average

OK, WARN, OFF = "ok", "warn", "off"
SELF_CHECK_TIMEOUT_S = 180.0
LEAST_RAM_BYTES = 4 * GIB
LEAST_DISK_BYTES = 5 * GIB
_MARK = {OK: "ok  ", WARN: "warn", OFF: "off "}


@dataclass(frozen=True)
class Check:
    """One line of the report. `off`: a feature this machine lacks; `warn`: something to mend."""

    name: str
    status: str
    text: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def report(
    workspace: Path,
    *,
    probe: MachineProbe | None = None,
    pins: Mapping[str, str] | None = None,
    deep: bool = True,
) -> list[Check]:
    """All checks, in the order they are shown.

    Args:
        probe: stands in for the machine in tests.
        pins: package name -> version that the studio was tested with; None leaves this check out.
        deep: also ask torch, in a child process that takes about 5 s.
    """
    found = (probe or MachineProbe(workspace)).capabilities()
    answers = ask_torch() if deep else None
    return [
        check_python(),
        *([check_packages(pins)] if pins is not None else []),
        check_torch(found, answers),
        *check_gpus(found),
        check_bf16(found),
        check_four_bit(found, answers),
        check_paged(found),
        check_cpu(found),
        check_ram(found["ram_total_bytes"]),
        check_disk(workspace),
        check_workspace(workspace),
        check_wsl(),
    ]


def render(checks: list[Check]) -> str:
    """The report as plain text."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{_MARK[check.status]}  {check.name:<{width}}  {check.text}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return "\n".join(lines)


def ask_torch() -> dict[str, Any]:
    """What `studio.backend.selfcheck` prints; {"problem": sentence} where it cannot run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studio.backend.selfcheck"],
            cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=SELF_CHECK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"torch did not answer within {SELF_CHECK_TIMEOUT_S:.0f} s"}
    except OSError as error:
        return {"problem": f"the check could not be started ({error})"}
    if done.returncode == 0:
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {"problem": f"the check printed something else: {done.stdout[-100:]!r}"}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"problem": last[:300]}


def check_python() -> Check:
    """The interpreter."""
    inside = sys.prefix != sys.base_prefix
    where = f"virtual environment {sys.prefix}" if inside else sys.prefix
    return Check("Python", OK, f"{platform.python_version()}, {where}")


def check_packages(pins: Mapping[str, str]) -> Check:
    """Installed versions against the pins."""
    missing, other = [], []
    for name, wanted in pins.items():
        have = machine.package_version(name)
        if have is None:
            missing.append(name)
        elif have.partition("+")[0] != wanted:
            other.append(f"{name} {have} (tested: {wanted})")
    if missing or other:
        text = "; ".join(([f"missing: {', '.join(missing)}"] if missing else []) + other)
        return Check("Packages", WARN, text, "Delete .venv and run python3 app.py")
    return Check("Packages", OK, f"all {len(pins)} pinned packages, in the tested versions")


def check_torch(found: Mapping[str, Any], answers: Mapping[str, Any] | None) -> Check:
    """The torch build against the driver, and whether torch agrees."""
    if found["torch"] is None:
        return Check("torch", WARN, "not installed", "Run python3 app.py")
    text = found["torch"]
    if answers and "problem" in answers:
        return Check("torch", WARN, f"{text} does not work: {answers['problem']}", _REINSTALL)
    if found["gpus"] and not found["cuda"]:
        return Check("torch", WARN, found["reasons"]["cuda"], _REINSTALL)
    if answers and found["cuda"] and not answers["cuda"]:
        return Check(
            "torch", WARN, f"{text}: the driver shows a GPU and torch does not see it",
            "Check CUDA_VISIBLE_DEVICES, then restart the machine",
        )  # fmt: skip
    driver = f", NVIDIA driver {found['driver']}" if found["driver"] else ""
    return Check("torch", OK, text + driver)


_REINSTALL = "Delete .venv and run python3 app.py: it picks the build for this machine"


def check_gpus(found: Mapping[str, Any]) -> list[Check]:
    """One line a GPU, or one that says there is none."""
    if not found["gpus"]:
        if found["mps"]:
            return [Check("GPU", OK, "Apple GPU (mps)")]
        return [Check("GPU", OFF, found["reasons"]["cuda"])]
    lines = []
    for gpu in found["gpus"]:
        total, used = gpu["total_bytes"], gpu["used_bytes"]
        memory = f", {total / GIB:.1f} GiB" if total else ", memory size not told"
        if total and used is not None:
            memory += f" ({(total - used) / GIB:.1f} GiB free)"
        capability = gpu["compute_capability"]
        level = f", compute capability {capability[0]}.{capability[1]}" if capability else ""
        lines.append(Check(f"GPU {gpu['index']}", OK, f"{gpu['name']}{memory}{level}"))
    return lines


def check_bf16(found: Mapping[str, Any]) -> Check:
    """Whether bfloat16 is native."""
    if found["bf16"]:
        return Check("bfloat16", OK, "native")
    return Check("bfloat16", OFF, found["reasons"]["bf16"])


def check_four_bit(found: Mapping[str, Any], answers: Mapping[str, Any] | None) -> Check:
    """Whether a 4-bit layer trains."""
    if not found["bnb"]:
        return Check("4-bit (QLoRA)", OFF, found["reasons"]["bnb"], "Run python3 app.py")
    version = machine.package_version("bitsandbytes")
    if answers is None or "problem" in answers:
        return Check("4-bit (QLoRA)", OK, f"bitsandbytes {version} is installed")
    where = {"cuda": "on the GPU", "cpu": "on the CPU"}[answers["four_bit_device"]]
    if answers["four_bit_problem"]:
        return Check(
            "4-bit (QLoRA)", OFF,
            f"bitsandbytes {version} fails {where}: {answers['four_bit_problem']}",
            "Train with LoRA instead, or reinstall as above",
        )  # fmt: skip
    return Check("4-bit (QLoRA)", OK, f"bitsandbytes {version}, an NF4 layer trained {where}")


def check_paged(found: Mapping[str, Any]) -> Check:
    """Whether paged optimizers work."""
    if found["cuda"]:
        return Check("Paged optimizers", OK, "available")
    return Check("Paged optimizers", OFF, "they need CUDA; the others work")


def check_cpu(found: Mapping[str, Any]) -> Check:
    """Cores and the thread count a small model would get now."""
    load = load_average()
    _, why = choose_threads(10_000_000, found["cores"], load)
    cores = f"{found['cores']} core{'s' if found['cores'] != 1 else ''}"
    return Check("CPU", OK, f"{cores}, {found['platform']}; starter model: {why}")


def check_ram(total_bytes: int) -> Check:
    """Memory that this process may use."""
    text = f"{total_bytes / GIB:.1f} GiB"
    if total_bytes < LEAST_RAM_BYTES:
        return Check("RAM", WARN, f"{text}: little for the trainer and the page together",
                     "Close other programs; the starter model needs about 2 GiB")  # fmt: skip
    return Check("RAM", OK, text)


def check_disk(workspace: Path) -> Check:
    """Free space where runs are written."""
    free = free_bytes(workspace)
    if free is None:
        return Check("Disk", WARN, f"free space of {workspace} cannot be read")
    text = f"{free / GIB:.1f} GiB free for {workspace}"
    if free < LEAST_DISK_BYTES:
        return Check("Disk", WARN, text, "Free some space or choose another --workspace")
    return Check("Disk", OK, text)


def check_workspace(workspace: Path) -> Check:
    """Writable, and on a disk of this machine."""
    nearest = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    if not nearest.is_dir():
        return Check("Workspace", WARN, f"{nearest} is not a folder", "Choose another --workspace")
    if not os.access(nearest, os.W_OK):
        return Check("Workspace", WARN, f"{nearest} is not writable", "Choose another --workspace")
    kind = machine.file_system(nearest)
    if machine.is_slow(kind):
        return Check(
            "Workspace", WARN,
            f"{workspace} lies on {kind}, a network or Windows share: locks and saving are slow "
            "and less safe there",
            "Choose a --workspace on a disk of this machine (under WSL: in your Linux home)",
        )  # fmt: skip
    return Check("Workspace", OK, f"{workspace} ({kind or 'file system not told'})")


def check_wsl() -> Check:
    """Whether we run inside Windows, and what that means."""
    if machine.is_wsl():
        return Check("System", OK, "WSL: the memory of one process on the GPU is not told there")
    return Check("System", OK, f"{platform.system()} {platform.release()}")
