"""The guide "Which knobs?" in the page: folded up, filled with one's own numbers when opened.

Owns the component and its handlers; the text is `guide_text`'s, the numbers `guide_numbers`'.
Opening it counts nothing that takes seconds; the button does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.config_io import build_config
from studio.core.errors import StudioError
from studio.ui.errors import shows_errors
from studio.ui.guide_numbers import held_against, own_numbers
from studio.ui.guide_text import Here, guide_html, here_html, read_guide
from studio.ui.train_summary import config_values, steps_of

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.services.memory import MemoryAnswer
    from studio.services.studio import Studio
    from studio.ui.form import Form
    from studio.ui.train_tab import TrainTab


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
        count = gr.Button("Count for these settings", size="sm", elem_id="guide-count")
    return Guide(fold, text, count)


def wire_guide(studio: Studio, guide: Guide, tab: TrainTab, form: Form) -> None:
    """Fill the guide when it is opened and when the button asks for what takes seconds."""
    knobs = {**form.inputs(), "targets": tab.targets, "modules": tab.modules}

    @shows_errors
    def on_open(**raw: Any) -> str:
        return filled(studio, form, raw, measure=False)

    @shows_errors
    def on_count(**raw: Any) -> str:
        return filled(studio, form, raw, measure=True)

    gr.on(
        [guide.fold.expand, tab.models.model.change], on_open, inputs_kwargs=knobs,
        outputs=guide.text, show_progress="hidden", trigger_mode="always_last",
        api_visibility="private",
    )  # fmt: skip
    guide.count.click(
        on_count, inputs_kwargs=knobs, outputs=guide.text, show_progress="minimal",
        api_visibility="private",
    )  # fmt: skip


def filled(studio: Studio, form: Form, raw: dict[str, Any], *, measure: bool) -> str:
    """The guide for a form's values. Where these say nothing, the sentence why stands above it."""
    try:
        config = build_config(config_values(form, raw))
        if not measure and not studio.memory.is_known(config.model.id):
            why = "The shapes of this model are not counted yet: press the button below."
            return here_html(Here(why)) + guide_html(read_guide())
        return guide_of(studio, config, measure=measure)
    except StudioError as error:
        return here_html(Here(str(error))) + guide_html(read_guide())


def guide_of(studio: Studio, config: RunConfig, *, measure: bool) -> str:
    """The guide with the numbers of a configuration. Raises StudioError."""

    def ask(wanted: RunConfig) -> MemoryAnswer:
        return studio.memory.estimate(config.model.id, wanted, measure=measure)

    here = own_numbers(ask, config, steps_of(studio, config))
    top = Here(held_against(ask(config), config.model.id))
    return here_html(top) + guide_html(read_guide(), here)
