"""Made-up memory records of runs whose constants are known."""

from __future__ import annotations

from typing import Any

from studio.core.memory import CPU, CUDA, GIB, Constants, constants_of
from studio.core.run_memory import EVALUATION, HOST, LOADING, SAMPLING, SAVING, TRAINING

CARD = "NVIDIA GeForce RTX 4090"
SIZES = ((2 * GIB, GIB), (3 * GIB, 4 * GIB), (5 * GIB, 2 * GIB), (GIB, 6 * GIB))


def item(name: str, size: int, phase: str = "always") -> dict[str, Any]:
    return {"name": name, "title": name.capitalize(), "bytes": size, "phase": phase, "why": "",
            "may_move": False}  # fmt: skip


def estimate(weights: int, passing: int, constants: Constants) -> dict[str, Any]:
    """`Estimate.to_dict()` of a model of `weights` bytes whose step takes `passing`."""
    gaps = round(constants.fragmentation * passing)
    items = [
        item("weights", weights), item("optimizer", 1000), item("activations", passing, "layers"),
        item("context", constants.context_bytes), item("fragmentation", gaps),
    ]  # fmt: skip
    expected = sum(part["bytes"] for part in items)
    return {
        "items": items,
        "total": {"low": expected - 100, "expected": expected, "high": expected + 100},
        "phases": {"layers": passing, "head": passing // 2, "update": 0,
                   "evaluation": passing // 4, "sampling": 10_000_000},
        "unknown": [],
    }  # fmt: skip


def record(
    kind: str, truth: Constants, weights: int, passing: int, *, lists_processes: bool = True
) -> dict[str, Any]:
    """What a run on that device leaves, if `truth` were its constants."""
    base = constants_of(kind)
    held, on_cuda = weights + 1000, kind.startswith("cuda")
    measured: dict[str, Any] = {}
    for phase, part in ((LOADING, 0.0), (TRAINING, 1.0), (EVALUATION, 0.25), (SAMPLING, 0.0),
                        (SAVING, 0.0)):  # fmt: skip
        allocated = held + round(part * passing)
        reserved = allocated + round(truth.fragmentation * part * passing)
        whole = reserved + truth.context_bytes
        measured[phase] = (
            {"allocated_bytes": allocated, "reserved_bytes": reserved, "rss_bytes": 3 * GIB,
             "nvml_process_bytes": whole if lists_processes else None}
            if on_cuda
            else {"allocated_bytes": None, "reserved_bytes": None, "nvml_process_bytes": None,
                  "rss_bytes": whole}
        )  # fmt: skip
    return {
        "device": {"name": CARD if on_cuda else HOST, "kind": kind},
        "estimate": estimate(weights, passing, base), "no_estimate": None,
        "constants": {"context_bytes": base.context_bytes, "fragmentation": base.fragmentation,
                      "spread": base.spread, "loading": base.loading},
        "measured": measured,
    }  # fmt: skip


def records(kind: str, truth: Constants, count: int = 4, **options: Any) -> list[dict[str, Any]]:
    """Several runs of different sizes."""
    return [record(kind, truth, *SIZES[n % len(SIZES)], **options) for n in range(count)]


def base_of(kind: str) -> Constants:
    return CUDA if kind.startswith("cuda") else CPU
