"""HTML of a run's memory: what each phase was predicted to take, item by item, and what it took.

Owns the words and the drawing: two bars a phase on one scale, a legend with the sizes, one sentence
on this run and one on the device. No script: the live view puts it in as it is, and everything in
it is escaped. What is missing in a record is left out; without one there is nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.core.run_memory import (
    EVALUATION,
    HOST,
    LOADING,
    SAMPLING,
    SAVING,
    TRAINING,
    Bar,
    Part,
    RunMemory,
)
from studio.ui.text import escape, gib

if TYPE_CHECKING:
    from studio.services.measured_memory import RunView

PHASE_WORDS = {
    LOADING: "Loading", TRAINING: "Training", EVALUATION: "Evaluation",
    SAMPLING: "Sample answers", SAVING: "Saving",
}  # fmt: skip
DAMAGED = "The memory record of this run is damaged and cannot be shown."
_DURING = {
    LOADING: "while loading", TRAINING: "in training", EVALUATION: "in an evaluation",
    SAMPLING: "while answering the sample prompts", SAVING: "while saving",
}  # fmt: skip
_CLOSE = 0.005  # a smaller difference is none


def memory_html(view: RunView) -> str:
    """The whole part; "" where a run has no record."""
    if view.damaged:
        return f"<p class='muted'>{DAMAGED}</p>"
    record = view.record
    if record is None or not record.bars():
        return ""
    bars = record.bars()
    scale = max(max(bar.predicted_bytes, bar.measured_bytes) for bar in bars)
    if not scale:
        return ""
    rows = "".join(_phase(bar, scale) for bar in bars)
    lines = "".join(
        f"<p class='rm-line'>{escape(text)}</p>" for text in (run_sentence(record), view.sentence)
        if text
    )  # fmt: skip
    return (
        "<div class='rm'><div class='chart-head'><h3>Memory: predicted and measured</h3>"
        f"<p class='muted'>{escape(_where(record))}</p></div>{lines}"
        f"<div class='rm-rows'>{rows}</div>{_legend(bars)}</div>"
    )


def run_sentence(record: RunMemory) -> str:
    """For example "Predicted 1.3 GiB (1.1 to 1.5), measured 1.2 GiB in training: 5 % less than
    predicted."."""
    peak, found = record.peak_bytes, record.predicted
    if peak is None:
        return ""
    when = _DURING[record.peak_phase or TRAINING]
    measured = f"measured {gib(peak, 2)} {when}"
    if found is None:
        why = record.no_estimate.rstrip(".")
        return f"{measured.capitalize()}. " + (f"No estimate: {why}." if why else "No estimate.")
    if found.unknown:
        missing = ", ".join(found.unknown)
        return f"At least {gib(found.expected, 2)} predicted, {missing} unknown; {measured}."
    said = f"Predicted {gib(found.expected, 2)} ({gib(found.low, 2)} to {gib(found.high, 2)})"
    return f"{said}, {measured}: {_difference(peak / found.expected - 1)}."


def _difference(share: float) -> str:
    if abs(share) < _CLOSE:
        return "as predicted"
    return f"{abs(100 * share):.0f} % {'more' if share > 0 else 'less'} than predicted"


def _where(record: RunMemory) -> str:
    what = "main memory held (RSS)" if record.device == HOST else record.device
    return f"Peak of each phase, {what}; what one leaves behind counts in the next"


def _phase(bar: Bar, scale: int) -> str:
    name = escape(PHASE_WORDS[bar.phase])
    sides = "".join(
        _side(words, parts, size, scale)
        for words, parts, size in (
            ("predicted", bar.predicted, bar.predicted_bytes),
            ("measured", bar.measured, bar.measured_bytes),
        )
        if size
    )
    return f"<div class='rm-phase'><h4>{name}</h4><div class='rm-sides'>{sides}</div></div>"


def _side(words: str, parts: tuple[Part, ...], size: int, scale: int) -> str:
    told = ", ".join(f"{part.title} {gib(part.bytes, 2)}" for part in parts)
    pieces = "".join(
        f"<i data-part='{escape(part.name)}' style='width:{100 * part.bytes / scale:.3f}%' "
        f"title='{escape(part.title)}: {gib(part.bytes, 2)}'></i>"
        for part in parts
    )
    label = f"{words}: {gib(size, 2)}" + (f" ({told})" if len(parts) > 1 else "")
    return (
        f"<div class='rm-side' data-side='{words}'>"
        f"<div class='rm-bar' role='img' aria-label='{escape(label)}'>{pieces}</div>"
        f"<span>{words} <b>{gib(size, 2)}</b></span></div>"
    )


def _legend(bars: list[Bar]) -> str:
    """Each piece of a side once, with its size in the largest bar that has it."""
    return "".join(
        _list(words, parts)
        for words, parts in (
            ("predicted", [part for bar in bars for part in bar.predicted]),
            ("measured", [part for bar in bars for part in bar.measured]),
        )
        if parts
    )


def _list(words: str, parts: list[Part]) -> str:
    largest: dict[str, Part] = {}
    for part in parts:
        if part.name not in largest or part.bytes > largest[part.name].bytes:
            largest[part.name] = part
    items = "".join(
        f"<li data-part='{escape(part.name)}'>{escape(part.title)} <b>{gib(part.bytes, 2)}</b></li>"
        for part in largest.values()
    )
    return f"<div class='rm-legend'><span>{words}</span><ul>{items}</ul></div>"
