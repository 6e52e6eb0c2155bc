"""The chat: one child process with one loaded model, shared by the page and the command line.

Owns the child, which run is loaded in it, and making room for a training. Events are those of
`backend.chat_server`, with `{"phase", "message"}` in front while libraries and weights are loaded.
Holds no conversation: those are the page's. Knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.core.chat_request import Which, parse_chat_request
from studio.core.errors import BusyError
from studio.core.runs import RunPaths, read_json
from studio.services.child import ChildServer

if TYPE_CHECKING:
    from studio.services.models import ModelStore
    from studio.services.store import RunStore

MODULE = "studio.backend.chat_server"
LOAD_TIMEOUT_S = 1800.0
MESSAGES = {
    "starting": "Starting the chat process",
    "importing": "Loading libraries, about 8 s",
    "loading": "Loading the model...",
}
_POLL_S = 0.25

Event = dict[str, Any]
ChildFactory = Callable[[Mapping[str, str]], ChildServer]


class ChatService:
    """Streams answers of a run's base and adapter. Safe to use from several handlers."""

    def __init__(
        self,
        workspace: Path,
        runs: RunStore,
        models: ModelStore,
        *,
        name: str = "chat",
        child_factory: ChildFactory | None = None,
    ) -> None:
        self._runs = runs
        self._models = models
        self._make_child = child_factory or (
            lambda environment: ChildServer(
                MODULE, name=name, folder=workspace / "tmp", extra_environment=environment
            )
        )
        self._lock = threading.Lock()  # held while a model is loaded
        self._environment: dict[str, str] = {}
        self._child = self._make_child(self._environment)
        self._loaded: tuple[Any, ...] | None = None
        self._evicted: str | None = None

    async def stream(
        self,
        run_id: str,
        messages: Sequence[Mapping[str, str]],
        *,
        which: Which = "both",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> AsyncIterator[Event]:
        """Answer with the run's model. Closing the iterator stops within one token.

        Yields:
            {"phase", "message"} while loading, {"notice"} once where there is something to know,
            then {"which", "delta"}, {"which", "done", "tokens", "truncated", "tokens_per_s"}, or
            {"error"} where an answer broke off.

        Raises:
            StudioError: the question, the run or the machine cannot be used.
        """
        request = parse_chat_request({
            "messages": [dict(message) for message in messages], "which": which,
            "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed,
        })  # fmt: skip
        async with aclosing(self._load_aloud(run_id)) as phases:
            async for event in phases:
                yield event
        self._evicted = None
        answers = self._child.stream("/chat", request.model_dump(mode="json"))
        try:
            async with aclosing(answers) as events:
                async for event in events:
                    yield event
        except BusyError as error:
            if self._evicted is not None:
                raise BusyError(self._evicted, remedy="Ask again once there is room") from error
            raise

    def unload(self) -> None:
        """End the child: all its memory is free afterwards. Idempotent."""
        self._child.stop()
        self._loaded = None

    def evict(self, reason: str) -> str | None:
        """Unload to make room; `reason` is shown where an answer is broken off by it.

        Returns:
            `reason` as the notice to show, or None where nothing was loaded.
        """
        if not self._child.is_alive():
            return None
        self._evicted = reason
        self.unload()
        return reason

    def status(self) -> dict[str, Any]:
        """`phase` (stopped, idle, importing, loading, ready), `loaded` (or None), `notice`."""
        answer = self._child.peek() or {"phase": "stopped", "loaded": None}
        loaded = answer.get("loaded")
        return {
            "phase": answer.get("phase"), "loaded": loaded,
            "run_id": (loaded or {}).get("run_id"), "notice": self._evicted,
        }  # fmt: skip

    def close(self) -> None:
        """End the child. Idempotent."""
        self.unload()

    async def _load_aloud(self, run_id: str) -> AsyncIterator[Event]:
        """Load the run's model unless it is loaded, telling what is waited for."""
        paths = await asyncio.to_thread(self._runs.paths, run_id)
        task = asyncio.ensure_future(asyncio.to_thread(self._load, paths))
        told = None
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_POLL_S)
                if task.done():
                    break
                answer = await asyncio.to_thread(self._child.peek) or {}
                phase = str(answer.get("phase") or "starting")
                if phase in MESSAGES and phase != told:
                    told = phase
                    yield {"phase": phase, "message": MESSAGES[phase]}
        finally:
            if not task.done():
                # The page went away: the load ends by itself, and its failure is nobody's.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        info = task.result()
        if told:
            yield {"phase": "ready", "message": ""}
        if info.get("notice"):
            yield {"notice": info["notice"]}

    def _load(self, paths: RunPaths) -> dict[str, Any]:
        """Load in the calling thread. Returns what the child says of the model when it is new."""
        record = read_json(paths.run_json) or {}
        wanted = (paths.id, _adapter_stamp(paths))
        with self._lock:
            self._prepare_child(record)
            if self._loaded == (*wanted, self._child.pid):
                return {}
            body = {"run_dir": str(paths.root.absolute())}
            if moved := self._moved_base(record):
                body["model_path"] = str(moved)
            self._loaded = None
            answer = self._child.request("POST", "/load", body, timeout_s=LOAD_TIMEOUT_S)
            self._loaded = (*wanted, self._child.pid)
        return dict(answer.get("loaded") or {})

    def _prepare_child(self, record: Mapping[str, Any]) -> None:
        """A child that sees the run's GPU and no other, as its trainer did."""
        runtime = (record.get("resolved") or {}).get("runtime") or {}
        environment = device_environment(str(runtime.get("device") or "cpu"))
        if environment != self._environment:
            self._child.stop()
            self._environment = environment
            self._child = self._make_child(environment)

    def _moved_base(self, record: Mapping[str, Any]) -> Path | None:
        """Where the base lies now, if not where the run was made (a run from a zip)."""
        model = record.get("model") or {}
        recorded = str(model.get("path") or "")  # a run from a zip names none
        if recorded and Path(recorded).is_dir():
            return None
        return self._models.resolve(str(model.get("id") or ""))


def device_environment(device: str) -> dict[str, str]:
    """Variables that show a child one GPU, or none."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if kind == "cuda" and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": index or "0"}
    return {}


def _adapter_stamp(paths: RunPaths) -> tuple[int, ...]:
    """Changes when a resumed run has written another adapter or checkpoint."""
    return tuple(
        path.stat().st_mtime_ns if path.exists() else 0
        for path in (paths.adapter / "adapter_model.safetensors", paths.checkpoints)
    )
