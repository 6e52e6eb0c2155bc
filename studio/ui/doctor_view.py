"""The out-of-memory doctor in the live view: what was asked, what was free, what would fit, and
"Apply and retry".

Owns the HTML; everything in it is escaped. What fits is worked out by `services.memory_doctor`; the
button sends the key of a choice, never settings. Knows no gradio: the routes, which need this, are
imported before it is decided where gradio keeps files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.core.out_of_memory import size_text
from studio.core.rescue import value_text
from studio.ui.text import escape

if TYPE_CHECKING:
    from studio.core.fit_memory import Change
    from studio.core.rescue import Option
    from studio.services.memory_doctor import Diagnosis

_QUANTIZED = "It was learned on the base in full precision: the loss may rise a little at first."


def doctor_html(diagnosis: Diagnosis, *, can_retry: bool = True) -> str:
    """The panel. `can_retry`: whether this studio may start runs."""
    notes = "".join(f"<p class='doc-note'>{escape(note)}.</p>" for note in diagnosis.notes)
    return (
        f"<div class='doc'><h3>Out of memory</h3><p class='doc-what'>{escape(diagnosis.sentence)}."
        f"</p><dl class='doc-facts'>{_facts(diagnosis)}</dl>{notes}"
        f"{_choices(diagnosis, can_retry)}</div>"
    )


def _facts(diagnosis: Diagnosis) -> str:
    fault = diagnosis.fault
    sizes = (
        ("Asked for", fault.asked_bytes),
        ("Free then", fault.free_bytes),
        ("Held by the run", fault.used_bytes),
        ("It could have had", diagnosis.budget_bytes),
        ("Estimate before", diagnosis.predicted_bytes),
    )
    return "".join(
        f"<div><dt>{title}</dt><dd>{size_text(size)}</dd></div>"
        for title, size in sizes if size is not None
    )  # fmt: skip


def _choices(diagnosis: Diagnosis, can_retry: bool) -> str:
    if not diagnosis.options:
        return ""
    rows = "".join(
        _row(option, chosen=number == 0, warm=diagnosis.step > 0)
        for number, option in enumerate(diagnosis.options)
    )
    begin = f"<p class='doc-begin'>{escape(diagnosis.begins)}.</p>"
    button = "<button type='button' class='act primary a-rescue'>Apply and retry</button>"
    return (
        "<fieldset class='doc-options'><legend>What would fit, cheapest first</legend>"
        f"{rows}</fieldset><div class='doc-go'>{begin}{button if can_retry else ''}</div>"
    )


def _row(option: Option, *, chosen: bool, warm: bool) -> str:
    checked = " checked" if chosen else ""
    title = option.title[:1].upper() + option.title[1:]
    parts = "".join(f"<li>{_change(change)}</li>" for change in option.changes)
    warn = f"<span class='doc-warn'>{_QUANTIZED}</span>" if option.quantizes and warm else ""
    return (
        f"<label class='doc-option'><input type='radio' name='rescue' "
        f"value='{escape(option.key)}'{checked}><span class='doc-text'><b>{escape(title)}"
        f"</b><span class='doc-need'>then needs up to {size_text(option.needs_bytes)}</span>"
        f"<ul>{parts}</ul>{warn}</span></label>"
    )


def _change(change: Change) -> str:
    values = ", ".join(f"{path} = {value_text(value)}" for path, value in change.values.items())
    lost = f"; cuts {change.lost_rows:,} more rows" if change.lost_rows > 0 else ""
    saved = f"saves {size_text(max(0, change.saved_bytes))}"
    return f"{escape(saved)}, {escape(change.speed)}{lost} <code>{escape(values)}</code>"
