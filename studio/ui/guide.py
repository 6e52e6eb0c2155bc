"""The guide "Which knobs?" in the page: folded up, filled with one's own numbers when opened.

Owns the component and its handlers; the text is `guide_text`'s, the numbers `guide_numbers`'.
Opening it counts nothing that takes seconds; the button does. What the memory bar has counted
meanwhile is filled in when it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import StudioError
from studio.ui.data_look import TokenBook
from studio.ui.errors import shows_errors
from studio.ui.guide_numbers import held_against, own_numbers
from studio.ui.guide_text import Here, guide_html, here_html, read_guide
from studio.ui.memory_bar import Question, facts_of
from studio.ui.train_summary import steps_of

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.services.memory import MemoryAnswer
    from studio.services.studio import Studio
    from studio.ui.form import Form
    from studio.ui.train_tab import TrainTab

NOT_KNOWN = (
    "The shapes of this model are being counted: its numbers follow by themselves, or press the "
    "button below."
)


@dataclass(frozen=True)
class Guide:
    """The guide's components."""

    fold: gr.Accordion
    text: gr.HTML
    count: gr.Button


def build_guide() -> Guide:
    """The folded guide; without numbers until it is opened."""
    with gr.Accordion(
        "Which knobs? A guide with sources", open=False, elem_id="guide", elem_classes="quiet boxed"
    ) as fold:
        text = gr.HTML(guide_html(read_guide()))
        count = gr.Button(
            "Work the numbers out for these settings (up to a minute)", size="sm",
            elem_id="guide-count",
        )  # fmt: skip
    return Guide(fold, text, count)


def wire_guide(
    studio: Studio, guide: Guide, tab: TrainTab, form: Form, book: TokenBook | None = None
) -> None:
    """Fill the guide when it is opened and when the button asks for what takes seconds.

    Args:
        book: the tokens of data sets as far as they were counted.
    """
    asked = {**form.inputs(), "targets": tab.targets, "modules": tab.modules,
             "target": tab.memory.target}  # fmt: skip
    known = book or TokenBook()

    @shows_errors
    def on_open(target: Any, **raw: Any) -> str:
        return filled(studio, form, known, raw, target, measure=False)

    @shows_errors
    def on_count(target: Any, **raw: Any) -> str:
        return filled(studio, form, known, raw, target, measure=True)

    for filling in (guide.fold.expand, tab.memory.bar.refresh):
        filling(
            on_open, inputs_kwargs=asked, outputs=guide.text, show_progress="hidden",
            trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
    guide.count.click(
        on_count, inputs_kwargs=asked, outputs=guide.text, show_progress="minimal",
        api_visibility="private",
    )  # fmt: skip


def filled(
    studio: Studio, form: Form, book: TokenBook, raw: Mapping[str, Any], target: Any,
    *, measure: bool,
) -> str:  # fmt: skip
    """The guide for a form's values. Where these say nothing, the sentence why stands above it."""
    try:
        question = Question.of(studio, form, raw, target)
        if not measure and not studio.memory.is_known(question.config.model.id):
            return here_html(Here(NOT_KNOWN)) + guide_html(read_guide())
        return guide_of(studio, question, book, measure=measure)
    except StudioError as error:
        return here_html(Here(str(error))) + guide_html(read_guide())


def guide_of(studio: Studio, question: Question, book: TokenBook, *, measure: bool) -> str:
    """The guide with the numbers of a question. Raises StudioError."""
    config = question.config
    facts, of_rows = facts_of(studio, book, config)

    def ask(wanted: RunConfig) -> MemoryAnswer:
        return studio.memory.estimate(
            config.model.id, wanted, facts=facts, card=question.card, measure=measure
        )

    here = own_numbers(ask, config, steps_of(studio, config), of_rows)
    top = Here(held_against(ask(config), config.model.id))
    return here_html(top) + guide_html(read_guide(), here)
