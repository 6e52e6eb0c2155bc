"""The page: header, welcome card and the four tabs, wired to the services.

`build_page` makes the blocks, `mount_options` what `gr.mount_gradio_app` needs for its looks.
The page holds no truth: every tab is read from the workspace's files, again at each opening.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import StoreError
from studio.services.store import check_usable
from studio.ui import chat_tab, data_tab, runs_tab, train_tab
from studio.ui.chat_tab import ChatTab, build_chat_tab, wire_chat_tab
from studio.ui.data_desk import Desk
from studio.ui.data_tab import DataTab, build_data_tab, wire_data_tab, wire_reopening
from studio.ui.errors import CheckedBlocks, event_text, shows_errors
from studio.ui.form import Abilities, Form
from studio.ui.form_memory import wire_form_memory
from studio.ui.guide import build_guide, wire_guide
from studio.ui.header import ASSETS, build_header
from studio.ui.memory_bar import Bars
from studio.ui.model_panel import model_choices, wire_model_panel
from studio.ui.runs_tab import RunsTab, build_runs_tab, wire_runs_tab
from studio.ui.theme import build_theme
from studio.ui.train_tab import TrainTab, build_train_tab, wire_memory, wire_train_tab
from studio.ui.welcome import FIRST_PRESET, Welcome, build_welcome

if TYPE_CHECKING:
    from studio.services.studio import Studio

TITLE = "LoRA Studio"
DATA, TRAIN, CHAT, RUNS = "data", "train", "chat", "runs"
# Before the first paint, so that a dark page does not flash white.
HEAD = """<meta name="color-scheme" content="light dark"><script>(() => {
const asked = new URLSearchParams(location.search).get('__theme');
const wanted = asked || localStorage.getItem('studio-theme');
if (wanted === 'dark' || wanted === 'light') addEventListener('DOMContentLoaded',
  () => document.body.classList.toggle('dark', wanted === 'dark'));
})()</script>"""


@dataclass(frozen=True)
class Page:
    """The parts that the wiring between tabs needs."""

    welcome: Welcome
    tabs: gr.Tabs
    data: DataTab
    train: TrainTab
    chat: ChatTab
    runs: RunsTab


def mount_options() -> dict[str, Any]:
    """Theme, styles and head for `gr.mount_gradio_app`."""
    styles = sorted(ASSETS.glob("*.css"))
    return {"theme": build_theme(), "css_paths": [str(path) for path in styles], "head": HEAD}


def build_page(studio: Studio, bars: Bars | None = None) -> gr.Blocks:
    """The blocks of the whole page. Takes no part in serving it.

    Args:
        bars: answers the memory bar; the route that a moved slider asks has the same one.
    """
    capabilities = studio.machine.capabilities()
    form = Form(Abilities.of(capabilities))
    with CheckedBlocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as blocks:
        build_header(capabilities, studio.notice)
        welcome = build_welcome(
            has_runs=bool(studio.runs.list()), can_write=not studio.settings.read_only
        )
        with gr.Tabs(selected=DATA, elem_id="tabs") as tabs:
            with gr.Tab("Data", id=DATA):
                data = build_data_tab(studio, form)
            with gr.Tab("Train", id=TRAIN) as train_page:
                train = build_train_tab(studio, form)
                guide = build_guide()
            with gr.Tab("Chat", id=CHAT) as chat_page:
                chat = build_chat_tab(studio)
            with gr.Tab("Runs", id=RUNS) as runs_page:
                runs = build_runs_tab(studio)
        page = Page(welcome, tabs, data, train, chat, runs)
        desk = _wire_tabs(studio, page, form, train_page, bars or Bars(studio))
        wire_guide(studio, guide, train, form, desk.book)
        _wire_ways_in(studio, page, form)
        _wire_ways_between(studio, page, form)
        _wire_opening(studio, page, blocks, chat_page, runs_page)
        wire_reopening(desk, wire_form_memory(studio, train, form, blocks))
    return blocks


def _wire_tabs(studio: Studio, page: Page, form: Form, train_page: gr.Tab, bars: Bars) -> Desk:
    wire_memory(studio, page.train, form, train_page, bars)
    wire_model_panel(studio, page.train.models)
    desk = wire_data_tab(studio, page.data, form, model=page.train.models.model, book=bars.book)
    wire_train_tab(studio, page.train, form, train_page)
    wire_chat_tab(studio, page.chat)
    wire_runs_tab(studio, page.runs)
    return desk


def _wire_ways_in(studio: Studio, page: Page, form: Form) -> None:
    """The three buttons of the welcome card."""
    private: dict[str, Any] = {"api_visibility": "private"}

    @shows_errors
    def on_first(request: str) -> list[Any]:
        run_id = train_tab.start_first_run(studio, request)
        preset = train_tab.preset_of(studio, FIRST_PRESET)
        values = train_tab.preset_values(studio, preset, None)
        settings = train_tab.settings_of(studio, form, values)
        slim = gr.update(elem_classes=["welcome", "slim"])
        return [
            gr.Tabs(selected=TRAIN),
            run_id,
            secrets.token_hex(8),
            FIRST_PRESET,
            slim,
            *settings,
        ]

    page.welcome.start.click(
        on_first, inputs_kwargs={"request": page.train.request},
        outputs=[
            page.tabs, page.train.live, page.train.request, page.train.preset, page.welcome.card,
            *page.train.settings(form),
        ],
        show_progress="hidden", **private,
    )  # fmt: skip
    page.welcome.own_file.click(
        lambda: gr.Tabs(selected=DATA), None, page.tabs, queue=False, **private
    )
    page.welcome.look.click(lambda: gr.Tabs(selected=RUNS), None, page.tabs, queue=False, **private)


def _wire_ways_between(studio: Studio, page: Page, form: Form) -> None:
    """From a run to its live view, to the chat, and back to its settings."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    chosen = {"run_id": page.runs.chosen}
    to_chat = [page.tabs, page.chat.run, page.chat.message]

    @shows_errors
    def on_open(run_id: str) -> tuple[Any, str]:
        return gr.Tabs(selected=TRAIN), studio.runs.get(run_id).id

    @shows_errors
    def on_chat(run_id: str) -> tuple[Any, ...]:
        return open_chat(studio, run_id)

    @shows_errors
    def on_live_chat(event: gr.EventData) -> tuple[Any, ...]:
        return open_chat(studio, event_text(event, "run"))

    @shows_errors
    def on_again(run_id: str) -> list[Any]:
        run = studio.runs.get(run_id)
        check_usable(run)  # else the defaults would pass for the run's settings
        return [gr.Tabs(selected=TRAIN), None, *train_tab.settings_of(studio, form, run.config)]

    page.runs.open.click(
        on_open, inputs_kwargs=chosen, outputs=[page.tabs, page.train.live], **private
    )
    page.runs.chat.click(on_chat, inputs_kwargs=chosen, outputs=to_chat, **private)
    page.train.live.chat(on_live_chat, None, to_chat, **private)
    page.runs.again.click(
        on_again, inputs_kwargs=chosen,
        outputs=[page.tabs, page.train.preset, *page.train.settings(form)], **private,
    )  # fmt: skip


def open_chat(studio: Studio, run_id: str) -> tuple[Any, ...]:
    """Updates of tabs, run and message: the chat with this run, a held-out prompt filled in."""
    run = studio.runs.get(run_id)
    check_usable(run)
    if not run.can_chat:
        raise StoreError(
            f"The run is {run.state} and has no adapter to chat with", value=run.name,
            remedy="Resume it, or choose another run",
        )  # fmt: skip
    choices = gr.update(choices=chat_tab.run_choices(studio), value=run.id)
    return gr.Tabs(selected=CHAT), choices, chat_tab.first_prompt(studio, run.id)


def _wire_opening(
    studio: Studio, page: Page, blocks: gr.Blocks, chat_page: gr.Tab, runs_page: gr.Tab
) -> None:
    """Read again what another tab, another browser or a restart may have changed."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    @shows_errors
    def on_load() -> tuple[Any, ...]:
        datasets = gr.update(choices=data_tab.dataset_choices(studio))
        slim = ["slim"] if studio.runs.list() else []
        card = gr.update(elem_classes=["welcome", *slim])
        models = gr.update(choices=model_choices(studio))
        return datasets, models, secrets.token_hex(8), card

    @shows_errors
    def on_chat_page(run_id: str | None) -> Any:
        choices = chat_tab.run_choices(studio)
        known = [value for _, value in choices]
        first = known[0] if known else None
        return gr.update(choices=choices, value=run_id if run_id in known else first)

    @shows_errors
    def on_runs_page(run_id: str) -> list[Any]:
        return runs_tab.shown(studio, run_id)

    blocks.load(
        on_load, None,
        [
            page.data.dataset, page.train.models.model, page.train.request, page.welcome.card,
        ],
        **private,
    )  # fmt: skip
    chat_page.select(
        on_chat_page, inputs_kwargs={"run_id": page.chat.run}, outputs=page.chat.run, **private
    )
    runs_page.select(
        on_runs_page,
        inputs_kwargs={"run_id": page.runs.chosen},
        outputs=page.runs.view(),
        **private,
    )
