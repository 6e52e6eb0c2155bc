"""How an attempt ends: words for its phases, the grace of a stop, and why a trainer vanished.

Pure: the evidence is handed in. A trainer that ends by itself writes `exit.json`; one that was
killed cannot, so its end is told from what it last wrote and from what the system counted. Nothing
here makes a killed run anything else than interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PHASE_WORDS = {
    "loading": "while loading the model",
    "data": "while preparing the data",
    "first_step": "in the first step",
    "training": "in training",
    "eval": "in an evaluation",
    "sampling": "while answering sample prompts",
    "saving": "while saving",
}
OUT_OF_MEMORY, RESTARTED, KILLED, CRASHED, VANISHED = (
    "out_of_memory", "restarted", "killed", "crashed", "vanished",
)  # fmt: skip

LEAST_GRACE_S = 15.0
_GRACE_MICRO_BATCHES = 3
_GRACE_SAVES = 2
_SIGKILL = 9
_SHORT_FRAC = 0.05  # of all memory: with less than that left, a kill is laid to the kernel
_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV", 15: "SIGTERM"}


def stop_grace_s(micro_batch_s: float | None, last_save_s: float | None) -> float:
    """Seconds that a stop may take: max(15 s, 3 micro-batches + 2 times the last save).

    A stop waits for the micro-batch under way and saves the last completed step. Both durations are
    in state.json; None: not measured yet.
    """
    batch, save = max(0.0, micro_batch_s or 0.0), max(0.0, last_save_s or 0.0)
    return max(LEAST_GRACE_S, _GRACE_MICRO_BATCHES * batch + _GRACE_SAVES * save)


@dataclass(frozen=True)
class OomKills:
    """How often the kernel ended a process for want of memory; None: not counted here.

    Args:
        group: `oom_kill` of this control group's memory.events (cgroup v2).
        system: `oom_kill` of /proc/vmstat, since boot.
    """

    group: int | None = None
    system: int | None = None

    @classmethod
    def from_dict(cls, values: Any) -> OomKills:
        """From process.json, whatever stands there."""
        if not isinstance(values, Mapping):
            return cls()
        counts = {k: v for k, v in values.items() if k in ("group", "system") and type(v) is int}
        return cls(**counts)


@dataclass(frozen=True)
class Evidence:
    """What is known of a trainer that left no exit.json. None: unknown.

    Args:
        phase: of state.json, its last word.
        step: of state.json.
        exit_code: of the process, negative for a signal; only who started it knows.
        boot_then, boot_now: boot ids of the attempt and of now.
        kills_before, kills_after: as the attempt began, and once it was gone.
        rss_bytes, available_bytes, total_bytes: host memory at its last reading.
        limit_bytes: of memory, of its control group: of a container, a service or a job.
        stop_now: it had been told to end at once, and is killed if it does not.
    """

    phase: str = ""
    step: int = 0
    exit_code: int | None = None
    boot_then: str | None = None
    boot_now: str | None = None
    kills_before: OomKills = OomKills()
    kills_after: OomKills = OomKills()
    rss_bytes: float | None = None
    available_bytes: float | None = None
    total_bytes: float | None = None
    limit_bytes: float | None = None
    stop_now: bool = False


@dataclass(frozen=True)
class Vanished:
    """Why a trainer vanished: `kind` for programs, `text` for people, `remedy` for what to do."""

    kind: str
    text: str
    remedy: str

    def to_dict(self) -> dict[str, str | None]:
        """As the errors of exit.json."""
        return {
            "type": "OutOfMemoryError" if self.kind == OUT_OF_MEMORY else "StudioError",
            "text": f"{self.text}. {self.remedy}.", "what": self.text, "value": None,
            "allowed": None, "remedy": self.remedy, "kind": self.kind,
        }  # fmt: skip


def explain(seen: Evidence) -> Vanished:
    """Tell why a trainer is gone without a word, from the strongest evidence there is."""
    where = PHASE_WORDS.get(seen.phase, "")
    if seen.step > 0 and seen.phase in ("training", "first_step"):
        where = f"{where} after step {seen.step}"
    go_on = "Resume the run: it goes on from its last checkpoint"
    if seen.boot_then and seen.boot_now and seen.boot_then != seen.boot_now:
        return Vanished(RESTARTED, _sentence("The computer was restarted", where), go_on)
    if seen.stop_now and seen.exit_code in (None, -_SIGKILL):
        text = "The trainer did not end by itself after Stop now, so it was killed"
        return Vanished(KILLED, _sentence(text, where), go_on)
    if certainty := _was_out_of_memory(seen):
        text = f"{_whose_memory(seen)}, and the system {certainty} the trainer"
        first = "Close other programs" if seen.limit_bytes is None else "Raise that limit"
        return Vanished(
            OUT_OF_MEMORY, _sentence(text, where) + _figures(seen),
            f"{first}, choose a smaller model, or halve "
            "train.per_device_train_batch_size or train.max_length; then start or resume the run",
        )  # fmt: skip
    if seen.exit_code == -_SIGKILL:
        text = "Somebody or something killed the trainer (SIGKILL)"
        return Vanished(KILLED, _sentence(text, where), go_on)
    if seen.exit_code is not None and seen.exit_code < 0:
        name = _SIGNALS.get(-seen.exit_code, f"signal {-seen.exit_code}")
        text = f"The trainer crashed ({name})"
        return Vanished(CRASHED, _sentence(text, where), f"Look at the log of the run. {go_on}")
    if seen.exit_code:
        text = f"The trainer ended with exit code {seen.exit_code} before it could say why"
        return Vanished(CRASHED, _sentence(text, where), f"Look at the log of the run. {go_on}")
    text = "The trainer is gone and left no word: it was killed, or its disk took no more data"
    return Vanished(VANISHED, _sentence(text, where), go_on)


def _was_out_of_memory(seen: Evidence) -> str:
    """ "killed", "probably killed" or "". The kernel kills with SIGKILL and nothing else: another
    exit code speaks against it. The count of the whole system may be of another process."""
    if seen.exit_code not in (None, -_SIGKILL):
        return ""
    if _grew(seen.kills_before.group, seen.kills_after.group):
        return "killed"
    is_short = (
        seen.available_bytes is not None
        and bool(seen.total_bytes)
        and seen.available_bytes < _SHORT_FRAC * (seen.total_bytes or 0)
    )
    if _grew(seen.kills_before.system, seen.kills_after.system):
        return "killed" if is_short or seen.exit_code == -_SIGKILL else "probably killed"
    is_counted = None not in (seen.kills_before.system, seen.kills_after.system)
    return "probably killed" if is_short and not is_counted else ""


def _whose_memory(seen: Evidence) -> str:
    """With a limit the computer itself may have plenty left."""
    if seen.limit_bytes is None:
        return "The computer ran out of main memory (RAM)"
    limit = f"{seen.limit_bytes / 2**30:.1f} GiB"
    return f"Main memory (RAM) ran out: the container or control group may take {limit}"


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _sentence(text: str, where: str) -> str:
    return f"{text} {where}".rstrip()


def _figures(seen: Evidence) -> str:
    """The last reading, where there is one."""
    gib = 2**30
    parts = []
    if seen.rss_bytes:
        parts.append(f"the trainer used {seen.rss_bytes / gib:.1f} GiB")
    if seen.available_bytes is not None and seen.total_bytes:
        parts.append(
            f"{seen.available_bytes / gib:.1f} of {seen.total_bytes / gib:.1f} GiB were free"
        )
    return f" (a moment before, {' and '.join(parts)})" if parts else ""
