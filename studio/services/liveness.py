"""What the clock says of a live run: whether it stalled, and how long a stop may still take.

Pure: it gets what the run's files say and the time. A summary that was read once may be old news
a second later, so these are worked out at each look and never kept.

When a run counts as stalled. In training it is late after max(60 s, 20 times its median step).
Loading, preparing data, the first step, evaluating, answering prompts and saving may take long
for good reasons; there the trainer's heartbeat (a line of state.json, once a second) shows that it
lives, and only its silence for 60 s counts, or half an hour in one such phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from studio.core.runs import (
    LIVE_STATES,
    PAUSING,
    RUNNING,
    STOPPING,
    RunPaths,
    pending_commands,
)

STALLED_S = 60.0
STALLED_STEPS = 20
LONG_PHASE_S = 1800.0
STOP_NOW_S = 15.0  # between SIGTERM and SIGKILL
_TRAINING, _BEFORE_TRAINING = "training", ("loading", "data")
_REMEDY = (
    "It may wait for the disk, the GPU or memory. Stop ends it after the current step if it goes "
    "on; Stop now ends it in any case, and Resume continues from its last checkpoint. "
    "log.txt in the run's folder may say why"
)


@dataclass(frozen=True)
class Stalled:
    """A live run that does not move. `since`: ISO time of its last sign; `text`: what to say."""

    since: str
    silent_s: int
    text: str
    remedy: str = _REMEDY + "."


@dataclass(frozen=True)
class Ending:
    """A live run that was asked to end. `left_s`: seconds of grace that remain, 0 = over."""

    verb: str
    asked: str
    grace_s: int
    left_s: int
    text: str


def find_stall(
    state: str, record: Mapping[str, Any], step_s: float | None, now: datetime
) -> Stalled | None:
    """Whether a run in `state`, with this state.json, is stalled.

    Args:
        step_s: median seconds of a step, None before there are two.
    """
    if state not in LIVE_STATES:
        return None
    beat = _moment(record.get("time"))
    moved = _moment(record.get("progress_time")) or beat
    if moved is None:
        return None
    if _is_training(record):
        late = (now - moved).total_seconds() > stall_limit_s(step_s)
    else:
        late = (now - moved).total_seconds() > LONG_PHASE_S or (
            beat is not None and (now - max(beat, moved)).total_seconds() > STALLED_S
        )
    if not late:
        return None
    silent_s = int((now - moved).total_seconds())
    clock = moved.astimezone().strftime("%H:%M:%S")
    return Stalled(
        moved.isoformat(timespec="seconds"), silent_s,
        f"Stalled since {clock} ({silent_s} s without a step).",
    )  # fmt: skip


def _is_training(record: Mapping[str, Any]) -> bool:
    """Between steps; right after an evaluation the state still names the phase before it."""
    phase = record.get("phase")
    return phase == _TRAINING or (record.get("state") == RUNNING and phase in _BEFORE_TRAINING)


def stall_limit_s(step_s: float | None) -> float:
    """Seconds without a step from which on a training counts as stalled."""
    return max(STALLED_S, STALLED_STEPS * (step_s or 0.0))


def find_ending(paths: RunPaths, grace_s: float, now: datetime) -> Ending | None:
    """What the current attempt was asked, acknowledged or not. For a run that lives."""
    waiting = {file for file, _ in pending_commands(paths)}
    asked: dict[str, float] = {}
    try:
        began = paths.process_json.stat().st_mtime
        for verb in ("stop_now", "stop", "pause"):
            times = [
                time_ for file in paths.commands.glob(f"*-{verb}.json")
                if (time_ := file.stat().st_mtime) >= began or file in waiting
            ]  # fmt: skip
            asked.update({verb: min(times)} if times else {})
    except OSError:
        return None  # not begun, or just deleted: nothing runs that could end
    for verb in ("stop_now", "stop", "pause"):
        if verb in asked:
            since = datetime.fromtimestamp(asked[verb], UTC)
            allowed_s = STOP_NOW_S if verb == "stop_now" else grace_s
            passed_s = max(0.0, (now - since).total_seconds())
            left_s = max(0, round(allowed_s - passed_s))
            text = _ending_text(verb, round(allowed_s), left_s)
            return Ending(verb, since.isoformat(), round(allowed_s), left_s, text)
    return None


def ending_state(ending: Ending) -> str:
    """The state that an order to end puts a living run into."""
    return PAUSING if ending.verb == "pause" else STOPPING


def _ending_text(verb: str, grace_s: int, left_s: int) -> str:
    if verb == "stop_now":
        if left_s:
            return f"Ending now; if it does not obey, it is killed in {left_s} s."
        return "Killing the training process; its last checkpoint stays."
    word = "Pauses" if verb == "pause" else "Stops"
    if left_s:
        return (
            f"{word} after the current step and saves, at most {left_s} s more (of {grace_s} s); "
            "then Stop now."
        )
    return (
        f"It did not end within {grace_s} s. Stop now ends it at once; what its last checkpoint "
        "holds is kept."
    )


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
