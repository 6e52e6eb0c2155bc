"""Stands in for the counting process: shapes of LLaMA, costs by formula, and what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.core.config import RunConfig
from studio.core.errors import ModelError
from studio.core.memory_methods import family
from studio.core.step_costs import Variant
from tests.core.memory_demands import costs_for, resolved


class FakeCounter:
    """Answers as `studio.backend.inspector` does. `refuses` counts no step."""

    def __init__(self, size: str = "7 B", *, refuses: bool = False) -> None:
        self.profile = family()[size]
        self.refuses = refuses
        self.asked: list[str] = []

    def request(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(path)
        if path == "/profile":
            return self.profile.to_dict()
        if path == "/adapter":
            return {"matched": [{"name": "q_proj", "in": 4096, "out": 4096, "count": 1}]}
        if self.refuses:
            raise ModelError("The memory of a step of this model cannot be counted")
        config = _config_of(Variant.from_dict(body["variant"]))
        return costs_for(self.profile, config).to_dict()

    def stop(self) -> None:
        self.asked.append("stop")


def _config_of(variant: Variant) -> RunConfig:
    return resolved({"train": {
        "packing": variant.packed, "per_device_train_batch_size": 2 if variant.padded else 1,
        "activation_checkpointing": variant.checkpointing,
    }})  # fmt: skip


class FakeMachine:
    """A probe with a card of so many free bytes, or none."""

    def __init__(self, free_bytes: int | None = 24 << 30, **gpu: Any) -> None:
        total = 24 << 30
        used = None if free_bytes is None else max(0, total - free_bytes)
        self.gpus = [{"index": 0, "name": "RTX 4090", "total_bytes": total, "used_bytes": used,
                      "is_mig": False, **gpu}]  # fmt: skip
        self.note: str | None = None

    def capabilities(self) -> dict[str, Any]:
        return {"cuda": True, "mps": False, "bnb": True, "bf16": True, "cores": 2, "reasons": {},
                "gpus": [{"name": "RTX 4090", "total_bytes": 1, "used_bytes": 0}]}  # fmt: skip

    def live(self, pid: int | None = None) -> dict[str, Any]:
        return {"gpu": self.gpus, "ram_used_bytes": 8 << 30, "ram_total_bytes": 32 << 30,
                "note": self.note}  # fmt: skip
