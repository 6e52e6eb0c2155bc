"""Fit it for me: the proposal as the page shows it, and its values taken into the form.

Owns the words, the drawing of the steps (what is still needed after each, against what is free) and
the check of what "Apply" sends. The search is `services.memory`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.config_io import merge
from studio.core.errors import ConfigError, StudioError
from studio.ui.form import Form
from studio.ui.memory_bar import Question, facts_of
from studio.ui.text import escape, gib, plural
from studio.ui.train_summary import config_values

if TYPE_CHECKING:
    from studio.core.fit_memory import Change, Proposal
    from studio.services.memory import Device
    from studio.services.studio import Studio
    from studio.ui.data_look import TokenBook

LOOKING = (
    "<p class='hint' role='status'>Looking for settings that fit. Kinds of steps that this model "
    "was not measured with take a few seconds each.</p>"
)
# What a proposal may change; "Apply" takes nothing else from the browser.
LADDER = (
    "train.packing", "train.activation_checkpointing", "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps", "train.optim", "quantization.load_in_4bit",
    "quantization.bnb_4bit_use_double_quant", "train.max_length",
)  # fmt: skip


def fit_of(studio: Studio, form: Form, book: TokenBook, raw: Mapping[str, Any], target: Any) -> str:
    """The proposal for the form as it is. Takes seconds where something must be counted."""
    try:
        asked = Question.of(studio, form, raw, target)
        model_id = asked.config.model.id
        facts, _ = facts_of(studio, book, asked.config)
        proposal = studio.memory.propose(model_id, asked.config, facts=facts, card=asked.card)
        device = studio.memory.estimate(
            model_id, proposal.config, facts=facts, card=asked.card
        ).device
    except StudioError as error:
        return f"<p class='failure' role='alert'>{escape(error)}</p>"
    return fit_html(form, asked, proposal, device, counted=facts.summary is not None)


def fit_html(
    form: Form, asked: Question, proposal: Proposal, device: Device, *, counted: bool
) -> str:
    """The answer, each step with what it saves and costs, and the button that takes them over."""
    free = device.free_bytes or 0
    before = proposal.needs_bytes + sum(change.saved_bytes for change in proposal.changes)
    words, tone = answer_words(proposal, device, free)
    steps, left = [], before
    for change in proposal.changes:
        left -= change.saved_bytes
        steps.append(_step_html(form, change, left, max(before, free), free, counted))
    start = _track(before, max(before, free), free)
    drawn = (
        f"<ol class='fit-steps'><li class='fit-start'><div><b>As set</b><span>needs up to "
        f"{gib(before)}</span></div>{start}</li>{''.join(steps)}</ol>"
        if steps else ""
    )  # fmt: skip
    values: dict[str, Any] = {}
    for change in proposal.changes:
        values |= change.values
    apply = (
        f"<button type='button' class='act primary fit-apply' "
        f"data-values='{escape(json.dumps(values))}'>Apply</button>"
        if values and proposal.fits else ""
    )  # fmt: skip
    return (
        f"<section class='fit' data-key='{asked.key}' data-tone='{tone}'>"
        f"<p class='fit-answer' role='status'>{escape(words)}</p>{drawn}{apply}"
        "<p class='hint fit-stale'>The settings have changed since: ask again.</p></section>"
    )


def answer_words(proposal: Proposal, device: Device, free: int) -> tuple[str, str]:
    """(sentence, tone). All figures are the upper end of the estimate: so much must be free."""
    where = f"{gib(free)} free on {device.name}"
    if not proposal.fits:
        missing = gib(proposal.needs_bytes - free)
        return (
            f"Nothing fits: even with the smallest settings {missing} are missing ({where}). "
            "Choose a smaller model or a lower rank.", "bad",
        )  # fmt: skip
    spare = gib(free - proposal.needs_bytes)
    if not proposal.changes:
        return f"It fits as it is, with {spare} to spare at the worst ({where}).", "ok"
    steps = plural(len(proposal.changes), "change")
    return f"Fits after {steps}, with {spare} to spare at the worst ({where}).", "ok"


def _step_html(form: Form, change: Change, left: int, scale: int, free: int, counted: bool) -> str:
    """One change: what it sets, saves and costs."""
    cost = change.speed
    if "train.max_length" in change.values:
        cut = (
            f"{plural(change.lost_rows, 'more row')} cut" if counted
            else "rows cut: not known, count the tokens in the Data tab"
        )  # fmt: skip
        cost = f"{cost}; {cut}"
    title = change.title[:1].upper() + change.title[1:]
    saved = (
        f"saves {gib(change.saved_bytes)}" if change.saved_bytes >= 0
        else f"takes {gib(-change.saved_bytes)} more"
    )  # fmt: skip
    sets = ", ".join(
        f"{form.knobs[path].title}: {_said(value)}" for path, value in change.values.items()
    )
    return (
        f"<li><div><b>{escape(title)}</b><span>{saved} &middot; {escape(cost)}</span></div>"
        f"{_track(left, scale, free)}<p class='muted'>{escape(sets)}</p></li>"
    )


def _track(need: int, scale: int, free: int) -> str:
    """What is still needed, against what is free (the line)."""
    share, line = 100 * need / max(1, scale), 100 * free / max(1, scale)
    fits = "yes" if need <= free else "no"
    return (
        f"<div class='fit-track' data-fits='{fits}'><i style='width:{share:.2f}%'></i>"
        f"<u style='left:{min(line, 100):.2f}%'></u><em>{gib(need)}</em></div>"
    )


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def applied(form: Form, raw: Mapping[str, Any], event: gr.EventData) -> dict[str, Any]:
    """The form's values with those of a proposal. Raises ConfigError for what is none."""
    data = event._data
    values = data.get("values") if isinstance(data, dict) else None
    if not isinstance(values, dict) or not values or not set(values) <= set(LADDER):
        raise ConfigError(
            "These are no values of a proposal", remedy="Ask for a proposal again"
        )  # fmt: skip
    changes: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        changes.setdefault(section, {})[name] = value
    return merge(config_values(form, dict(raw)), changes)
