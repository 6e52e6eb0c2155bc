"""The Chat tab: one message, two answers side by side, from the base and with the adapter.

Owns layout and handlers. Answers come from `services.chat` as a stream of events; they are shown
as the model wrote them, with `&` and `<` escaped, so that a tag or a special token is seen and
never acted on.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import StoreError, StudioError
from studio.ui.data_view import failure_html
from studio.ui.errors import event_text, shows_errors
from studio.ui.form import FreeDropdown
from studio.ui.text import clip, escape, plural

if TYPE_CHECKING:
    from studio.services.studio import Studio
    from studio.services.summary import RunSummary

BASE, ADAPTER = "base", "adapter"
REDRAW_S = 0.06  # faster than the eye follows; more would only load the wire
PROMPT_CHARS = 90
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
NOTE_MARK = "\u2063"  # invisible: what follows is our remark, which the model must not read again
JOINER = "\u2060"  # invisible, and no letter: "<" in front of it begins no tag
TAG_START = re.compile(r"<(?=[A-Za-z/!?])")  # nothing else after "<" makes it a tag
MAX_PROMPTS = 6
PICK_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-prompt]');
  if (button) trigger('pick', {prompt: button.dataset.prompt}); });"""


@dataclass(frozen=True)
class ChatTab:
    """The tab's components."""

    run: FreeDropdown
    about: gr.HTML
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider
    system: gr.Textbox
    base: gr.Chatbot
    adapter: gr.Chatbot
    status: gr.HTML
    message: gr.Textbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    prompts: gr.HTML


@dataclass
class Side:
    """One side's answer while it grows."""

    text: str = ""
    note: str = ""
    history: list[dict[str, str]] = field(default_factory=list)

    def shown(self) -> list[dict[str, str]]:
        """The history with the answer so far, escaped for display."""
        text = safe(self.text) + (f"{NOTE_MARK} *({self.note})*" if self.note else "")
        return [*self.history, {"role": "assistant", "content": text}]


def safe(text: str) -> str:
    """Model output for display: nothing in it is a tag, an entity or a picture.

    Code is escaped by the markdown renderer itself. Where the renderer sees prose in what we take
    for code (behind an escaped backtick, a formula, a line break) an invisible joiner still keeps
    the text from being a tag.
    """
    parts = CODE.split(text)  # even ones: prose
    for at in range(1, len(parts), 2):
        parts[at] = TAG_START.sub(f"<{JOINER}", parts[at]).replace("![", f"!{JOINER}[")
    for at in range(0, len(parts), 2):
        part = parts[at].replace("&", "&amp;").replace("<", "&lt;")
        # "![" would be a picture, fetched from wherever the model says.
        parts[at] = part.replace("![", "!&#91;")
    return "".join(parts)


def plain_text(content: Any) -> str:
    """What a displayed message says, as the model has to read it again."""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    text = str(content or "")
    said, mark, note = text.rpartition(NOTE_MARK)
    text = said if mark and note.endswith(")*") else text
    parts = CODE.split(text)
    for at in range(1, len(parts), 2):
        parts[at] = parts[at].replace(f"<{JOINER}", "<").replace(f"!{JOINER}[", "![")
    for at in range(0, len(parts), 2):
        part = parts[at].replace("!&#91;", "![")
        parts[at] = part.replace("&lt;", "<").replace("&amp;", "&")
    return "".join(parts)


def chat_runs(studio: Studio) -> list[RunSummary]:
    """Runs one can chat with, newest first."""
    return [run for run in studio.runs.list() if run.can_chat]


def run_choices(studio: Studio) -> list[tuple[str, str]]:
    """Choices of the run dropdown."""
    return [
        (
            f"{run.name} \u00b7 {run.method}"
            + ("" if run.state == "done" else f" \u00b7 {run.state}"),
            run.id,
        )
        for run in chat_runs(studio)
    ]


def build_chat_tab(studio: Studio) -> ChatTab:
    """Lay the tab out."""
    choices = run_choices(studio)
    first = choices[0][1] if choices else None
    with gr.Row(equal_height=False, elem_classes="card chat-top"):
        with gr.Column(scale=3, min_width=280):
            run = FreeDropdown(
                choices, value=first, label="Run", interactive=True, elem_id="chat-run",
                info="Any finished, stopped or paused run.",
            )  # fmt: skip
            about = gr.HTML(about_run(studio, first))
        temperature = gr.Slider(
            0, 1.5, 0.0, step=0.05, label="Temperature", info="0: always the likeliest word.",
            interactive=True, scale=2, min_width=170,
        )  # fmt: skip
        max_tokens = gr.Slider(
            16, 1024, 96, step=16, label="Max tokens", info="Longer answers are cut there.",
            interactive=True, scale=2, min_width=170,
        )  # fmt: skip
    more = gr.Accordion("System prompt and top-p", open=False, elem_classes="quiet boxed")
    with more, gr.Row(elem_classes="tight"):
        system = gr.Textbox(
            label="System prompt", lines=2, interactive=True, scale=3,
            placeholder="Empty: as in training",
        )  # fmt: skip
        top_p = gr.Slider(
            0.05, 1.0, 1.0, step=0.05, label="Top-p", interactive=True, scale=1, min_width=180
        )
    prompts = gr.HTML(prompts_html(studio, first), js_on_load=PICK_JS, elem_id="prompts")
    with gr.Row(elem_classes="sides"):
        base = _chatbot("Base model", "chat-base", "The model before training.")
        adapter = _chatbot(
            "With adapter", "chat-adapter", "The same model with what your run learned."
        )
    status = gr.HTML(elem_id="chat-status")
    with gr.Row(elem_classes="ask"):
        message = gr.Textbox(
            label="Message", show_label=False, placeholder="Ask something that your examples cover",
            lines=1, max_lines=6, scale=8, interactive=True, elem_id="message",
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", scale=0, min_width=96)
        stop = gr.Button("Stop", variant="stop", scale=0, min_width=96, interactive=False)
        clear = gr.Button("Clear", scale=0, min_width=84)
    return ChatTab(
        run, about, temperature, top_p, max_tokens, system, base, adapter, status, message, send,
        stop, clear, prompts,
    )  # fmt: skip


def _chatbot(label: str, elem_id: str, placeholder: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, height=400, placeholder=placeholder, buttons=["copy"], allow_tags=False,
        feedback_options=None, layout="bubble", min_width=300, elem_classes="keep",
        elem_id=elem_id,
    )  # fmt: skip


def about_run(studio: Studio, run_id: str | None) -> str:
    """One line about the chosen run."""
    if not run_id:
        return "<p class='hint'>No finished run yet. Train one first: it takes a minute.</p>"
    run = studio.runs.get(run_id)
    facts = " \u00b7 ".join(escape(x) for x in (run.model_name, run.method, run.dataset_name) if x)
    return f"<p class='hint'>{facts}</p>"


def prompts_html(studio: Studio, run_id: str | None) -> str:
    """Held-out prompts as buttons."""
    found = studio.runs.heldout_prompts(run_id)[:MAX_PROMPTS] if run_id else []
    texts = [text for text in (last_question(item["messages"]) for item in found) if text]
    if not texts:
        return ""
    buttons = "".join(
        f'<button type="button" class="prompt" data-prompt="{escape(text)}" title="{escape(text)}">'
        f"{escape(clip(text, PROMPT_CHARS))}</button>"
        for text in dict.fromkeys(texts)
    )
    return f"<div class='prompts'><span class='muted'>Held-out prompts</span>{buttons}</div>"


def last_question(messages: list[dict[str, str]]) -> str:
    """What the user said last in a conversation."""
    users = [m["content"] for m in messages if m.get("role") == "user"]
    return users[-1] if users else ""


def first_prompt(studio: Studio, run_id: str) -> str:
    """A held-out prompt to start with, "" where there is none."""
    found = studio.runs.heldout_prompts(run_id)
    return last_question(found[0]["messages"]) if found else ""


def conversation(history: list[Any], system: str | None) -> list[dict[str, str]]:
    """What the model reads for a displayed history."""
    turns = [{"role": m["role"], "content": plain_text(m["content"])} for m in history]
    prompt = (system or "").strip()
    return ([{"role": "system", "content": prompt}] if prompt else []) + turns


def take(sides: dict[str, Side], event: dict[str, Any]) -> str | None:
    """Put one event of the stream into its side. Returns the sentence to show from now on ("" =
    none), None where the one that is shown stays."""
    side = sides.get(str(event.get("which")))
    if side is not None and "delta" in event:
        side.text += event["delta"]
    elif side is not None and event.get("done"):
        if event.get("truncated"):
            side.note = f"cut at {plural(int(event.get('tokens') or 0), 'token')}"
    elif "error" in event:
        error = event["error"] or {}
        raise StoreError(str(error.get("what") or error.get("text")), remedy=error.get("remedy"))
    return event.get("message", event.get("notice"))


async def answer(
    studio: Studio, run_id: str, sides: dict[str, Side], **options: Any
) -> AsyncIterator[str | None]:
    """Stream both answers into `sides`; yields what `take` says of each event.

    One stream serves both sides as long as they said the same so far; afterwards each side is
    asked with its own history, one after the other.
    """
    system = options.pop("system")
    histories = {name: conversation(side.history, system) for name, side in sides.items()}
    same = histories[BASE] == histories[ADAPTER]
    for which in ("both",) if same else (BASE, ADAPTER):
        messages = histories[BASE if which == "both" else which]
        stream = studio.chat.stream(run_id, messages, which=which, **options)
        async for event in stream:
            yield take(sides, event)


def wire_chat_tab(studio: Studio, tab: ChatTab) -> None:
    """Connect the tab."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    on_off = [tab.send, tab.stop]

    @shows_errors
    async def on_send(
        message: str, run_id: str, base: list[Any], adapter: list[Any], **options: Any
    ) -> AsyncIterator[tuple[Any, ...]]:
        text = (message or "").strip()
        if not text:
            yield (gr.skip(),) * 6
            return
        if not run_id:
            raise StoreError("No run is chosen", remedy="Train a model first, then pick it here")
        said = {"role": "user", "content": safe(text)}
        sides = {BASE: Side(history=[*base, said]), ADAPTER: Side(history=[*adapter, said])}
        yield *shown(sides, status_html("Loading the model")), "", *buttons(busy=True)
        status, drawn = "", 0.0
        try:
            async for progress in answer(studio, run_id, sides, **options):
                status = status if progress is None else status_html(progress)
                if time.monotonic() - drawn >= REDRAW_S:
                    drawn = time.monotonic()
                    yield *shown(sides, status), *(gr.skip(),) * 3
        except StudioError as error:  # what was said so far stays, the sentence stands below it
            status = failure_html(str(error))
        yield *shown(sides, status), gr.skip(), *buttons(busy=False)

    options = {
        "temperature": tab.temperature, "top_p": tab.top_p, "max_tokens": tab.max_tokens,
        "system": tab.system,
    }  # fmt: skip
    sent = gr.on(
        [tab.send.click, tab.message.submit], on_send,
        inputs_kwargs={
            "message": tab.message, "run_id": tab.run, "base": tab.base, "adapter": tab.adapter,
            **options,
        },
        outputs=[tab.base, tab.adapter, tab.status, tab.message, *on_off],
        concurrency_limit=4, concurrency_id="chat", **private,
    )  # fmt: skip
    sent.then(lambda: buttons(busy=False), None, on_off, queue=False, **private)
    _wire_controls(studio, tab, sent)


def _wire_controls(studio: Studio, tab: ChatTab, sent: Any) -> None:
    """Stop, Clear, another run, a held-out prompt."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    on_off = [tab.send, tab.stop]

    @shows_errors
    def on_run(run_id: str | None) -> tuple[Any, ...]:
        return about_run(studio, run_id), prompts_html(studio, run_id), [], []

    @shows_errors
    def on_pick(event: gr.EventData) -> str:
        return event_text(event, "prompt")

    tab.stop.click(
        lambda: ("", *buttons(busy=False)), None, [tab.status, *on_off], cancels=[sent], **private
    )
    tab.clear.click(
        lambda: ([], [], "", *buttons(busy=False)), None,
        [tab.base, tab.adapter, tab.status, *on_off], cancels=[sent], **private,
    )  # fmt: skip
    tab.run.change(
        on_run, inputs_kwargs={"run_id": tab.run},
        outputs=[tab.about, tab.prompts, tab.base, tab.adapter], **private,
    )  # fmt: skip
    tab.prompts.pick(on_pick, None, tab.message, **private)


def shown(sides: dict[str, Side], status: str) -> tuple[Any, Any, str]:
    """Both chats and the line under them."""
    return sides[BASE].shown(), sides[ADAPTER].shown(), status


def buttons(*, busy: bool) -> tuple[Any, Any]:
    """Send and Stop: the one that makes sense now."""
    return gr.update(interactive=not busy), gr.update(interactive=busy)


def status_html(text: str) -> str:
    """The line under the chats."""
    return f"<p class='chat-status' role='status'>{escape(text)}</p>" if text else ""
