"""A studio for page tests: real files and stores, pretended models, training and answers.

Uses the real run store, data sets, presets and machine; `FakeSupervisor` writes run folders in the
shape that the trainer writes, `FakeChat` streams fixed words. No torch, so it starts in a second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn

from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import HubError, ModelError, StudioError
from studio.core.presets import load_presets
from studio.core.runs import RunPaths
from studio.core.token_stats import Steps, TokenSummary
from studio.hardware.platforms import held_lock
from studio.hardware.probe import MachineProbe
from studio.server import build_app
from studio.services.datasets import DatasetStore
from studio.services.edits import Edits
from studio.services.measured_memory import MeasuredMemory
from studio.services.memory import MemoryService
from studio.services.memory_doctor import MemoryDoctor
from studio.services.models import ModelStore
from studio.services.read_only import guard
from studio.services.settings import Settings, prepare_workspace
from studio.services.store import RunStore
from studio.services.studio import READ_ONLY
from tests.services.fake_counter import FakeCounter
from tests.ui.fake_runs import ANSWERS, finish, make_run, write_step


@dataclass(frozen=True)
class FakeModel:
    """An entry of the model list."""

    id: str
    title: str
    params: int
    context: int
    licence: str
    gb: float
    local: bool
    kind: str = "starter"
    note: str = ""
    path: Path | None = None


class FakeModels:
    """Two models: one here, one on a hub that nobody answers for."""

    def __init__(self, workspace: Path) -> None:
        presets = Settings(workspace=workspace).presets_dir
        self._offline = ModelStore(workspace, presets, endpoint="http://127.0.0.1:1")

    def fetch(self, model_id: str) -> Iterator[tuple[float, str]]:
        return self._offline.fetch(model_id)

    def list(self) -> list[FakeModel]:
        return [
            FakeModel("starter", "Starter", 5_540_000, 512, "CC BY-SA 4.0", 0.011, True),
            FakeModel(
                "Qwen/Qwen3-0.6B", "Qwen3 0.6B", 596_000_000, 40960, "Apache 2.0", 1.2, False, "hub"
            ),
        ]

    def resolve(self, model_id: str) -> Path:
        if model_id == "starter":
            return Path(".")
        if "/" in model_id:
            raise HubError("The model is not on this machine", value=model_id, remedy="Download it")
        raise ModelError(
            "There is no such model", value=model_id, remedy="Type a folder or a hub id"
        )


class FakeInspector:
    """Figures of a 5.5 M model, by arithmetic."""

    def modules(self, model_id: str) -> dict[str, Any]:
        names = (("q_proj", 65536), ("v_proj", 65536), ("up_proj", 180224), ("down_proj", 180224))
        return {
            "modules": [{"name": n, "count": 6, "params": 6 * p} for n, p in names],
            "total_params": 5_540_000,
        }

    def adapter(self, model_id: str, lora: dict[str, Any]) -> dict[str, Any]:
        trainable = 19008 * int(lora["r"])
        return {
            "trainable_params": trainable,
            "total_params": 5_540_000,
            "adapter_bytes": 4 * trainable,
            "share": trainable / 5_540_000,
            "matched": [],
        }

    def render(
        self, model_id: str, example: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        tokens = []
        for message in example.get("messages") or [
            {"role": "assistant", "content": example.get("text", "")}
        ]:
            said = message["role"] == "assistant"
            tokens.append(
                {
                    "id": 1,
                    "text": f"<|im_start|>{message['role']}\n",
                    "trained": False,
                    "special": True,
                    "cut": False,
                }
            )
            tokens += [
                {"id": 2, "text": w + " ", "trained": said, "special": False, "cut": False}
                for w in message["content"].split()
            ]
            tokens.append(
                {"id": 3, "text": "<|im_end|>", "trained": said, "special": True, "cut": False}
            )
        longest = int(options.get("max_length") or len(tokens))
        for token in tokens[longest:]:
            token |= {"trained": False, "cut": True}
        trained = sum(t["trained"] for t in tokens)
        return {
            "text": "",
            "tokens": tokens,
            "trained_tokens": trained,
            "total_tokens": len(tokens),
            "cut_tokens": max(0, len(tokens) - longest),
            "end_token": {
                "verdict": "ok",
                "message": "The end token <|im_end|> is learned, and generation stops on it.",
            },
        }

    def token_stats(
        self, data_folder: Path, model_id: str, options: dict[str, Any], *,
        progress: Any = None, cancelled: Any = None,
    ) -> TokenSummary:  # fmt: skip
        """Of all rows, with the tokens of `render`."""
        if model_id != "starter":
            raise HubError("The model is not on this machine", value=model_id, remedy="Download it")
        rows = [json.loads(line) for line in (data_folder / "data.jsonl").read_bytes().splitlines()]
        tokens = [self.render(model_id, row, {})["tokens"] for row in rows]
        learned = [[at for at, t in enumerate(row) if t["trained"]] for row in tokens]
        lengths, places = [len(row) for row in tokens], [at for row in learned for at in row]
        longest = options["max_length"]
        return TokenSummary(
            rows=len(rows), refused=0, never_trained=sum(not row for row in learned),
            tokens=sum(lengths), trained_tokens=len(places), longest=max(lengths),
            lengths=steps(lengths), answer_starts=steps(row[0] for row in learned if row),
            answer_ends=steps(row[-1] for row in learned if row), trained=steps(places),
            sample=lengths[:2000],
            first_rows={
                "cut": [at for at, length in enumerate(lengths) if length > longest],
                "answer_cut": [at for at, row in enumerate(learned) if row and row[0] >= longest],
                "no_trained_token": [
                    at for at, row in enumerate(learned) if not row or row[0] >= longest
                ],
            },
        )  # fmt: skip


def steps(values: Iterable[int]) -> Steps:
    """How often each value comes."""
    counts = sorted(Counter(values).items())
    return Steps([at for at, _ in counts], [count for _, count in counts])


class FakeChat:
    """Streams both answers word by word."""

    async def stream(
        self, run_id: str, messages: list[Any], *, which: str, **_: Any
    ) -> AsyncIterator[dict[str, Any]]:
        sides = ("base", "adapter") if which == "both" else (which,)
        words = {side: ANSWERS[side].split(" ") for side in sides}
        for index in range(max(map(len, words.values()))):
            await asyncio.sleep(0.03)
            for side in sides:
                if index < len(words[side]):
                    yield {"which": side, "delta": words[side][index] + " "}
        for side in sides:
            yield {
                "which": side,
                "done": True,
                "tokens": 96,
                "truncated": side == "base",
                "tokens_per_s": 40.0,
            }

    async def unload(self) -> None:
        return None


class FakeSupervisor:
    """Writes run folders as a trainer would, in a thread, at `step_s` seconds a step."""

    def __init__(self, runs: RunStore, step_s: float = 0.05) -> None:
        self.runs, self.step_s = runs, step_s
        self.requests: dict[str, str] = {}
        self.verbs: list[tuple[str, str]] = []

    def start(
        self, config: RunConfig, *, name: str | None, request_id: str, warm_start: str | None = None
    ) -> str:
        if not config.data.path:
            raise StudioError("data.path is missing", remedy="Choose a training file")
        if request_id in self.requests:
            return self.requests[request_id]
        paths = make_run(self.runs.root, config, name or "A run")
        self.requests[request_id] = paths.id
        threading.Thread(target=self._train, args=(paths, config), daemon=True).start()
        return paths.id

    def _train(self, paths: RunPaths, config: RunConfig) -> None:
        total = config.train.max_steps if config.train.max_steps > 0 else 60
        with held_lock(paths.lock):
            for step in range(total + 1):
                write_step(paths, step, total)
                if any(paths.commands.glob("*")):
                    break
                time.sleep(self.step_s)
            finish(paths, step, total)

    def command(self, run_id: str, verb: str) -> None:
        self.verbs.append((run_id, verb))
        paths = self.runs.paths(run_id)
        paths.commands.mkdir(exist_ok=True)
        (paths.commands / f"1-{verb}.json").write_text("{}")

    def warm_start(self, run_id: str) -> str:
        config = build_config(self.runs.get(run_id).config)
        return make_run(self.runs.root, config, "From its weights").id

    def resume(self, run_id: str) -> None:
        self.verbs.append((run_id, "resume"))

    def active(self) -> Any:
        return next((run for run in self.runs.list() if run.state in ("starting", "running")), None)


def build_fake_studio(workspace: Path, *, step_s: float = 0.05, holder: str | None = None) -> Any:
    """Everything that `build_page` asks for. `holder`: another studio that holds the workspace;
    then this one is read-only and asks everybody for a token."""
    settings = Settings(workspace=workspace, read_only=bool(holder), listen=bool(holder))
    prepare_workspace(workspace)
    runs, datasets = RunStore(workspace), DatasetStore(workspace)
    machine = MachineProbe(workspace)
    memory = MemoryService(
        workspace, ModelStore(workspace, settings.presets_dir), machine, child=FakeCounter()
    )
    supervisor = guard("supervisor", FakeSupervisor(runs, step_s), holder)
    parts: Any = SimpleNamespace(runs=runs, machine=machine)
    return SimpleNamespace(
        settings=settings,
        datasets=guard("datasets", datasets, holder),
        edits=guard("edits", Edits(datasets, workspace), holder),
        runs=guard("runs", runs, holder),
        chat=FakeChat(),
        supervisor=supervisor,
        inspector=FakeInspector(),
        models=guard("models", FakeModels(workspace), holder),
        measured=MeasuredMemory(workspace, runs),
        machine=machine,
        memory=memory,
        doctor=MemoryDoctor(parts, memory, supervisor),
        presets=load_presets(settings.presets_dir),
        notice=f"{holder}{READ_ONLY}" if holder else None,
        close=lambda: None,
    )


def main() -> None:
    """Serve the page on a fake studio.

    python -m tests.ui.fake_studio WORKSPACE PORT [STEP_S [HOLDER]]
    """
    workspace, port = Path(sys.argv[1]), int(sys.argv[2])
    step_s, holder = float((*sys.argv, "0.05")[3]), (*sys.argv, "", "", "")[4]
    studio = build_fake_studio(workspace, step_s=step_s, holder=holder or None)
    studio.settings = dataclasses.replace(studio.settings, port=port)
    uvicorn.run(
        build_app(studio), host="127.0.0.1", port=port, log_level="warning",
        timeout_graceful_shutdown=5,
    )  # fmt: skip


if __name__ == "__main__":
    main()
