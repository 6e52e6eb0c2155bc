"""Questions about a model's shape, rendered rows and token counts, answered by child processes.

Owns the children and a cache of their answers by model folder and file time, so that a slider moved
back and forth asks nobody. Synchronous and thread safe: call it from threads. Knows nothing of
torch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.core.errors import StudioError
from studio.core.token_stats import TokenSummary
from studio.services.child import ChildServer, late_error

if TYPE_CHECKING:
    from studio.services.models import ModelStore

MODULE = "studio.backend.inspector"
CACHE_ENTRIES = 256
COUNT_TIMEOUT_S = 12 * 3600.0
# Seconds a question may take once the libraries are loaded; a child that takes longer is ended.
LIMITS_S = {"/modules": 120.0, "/adapter": 120.0, "/render": 30.0}
WORDS = {
    "/modules": "Reading the model's layers", "/adapter": "Working out the adapter's size",
    "/render": "Showing a row as tokens",
}  # fmt: skip
LOADING_LIMIT_S = 180.0  # importing the libraries, on a machine that is busy
STUCK_S = 180.0  # counting tokens may take hours, but not stand still
CANCEL_LIMIT_S = 10.0
_POLL_S = 0.2
# (share done or None, what is being done) -> None
ProgressFn = Callable[[float | None, str], None]
CancelledFn = Callable[[], bool]
_STAMPED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class InspectService:
    """What the forms and the data preview need to know about a model."""

    def __init__(
        self, workspace: Path, models: ModelStore, *, child: ChildServer | None = None,
        counter: ChildServer | None = None,
    ) -> None:  # fmt: skip
        self._models = models
        self._tokens_folder = workspace / "cache" / "tokens"
        # Statistics of a large data set take minutes: in a process of their own, so that previews
        # and sliders go on being answered.
        self._counter = counter or ChildServer(MODULE, name="tokens", folder=workspace / "tmp")
        self._counting = threading.Lock()
        self._asking = threading.Lock()  # the child answers one at a time: waiting is not its fault
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

    def token_stats(
        self,
        data_folder: Path,
        model_id: str,
        options: Mapping[str, Any],
        *,
        progress: ProgressFn | None = None,
        cancelled: CancelledFn | None = None,
    ) -> TokenSummary:
        """Lengths and learned tokens of all rows of a data set, as this model would read them.

        The first time every row is tokenized (several thousand a second), for the trainer too;
        then it takes a moment. One data set at a time; a second caller waits.

        Args:
            options: any of loss_on, max_length, system_prompt. max_length decides only which rows
                are listed in `first_rows`: `core.token_stats.cut_at` answers for any other.
            progress: (share done or None, sentence); called about five times a second.

        Raises:
            StudioError: the tokenizer is not here, the data set cannot be read, or it was
                cancelled; then nothing is kept.
        """
        folder = self._models.inspect_path(model_id)
        stamps = [_modified_ns(folder / name) for name in _STAMPED]
        stamps.append(_modified_ns(data_folder / "data.jsonl"))
        body = {"data_folder": str(data_folder), "config": dict(options),
                "cache_folder": str(self._tokens_folder)}  # fmt: skip
        key = json.dumps(["/token_stats", str(folder), stamps, body], sort_keys=True)
        while not self._counting.acquire(timeout=_POLL_S):
            if cancelled is not None and cancelled():
                raise StudioError("Counting tokens was cancelled", remedy="Start it again")
        try:
            with self._lock:
                known = self._cache.get(key)
            if known is None:
                known = self._count({"model_path": str(folder), **body}, progress, cancelled)
                self._keep(key, known)
        finally:
            self._counting.release()
        return TokenSummary.from_dict(known["summary"])

    def _count(
        self, body: dict[str, Any], progress: ProgressFn | None, cancelled: CancelledFn | None
    ) -> dict[str, Any]:
        watch = _Watch()
        with ThreadPoolExecutor(1, thread_name_prefix="token-stats") as pool:
            answer = pool.submit(
                self._counter.request, "POST", "/token_stats", body, timeout_s=COUNT_TIMEOUT_S
            )
            while not wait([answer], timeout=_POLL_S).done:
                if cancelled is not None and cancelled():
                    self._cancel(watch)
                state = self._counter.peek("/progress")
                if progress is not None and state:
                    progress(*_told(state))
                if (stuck_s := watch.stuck_s(state)) > 0:
                    self._counter.stop(grace_s=0.0)
                    raise late_error("One step of counting the tokens", stuck_s)
            return answer.result()

    def _cancel(self, watch: _Watch) -> None:
        """Ask the counter to end, again each time: what comes before the work has begun is
        forgotten. One that hears nothing is ended."""
        if watch.cancelled_at is None:
            watch.cancelled_at = time.monotonic()
        elif time.monotonic() - watch.cancelled_at > CANCEL_LIMIT_S:
            self._counter.stop(grace_s=0.0)
            raise StudioError("Counting tokens was cancelled", remedy="Start it again")
        self._counter.peek("/cancel")

    def phase(self) -> str:
        """`stopped`, `idle`, `importing`, `loading` or `ready`: for "Loading libraries"."""
        answer = self._child.peek()
        return "stopped" if answer is None else str(answer.get("phase"))

    def close(self) -> None:
        """End the children. Idempotent."""
        self._child.stop()
        self._counter.stop()

    def _ask(self, path: str, model_id: str, body: dict[str, Any]) -> dict[str, Any]:
        folder = self._models.inspect_path(model_id)
        stamps = [_modified_ns(folder / name) for name in _STAMPED]
        key = json.dumps([path, str(folder), stamps, body], sort_keys=True)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return dict(self._cache[key])
        with self._asking:
            self._child.ensure()
            limit_s = LIMITS_S[path] + (0.0 if self.phase() == "ready" else LOADING_LIMIT_S)
            answer = self._child.request(
                "POST", path, {"model_path": str(folder), **body}, timeout_s=limit_s,
                ends_late=WORDS[path],
            )  # fmt: skip
        self._keep(key, answer)
        return dict(answer)

    def _keep(self, key: str, answer: dict[str, Any]) -> None:
        with self._lock:
            self._cache[key] = answer
            while len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)


class _Watch:
    """Whether a count goes on: since when its progress has been the same."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = time.monotonic()
        self.cancelled_at: float | None = None

    def stuck_s(self, state: Mapping[str, Any] | None) -> float:
        """The limit that is over, 0 while there is none. Loading comes before any progress."""
        now, done = time.monotonic(), (state or {}).get("done")
        if done is not None and done != self._seen:
            self._seen, self._since = done, now
        limit_s = STUCK_S if self._seen else STUCK_S + LOADING_LIMIT_S
        return limit_s if now - self._since > limit_s else 0.0


def _told(state: Mapping[str, Any]) -> tuple[float | None, str]:
    """Progress as the other services tell it."""
    done, total = int(state.get("done") or 0), int(state.get("total") or 0)
    if not total:
        return None, "Loading the tokenizer and counting the rows"
    return done / total, f"Tokenizing: {done:,} of {total:,} rows"


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
