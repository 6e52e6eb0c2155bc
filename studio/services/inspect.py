"""Questions about a model's shape and about rendered rows, answered by the inspection process.

Owns the child and a cache of its answers by model folder and file time, so that a slider moved back
and forth asks nobody. Synchronous and thread safe: call it from threads. Knows nothing of torch.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.services.child import ChildServer

if TYPE_CHECKING:
    from studio.services.models import ModelStore

MODULE = "studio.backend.inspector"
CACHE_ENTRIES = 256
_STAMPED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class InspectService:
    """What the forms and the data preview need to know about a model."""

    def __init__(
        self, workspace: Path, models: ModelStore, *, child: ChildServer | None = None
    ) -> None:
        self._models = models
        self._child = child or ChildServer(MODULE, name="inspect", folder=workspace / "tmp")
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def modules(self, model_id: str) -> dict[str, Any]:
        """Module names with counts and sizes, parameter counts, context length, template.

        Works for a catalogue model that is not downloaded: its config.json is in the repository.

        Raises:
            StudioError: the model is unknown, or its architecture is.
        """
        return self._ask("/modules", model_id, {})

    def adapter(self, model_id: str, lora: Mapping[str, Any]) -> dict[str, Any]:
        """Trainable parameters, share, file size and matched modules of a `lora` section.

        Raises:
            StudioError: a knob is out of range, or no module matches (TargetModulesError).
        """
        return self._ask("/adapter", model_id, {"lora": dict(lora)})

    def render(
        self, model_id: str, example: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One record of `data.jsonl` as text and tokens: which are learned, which are cut.

        Args:
            options: any of loss_on, max_length, system_prompt.

        Raises:
            StudioError: the model's tokenizer is not here, or the row cannot be rendered.
        """
        body = {"example": dict(example), "config": dict(options)}
        return self._ask("/render", model_id, body)

    def phase(self) -> str:
        """`stopped`, `idle`, `importing`, `loading` or `ready`: for "Loading libraries"."""
        answer = self._child.peek()
        return "stopped" if answer is None else str(answer.get("phase"))

    def close(self) -> None:
        """End the child. Idempotent."""
        self._child.stop()

    def _ask(self, path: str, model_id: str, body: dict[str, Any]) -> dict[str, Any]:
        folder = self._models.inspect_path(model_id)
        stamps = [_modified_ns(folder / name) for name in _STAMPED]
        key = json.dumps([path, str(folder), stamps, body], sort_keys=True)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return dict(self._cache[key])
        answer = self._child.request("POST", path, {"model_path": str(folder), **body})
        with self._lock:
            self._cache[key] = answer
            while len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)
        return dict(answer)


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
