"""One run as a line of the table: read from its folder, whatever state the files are in.

A damaged file makes this run "failed" with a sentence; it never raises, so that one bad run cannot
hide the others. Reads only; knows nothing of processes (`alive` is handed in).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from studio.core.events import read_records
from studio.core.runs import CHATTABLE_STATES, FAILED, RunPaths, derive_state, read_json


@dataclass(frozen=True)
class RunSummary:
    """What the page and the command line show of a run. Bytes and seconds; None = unknown."""

    id: str
    name: str
    notes: str
    state: str
    created: str
    model_name: str
    method: str
    dataset_name: str
    step: int
    total_steps: int
    loss: float | None
    eval_loss: float | None
    best_step: int | None
    peak_bytes: int | None
    peak_kind: str
    duration_s: float | None
    verdict: str
    error: dict[str, Any] | None
    read_only: bool
    config: dict[str, Any]
    exit: dict[str, Any] | None
    state_record: dict[str, Any]
    run_record: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Resolved device of the run ("cpu", "cuda:0", ...), or "auto" where unknown."""
        resolved = mapping(self.run_record.get("resolved"))
        return str(mapping(resolved.get("runtime")).get("device") or "auto")

    @property
    def can_chat(self) -> bool:
        """Whether there is an adapter to chat with: it ended in peace, after a first step."""
        return self.state in CHATTABLE_STATES and self.step > 0


class MetricsTail:
    """Follows one metrics file and keeps the few figures that a summary needs."""

    def __init__(self) -> None:
        self._cursor = ""
        self.loss: float | None = None
        self.evals: dict[int, float] = {}
        self.step = 0
        self.peak_vram_bytes: int | None = None
        self.peak_rss_bytes: int | None = None
        self.duration_s: float | None = None

    def follow(self, paths: RunPaths) -> None:
        """Read what was appended since the last call."""
        while True:
            batch = read_records(paths.metrics, self._cursor)
            if batch.reset:
                self.__init__()  # another file under the same name: start over
                continue
            for record in batch.records:
                self._take(record)
            if batch.cursor == self._cursor or not batch.records:
                self._cursor = batch.cursor
                return
            self._cursor = batch.cursor

    def _take(self, record: dict[str, Any]) -> None:
        self.duration_s = number(record.get("t_s")) or self.duration_s
        kind, step = record["kind"], whole(record.get("step"))
        if kind == "resume":
            edge = whole(record.get("from_step"))
            self.evals = {at: loss for at, loss in self.evals.items() if at <= edge}
            self.step = edge
        elif kind == "step":
            self.step = step
            self.loss = number(record.get("loss"))
        elif kind == "eval" and number(record.get("eval_loss")) is not None:
            self.evals[step] = float(record["eval_loss"])
        elif kind == "device":
            used = number(record.get("process_bytes")) or number(record.get("reserved_bytes"))
            self.peak_vram_bytes = _larger(self.peak_vram_bytes, used)
            self.peak_rss_bytes = _larger(self.peak_rss_bytes, number(record.get("rss_bytes")))


def summarise(paths: RunPaths, *, alive: bool, tail: MetricsTail) -> RunSummary:
    """The run's summary from its files."""
    run, meta = read_json(paths.run_json), read_json(paths.meta_json) or {}
    if run is None or not isinstance(run.get("config"), dict):
        return _damaged(paths, meta, alive=alive)
    tail.follow(paths)
    state_record = read_json(paths.state_json) or {}
    end = read_json(paths.exit_json)
    state = derive_state(paths, alive=alive)
    figures = end or {}
    peak_bytes, peak_kind = _peak(figures, tail)
    eval_loss = number(figures.get("eval_loss"))
    best = figures.get("kept_step") or figures.get("best_step")
    if best is None and tail.evals:
        best = min(tail.evals, key=tail.evals.__getitem__)
    # Once it ended, the base's loss at step 0 is not that of its adapter.
    measured = [at for at in tail.evals if at > 0 or end is None]
    if eval_loss is None and measured:
        eval_loss = tail.evals[max(measured)]
    return RunSummary(
        id=paths.id, name=str(meta.get("name") or paths.id), notes=str(meta.get("notes") or ""),
        state=state, created=str(run.get("created") or created_of(paths.id)),
        model_name=_model_name(run), method=method_of(run["config"]),
        dataset_name=str(mapping(run.get("dataset")).get("name") or ""),
        step=max(whole(state_record.get("step")), whole(figures.get("steps")), tail.step),
        total_steps=whole(state_record.get("total_steps")) or whole(run.get("total_steps")),
        loss=_first(number(figures.get("train_loss")), tail.loss), eval_loss=eval_loss,
        best_step=whole(best) if best is not None else None,
        peak_bytes=peak_bytes, peak_kind=peak_kind,
        duration_s=_first(number(figures.get("run_s")), tail.duration_s),
        verdict=str(figures.get("verdict") or ""), error=_error_of(figures),
        read_only=paths.imported_json.exists(), config=run["config"], exit=end,
        state_record=state_record, run_record=run,
    )  # fmt: skip


_ROW_FIELDS = (
    "id", "name", "state", "created", "model_name", "method", "dataset_name", "step",
    "total_steps", "loss", "eval_loss", "best_step", "peak_bytes", "peak_kind", "duration_s",
    "verdict", "read_only",
)  # fmt: skip


def to_row(run: RunSummary) -> dict[str, Any]:
    """The run as an entry of a JSON list."""
    return {name: getattr(run, name) for name in _ROW_FIELDS}


def to_detail(run: RunSummary) -> dict[str, Any]:
    """The whole run as JSON, without where it lies on this machine."""
    detail = dataclasses.asdict(run)
    record = detail.pop("run_record")
    return {**detail, **{name: record.get(name) for name in ("resolved", "auto", "versions")}}


def method_of(config: dict[str, Any]) -> str:
    """ "QLoRA nf4 r16", "LoRA r8", "DoRA r8": the method in a few characters."""
    lora, quantization = mapping(config.get("lora")), mapping(config.get("quantization"))
    name = "DoRA" if lora.get("use_dora") else "LoRA"
    if quantization.get("load_in_4bit"):
        name = f"Q{name} {quantization.get('bnb_4bit_quant_type', 'nf4')}"
    return f"{name} r{lora.get('r', '?')}"


def _damaged(paths: RunPaths, meta: dict[str, Any], *, alive: bool) -> RunSummary:
    state = derive_state(paths, alive=True) if alive else FAILED  # its trainer may not know
    text = (
        f"The run is damaged: {paths.run_json.name} is missing or cannot be read. "
        "Its other files are untouched; delete the run or put the file back."
    )
    return RunSummary(
        id=paths.id, name=str(meta.get("name") or paths.id), notes=str(meta.get("notes") or ""),
        state=state, created=created_of(paths.id), model_name="", method="", dataset_name="",
        step=0, total_steps=0,
        loss=None, eval_loss=None, best_step=None, peak_bytes=None, peak_kind="RSS",
        duration_s=None, verdict="damaged",
        error={"type": "StoreError", "text": text, "what": text, "remedy": None},
        read_only=True, config={}, exit=None, state_record={},
    )  # fmt: skip


def _model_name(run: dict[str, Any]) -> str:
    name = str(mapping(run.get("model")).get("id") or "")
    is_folder = mapping(run.get("model")).get("kind") == "folder"
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_folder else name


def _peak(figures: dict[str, Any], tail: MetricsTail) -> tuple[int | None, str]:
    vram = _first(number(figures.get("peak_vram_bytes")), tail.peak_vram_bytes)
    if vram:
        return int(vram), "VRAM"
    rss = _first(number(figures.get("peak_rss_bytes")), tail.peak_rss_bytes)
    return (int(rss) if rss else None), "RSS"


def _error_of(figures: dict[str, Any]) -> dict[str, Any] | None:
    error = figures.get("error")
    if isinstance(error, dict):
        return error
    if figures.get("state") == FAILED:
        text = str(figures.get("cause") or "The run failed; its log has the details.")
        return {"type": "StudioError", "text": text, "what": text, "remedy": None}
    return None


def created_of(run_id: str) -> str:
    """When a run was made, as its id tells (core.runs.new_run_id); "" where it does not."""
    try:
        moment = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return moment.replace(tzinfo=UTC).isoformat(timespec="microseconds")


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: files may hold anything."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """The value if it is a number (not a bool), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: Any) -> int:
    """The value as a whole number, 0 if it is none."""
    found = number(value)
    return int(found) if found is not None and abs(found) < 1e18 else 0


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _larger(old: int | None, new: float | None) -> int | None:
    return old if new is None else max(old or 0, int(new))
