"""How many CPU threads a process of ours may use, and the environment that makes it so.

Owns the rule and the variables; knows nothing of models, runs or torch. The figures behind the
rule are in docs/LOG.md: an OpenMP team that waits spinning beside another busy process loses its
time slice at every barrier, and a small model meets a barrier every few microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# Below this size one matrix product is shorter than waking a second thread on a busy machine.
SMALL_MODEL_PARAMS = 20_000_000
MAX_THREADS = 16  # beyond it memory bandwidth, not arithmetic, limits a consumer CPU


def cpu_count() -> int:
    """Cores this process may really use: affinity and the container's quota counted in."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = _cgroup_cpu_quota()
    return max(1, min(cores, int(quota) if quota and quota >= 1 else cores))


def _cgroup_cpu_quota(root: str = "/sys/fs/cgroup") -> float | None:
    """CPU quota of the container in cores (cgroup v2, then v1), None where unlimited."""
    try:
        with open(f"{root}/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # no cgroup v2 here: ask v1
    try:
        with open(f"{root}/cpu/cpu.cfs_quota_us", encoding="ascii") as file:
            quota_us = int(file.read())
        with open(f"{root}/cpu/cpu.cfs_period_us", encoding="ascii") as file:
            return None if quota_us <= 0 else quota_us / int(file.read())
    except (OSError, ValueError):
        return None


def load_average() -> float:
    """Runnable processes over the last minute; 0.0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def choose_threads(params: int, cores: int, load: float) -> tuple[int, str]:
    """Threads for one process that computes with a model of `params` parameters on the CPU.

    Args:
        params: parameters of the model; 0 if unknown (treated as small).
        cores: cores this process may use (`cpu_count`).
        load: runnable processes over the last minute (`load_average`).

    Returns:
        The count and one sentence that says why.
    """
    cores = max(1, cores)
    if cores == 1:
        return 1, "1 thread: this process may use one core"
    if params < SMALL_MODEL_PARAMS:
        # Not even on an idle machine: sums over two threads differ in the last bit, and whether
        # the machine was idle must not decide whether the same seed gives the same losses.
        return 1, f"1 thread: a model of {params / 1e6:.0f} M parameters gains little from more"
    busy = max(0, min(cores - 1, round(load)))
    count = max(1, min(MAX_THREADS, cores - busy))
    reason = f"{count} of {cores} cores"
    if busy:
        reason += f"; {busy} left to what else runs (load {load:.1f})"
    return count, reason


def env_for(count: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a child process with `count` threads whose idle threads sleep, not spin.

    Must be set before the child starts: OpenMP reads it once. `base` (for example os.environ) is
    copied and overridden.
    """
    text = str(max(1, count))
    return {
        **(base or {}),
        "OMP_NUM_THREADS": text,
        "MKL_NUM_THREADS": text,
        "OPENBLAS_NUM_THREADS": text,
        "NUMEXPR_NUM_THREADS": text,
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
