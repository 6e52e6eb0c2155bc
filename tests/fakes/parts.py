"""Data set, model and machine of a run without files of their own, for the services' tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError, ModelError
from studio.core.split import num_held_out
from studio.services.runs import RunParts
from studio.services.store import RunStore


@dataclass(frozen=True)
class FakeDataset:
    id: str = "abc123-tiny"
    name: str = "tiny"
    used: int = 20
    left_out: int = 1
    fingerprint: str = "f" * 64
    format: str = "messages"
    mapping: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, Any] | None = None

    def num_held_out(self, val_frac: float) -> int:
        return num_held_out(self.used, val_frac)


class FakeDatasets:
    """Knows one file: tiny.jsonl."""

    def __init__(self, workspace: Path, used: int = 20) -> None:
        self.folder = workspace / "datasets" / "abc123-tiny"
        self.used = used

    def resolve(
        self, path: str, *, format: str, mapping: object, options: object = None
    ) -> FakeDataset:
        if Path(path).name != "tiny.jsonl":
            raise DatasetError("There is no such file", value=path, remedy="Check the path")
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"i": i, "line": i, "messages": [{"role": "user", "content": f"question {i}"},
                                             {"role": "assistant", "content": f"answer {i}"}]}
            for i in range(1, self.used + 1)
        ]  # fmt: skip
        (self.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return FakeDataset(used=self.used)


@dataclass(frozen=True)
class FakeModelInfo:
    id: str = "starter"
    kind: str = "starter"
    params: int = 1000


class FakeModels:
    """Knows one model: starter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                  "max_position_embeddings": 512}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
        weights = len(header).to_bytes(8, "little") + header + bytes(36)
        (folder / "model.safetensors").write_bytes(weights)

    def info(self, model_id: str) -> FakeModelInfo:
        return FakeModelInfo(model_id)

    def resolve(self, model_id: str, revision: str | None = None) -> Path:
        if model_id != "starter":
            raise ModelError("There is no such model", value=model_id, allowed="starter")
        return self.folder


@dataclass
class FakeMachine:
    values: dict[str, Any] = field(
        default_factory=lambda: {
            "cuda": False, "mps": False, "bnb": True, "bf16": False, "reasons": {}, "cores": 2,
            "summary": "CPU, 2 cores", "gpus": [],
        }
    )  # fmt: skip

    def capabilities(self) -> dict[str, Any]:
        return self.values

    def live(self) -> dict[str, Any]:
        return {"gpu": [], "rss_bytes": 1, "note": None}


def build_parts(workspace: Path, used: int = 20) -> RunParts:
    """Parts of a run on fakes, in a fresh workspace."""
    (workspace / "tmp").mkdir(parents=True, exist_ok=True)
    return RunParts(
        workspace=workspace, runs=RunStore(workspace),
        datasets=FakeDatasets(workspace, used),  # type: ignore[arg-type]
        models=FakeModels(workspace / "models" / "starter"),  # type: ignore[arg-type]
        machine=FakeMachine(),  # type: ignore[arg-type]
    )  # fmt: skip
