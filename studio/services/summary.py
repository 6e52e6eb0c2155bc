"""One run as a line of the table: read from its folder, whatever state the files are in.

A damaged file makes this run "failed" with a sentence; it never raises, so that one bad run cannot
hide the others. Reads only; knows nothing of processes (`alive` is handed in).
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.endings import stop_grace_s
from studio.core.events import read_records
from studio.core.runs import (
    CHATTABLE_STATES,
    FAILED,
    INTERRUPTED,
    LIVE_STATES,
    RUNNING,
    SCHEMA_VERSION,
    STARTING,
    RunPaths,
    derive_state,
    read_json,
)
from studio.services.endings import vanished
from studio.services.liveness import Ending, Stalled, ending_state, find_ending, find_stall

_MEDIAN_OF = 20  # steps
_WARM_START = re.compile(r"--warm-start ([a-z0-9-]+@\d+)")


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
    damaged: str = ""  # which of its files cannot be read, and what follows
    step_s: float | None = None  # median of the last steps
    stalled: Stalled | None = None
    ending: Ending | None = None

    @property
    def is_usable(self) -> bool:
        """Whether run.json can be read: without it nobody knows what the other files belong to."""
        return bool(self.config)

    @property
    def shown_state(self) -> str:
        """The state in the word that the user needs: a damaged or stalled run says so."""
        if self.state in LIVE_STATES:
            return "stalled" if self.stalled else self.state
        return self.state if self.is_usable else "damaged"

    @property
    def warm_start(self) -> str | None:
        """Weights ("RUN@STEP") to begin a new run with, where this one was refused its resume.

        The trainer's remedy names them as the command line takes them.
        """
        remedy = (self.error or {}).get("remedy")
        found = _WARM_START.search(remedy) if isinstance(remedy, str) else None
        return found[1] if found else None

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
        self._step_times: deque[float] = deque(maxlen=_MEDIAN_OF + 1)

    @property
    def step_s(self) -> float | None:
        """Median seconds from one step to the next, over the last few; None before there are two.

        Evaluations in between are long but few: the median does not see them.
        """
        times = list(self._step_times)
        gaps = [b - a for a, b in zip(times, times[1:], strict=False) if b > a]
        return statistics.median(gaps) if gaps else None

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
            self._step_times.clear()
        elif kind == "step":
            self.step = step
            self.loss = number(record.get("loss"))
            if (at_s := number(record.get("t_s"))) is not None:
                self._step_times.append(at_s)
        elif kind == "eval" and number(record.get("eval_loss")) is not None:
            self.evals[step] = float(record["eval_loss"])
        elif kind == "device":
            used = number(record.get("process_bytes")) or number(record.get("reserved_bytes"))
            self.peak_vram_bytes = _larger(self.peak_vram_bytes, used)
            self.peak_rss_bytes = _larger(self.peak_rss_bytes, number(record.get("rss_bytes")))


def summarise(paths: RunPaths, *, alive: bool, tail: MetricsTail) -> RunSummary:
    """The run's summary from its files."""
    run, meta = read_json(paths.run_json), read_json(paths.meta_json) or {}
    if run is None or not isinstance(run.get("config"), dict) or not run["config"]:
        return _damaged(paths, meta, alive=alive)
    if whole(run.get("schema")) > SCHEMA_VERSION:
        return _damaged(paths, meta, alive=alive, newer=whole(run.get("schema")))
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
        verdict=str(figures.get("verdict") or ""),
        error=vanished(paths) if state == INTERRUPTED and end is None else _error_of(figures),
        read_only=paths.imported_json.exists(), config=run["config"], exit=end,
        state_record=state_record, run_record=run, damaged=_damage_note(paths),
        step_s=tail.step_s,
    )  # fmt: skip


def at_this_moment(run: RunSummary, paths: RunPaths, now: datetime | None = None) -> RunSummary:
    """The summary with what depends on the clock. Costs nothing for a run that does not live."""
    if run.state not in LIVE_STATES:
        return run
    now = now or datetime.now(UTC)
    ending = find_ending(paths, stop_grace_of(run.state_record), now)
    state = run.state
    if ending and state in (STARTING, RUNNING):  # acknowledged, and saving
        state = ending_state(ending)
    stalled = find_stall(state, run.state_record, run.step_s, now)
    return dataclasses.replace(run, state=state, stalled=stalled, ending=ending)


_ROW_FIELDS = (
    "id", "name", "state", "created", "model_name", "method", "dataset_name", "step",
    "total_steps", "loss", "eval_loss", "best_step", "peak_bytes", "peak_kind", "duration_s",
    "verdict", "read_only", "damaged",
)  # fmt: skip


def to_row(run: RunSummary) -> dict[str, Any]:
    """The run as an entry of a JSON list."""
    row = {name: getattr(run, name) for name in _ROW_FIELDS}
    return {**row, "stalled": dataclasses.asdict(run.stalled) if run.stalled else None}


def to_detail(run: RunSummary) -> dict[str, Any]:
    """The whole run as JSON, without where it lies on this machine."""
    detail = dataclasses.asdict(run)
    record = detail.pop("run_record")
    detail |= {name: record.get(name) for name in ("resolved", "auto", "versions")}
    return {**detail, "warm_start": run.warm_start}


def stop_grace_of(record: dict[str, Any]) -> float:
    """Seconds that a stop may take: what is counted down, worked out from the trainer's figures."""
    return stop_grace_s(number(record.get("micro_batch_s")), number(record.get("last_save_s")))


def method_of(config: dict[str, Any]) -> str:
    """ "QLoRA nf4 r16", "LoRA r8", "DoRA r8": the method in a few characters."""
    lora, quantization = mapping(config.get("lora")), mapping(config.get("quantization"))
    name = "DoRA" if lora.get("use_dora") else "LoRA"
    if quantization.get("load_in_4bit"):
        name = f"Q{name} {quantization.get('bnb_4bit_quant_type', 'nf4')}"
    return f"{name} r{lora.get('r', '?')}"


def _damaged(
    paths: RunPaths, meta: dict[str, Any], *, alive: bool, newer: int | None = None
) -> RunSummary:
    state = derive_state(paths, alive=True) if alive else FAILED  # its trainer may not know
    why = "cannot be read" if paths.run_json.exists() else "is missing"
    text = (
        f"The run is damaged: {paths.run_json.name} {why}, so its settings, data and base model "
        "are unknown. Its other files are untouched; delete the run or put the file back."
    )
    if newer:
        text = (
            f"The run was made by a newer LoRA Studio (format {newer}, this one knows "
            f"{SCHEMA_VERSION}). Nothing of it was changed; update LoRA Studio to use it."
        )
    return RunSummary(
        id=paths.id, name=str(meta.get("name") or paths.id), notes=str(meta.get("notes") or ""),
        state=state, created=created_of(paths.id), model_name="", method="", dataset_name="",
        step=0, total_steps=0,
        loss=None, eval_loss=None, best_step=None, peak_bytes=None, peak_kind="RSS",
        duration_s=None, verdict="damaged",
        error={"type": "StoreError", "text": text, "what": text, "remedy": None},
        read_only=True, config={}, exit=None, state_record={}, damaged=text,
    )  # fmt: skip


def unreadable(file: Path) -> bool:
    """Whether a file is there and is no JSON object."""
    return file.exists() and read_json(file) is None


def _damage_note(paths: RunPaths) -> str:
    """Which small files of a run are there and cannot be read, and what is missing for it."""
    files = {
        paths.exit_json: "how it ended is unknown",
        paths.state_json: "its last state is unknown",
        paths.meta_json: "its name and notes are lost",
        paths.process_json: "its process is unknown",
    }
    found = [f"{file.name} ({lost})" for file, lost in files.items() if unreadable(file)]
    return f"Damaged and not readable: {', '.join(found)}. The rest is sound." if found else ""


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
