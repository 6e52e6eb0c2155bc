"""Will it fit? The card on top of the Train tab: layout and handlers.

Owns the events. The bar answers each change of a knob by arithmetic (`memory_bar`); where a model's
shapes are not counted yet, the page's script asks for the count and then for the bar again, so no
knob waits for it. The proposal and the tables may count too; each has an event of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import ConfigError, StudioError
from studio.ui.errors import shows_errors, warn
from studio.ui.form import Form, FreeDropdown
from studio.ui.header import asset
from studio.ui.memory_bar import HERE, measured
from studio.ui.memory_fit import LOOKING, applied, fit_of
from studio.ui.memory_tables import tables_of

if TYPE_CHECKING:
    from studio.services.studio import Studio
    from studio.ui.memory_bar import Bars

SIZES_GIB = (8, 12, 16, 24, 48, 6, 10, 32, 80)
PAGES = 8  # pages whose counts, proposals or tables are worked on at a time
APPLIED = (
    "<p class='good fit-done' role='status'>Taken into the form. The bar above is of these "
    "settings.</p>"
)


@dataclass(frozen=True)
class MemoryPanel:
    """The card's components."""

    bar: gr.HTML
    target: FreeDropdown
    fit: gr.Button
    proposal: gr.HTML
    other: gr.Accordion
    tables: gr.HTML


def build_memory_panel(studio: Studio) -> MemoryPanel:
    """Lay the card out."""
    with gr.Column(elem_classes="card", elem_id="memory-card"):
        bar = gr.HTML(
            "", html_template=asset("memory.html"), js_on_load=asset("memory.js"), elem_id="memory"
        )
        with gr.Row(elem_classes="tight", elem_id="memory-ask", equal_height=False):
            gr.HTML(
                "<p class='hint'>Hold it against this machine, a card or a size (11.5 GiB):</p>",
                elem_id="memory-ask-words",
            )
            target = FreeDropdown(
                target_choices(studio), value=HERE, label="Hold it against", interactive=True,
                allow_custom_value=True, elem_id="memory-target", container=False,
            )  # fmt: skip
            fit = gr.Button("Fit it for me", elem_id="memory-fit-button")
        proposal = gr.HTML("", js_on_load=asset("memory_fit.js"), elem_id="memory-fit")
        with gr.Accordion(
            "Other cards and methods, and what rank does", open=False, elem_classes="quiet",
            elem_id="memory-other",
        ) as other:  # fmt: skip
            tables = gr.HTML("", elem_id="memory-tables")
    return MemoryPanel(bar, target, fit, proposal, other, tables)


def target_choices(studio: Studio) -> list[tuple[str, str]]:
    """This machine, the usual sizes, then the cards by name: of the names that a typed text is part
    of, the box takes the first."""
    sizes = [("This machine", HERE)] + [(f"{size} GB", f"{size} GiB") for size in SIZES_GIB]
    try:
        cards = studio.memory.cards().values()
    except ConfigError as error:  # the user's own file is wrong: its sentence stands in the list
        return [*sizes, (f"No cards: {error}", HERE)]
    return sizes + [
        (f"{card.name} ({card.vram_bytes / 2**30:.0f} GB)", card.name)
        for card in sorted(cards, key=lambda card: card.name)
    ]


@dataclass(frozen=True)
class MemoryDesk:
    """What the handlers share.

    Attributes:
        knobs: the form's controls by keyword, target modules among them.
        settings: outputs that take a form's values; to_form: the updates for nested values.
    """

    studio: Studio
    panel: MemoryPanel
    form: Form
    bars: Bars
    knobs: dict[str, Any]
    settings: list[Any]
    to_form: Callable[[dict[str, Any]], list[Any]]

    def asked(self) -> dict[str, Any]:
        """Inputs of nearly every handler."""
        return {**self.knobs, "target": self.panel.target}


def wire_memory_panel(desk: MemoryDesk, page: gr.Tab) -> None:
    """Connect the card with the form. `page`: the gr.Tab it stands in."""
    _wire_bar(desk, page)
    _wire_fit(desk)
    _wire_tables(desk)


def _wire_bar(desk: MemoryDesk, page: gr.Tab) -> None:
    studio, panel, form = desk.studio, desk.panel, desk.form
    private: dict[str, Any] = {
        "inputs_kwargs": desk.asked(), "outputs": panel.bar, "show_progress": "hidden",
        "trigger_mode": "always_last", "api_visibility": "private",
    }  # fmt: skip

    @shows_errors
    def on_bar(target: Any, **raw: Any) -> str:
        return json.dumps(desk.bars.of(form, raw, target), separators=(",", ":"))

    @shows_errors
    def on_measure(target: Any, **raw: Any) -> str:
        return json.dumps(measured(studio, form, raw, target))

    moved = [control.change for control in (*desk.knobs.values(), panel.target)]
    gr.on([*moved, page.select], on_bar, queue=False, **private)
    panel.bar.refresh(on_bar, queue=False, **private)
    panel.bar.measure(on_measure, concurrency_limit=PAGES, **private)


def _wire_fit(desk: MemoryDesk) -> None:
    studio, panel, form = desk.studio, desk.panel, desk.form

    @shows_errors
    def on_fit(target: Any, **raw: Any) -> Iterator[str]:
        yield LOOKING
        yield fit_of(studio, form, desk.bars.book, raw, target)

    @shows_errors
    def on_apply(event: gr.EventData, **raw: Any) -> list[Any]:
        try:
            return [APPLIED, *desk.to_form(applied(form, raw, event))]
        except StudioError as error:
            warn(error)
            return [gr.skip() for _ in range(1 + len(desk.settings))]

    panel.fit.click(
        on_fit, inputs_kwargs=desk.asked(), outputs=panel.proposal, show_progress="hidden",
        concurrency_limit=PAGES, api_visibility="private",
    )  # fmt: skip
    panel.proposal.apply(
        on_apply, inputs_kwargs=desk.knobs, outputs=[panel.proposal, *desk.settings],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip


def _wire_tables(desk: MemoryDesk) -> None:
    @shows_errors
    def on_tables(target: Any, **raw: Any) -> Iterator[str]:
        yield from tables_of(desk.studio, desk.form, desk.bars.book, raw, target)

    asked: dict[str, Any] = {
        "inputs_kwargs": desk.asked(), "outputs": desk.panel.tables, "show_progress": "hidden",
        "trigger_mode": "always_last", "concurrency_limit": PAGES, "api_visibility": "private",
    }  # fmt: skip
    desk.panel.other.expand(on_tables, **asked)
    # When the knobs have come to rest and the accordion is open: the page's script knows.
    desk.panel.bar.settled(on_tables, **asked)
