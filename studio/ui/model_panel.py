"""Choosing the base model: bundled, catalogue, a folder, or a Hugging Face id with its download.

Owns the controls and the line about the chosen model. A download runs in `services.models`; this
shows its progress and lets it be cancelled. A token goes to the store and never into a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.errors import ModelError, StudioError
from studio.ui.errors import shows_errors, warn
from studio.ui.form import Form, FreeDropdown
from studio.ui.text import escape, gib, megabytes, short_count

if TYPE_CHECKING:
    from studio.services.studio import Studio

CUSTOM_HELP = "Pick one, or type a folder with safetensors or a Hugging Face id."


@dataclass(frozen=True)
class ModelPanel:
    """The controls; `model` holds the id and is the knob model.id."""

    model: FreeDropdown
    about: gr.HTML
    fetch_box: gr.Column
    fetch: gr.Button
    cancel: gr.Button
    token: gr.Textbox
    save_token: gr.Button
    progress: gr.HTML


def model_choices(studio: Studio) -> list[tuple[str, str]]:
    """Models by title; those that must be fetched first say so."""
    choices = []
    for info in studio.models.list():
        size = f", {short_count(info.params)} parameters" if info.params else ""
        note = "" if info.local else f" - {info.gb:.1f} GB to fetch" if info.gb else " - to fetch"
        choices.append((f"{info.title}{size}{note}", info.id))
    return choices


def build_model_panel(studio: Studio, form: Form) -> ModelPanel:
    """Lay the controls out."""
    knob = form.knobs["model.id"]  # its title is "Base model", which is the name of a chat
    model = FreeDropdown(
        model_choices(studio), value=knob.default, label="Model", info=CUSTOM_HELP,
        allow_custom_value=True, interactive=True, elem_id="model",
    )  # fmt: skip
    form.adopt("model.id", model)
    about = gr.HTML(about_html(studio, knob.default))
    with gr.Column(visible=False, elem_classes="fetch") as fetch_box:
        with gr.Row(elem_classes="tight"):
            fetch = gr.Button("Download this model", size="md")
            cancel = gr.Button("Cancel download", size="md", variant="stop", visible=False)
        progress = gr.HTML()
        with gr.Accordion("Access token for gated models", open=False, elem_classes="quiet"):
            token = gr.Textbox(
                label="Hugging Face token", type="password", interactive=True, max_lines=1,
                info="Kept on this machine, readable by you only; never written into a run.",
            )  # fmt: skip
            save_token = gr.Button("Keep token", size="md")
    return ModelPanel(model, about, fetch_box, fetch, cancel, token, save_token, progress)


def find_model(studio: Studio, model_id: str) -> Any:
    """The list's entry of that id, None for a folder or an id that is not listed."""
    return next((info for info in studio.models.list() if info.id == model_id), None)


def is_here(studio: Studio, model_id: str) -> tuple[bool, str]:
    """Whether the model can be trained now, and the sentence why not."""
    try:
        studio.models.resolve(model_id)
    except StudioError as error:
        return False, str(error)
    return True, ""


def about_html(studio: Studio, model_id: str) -> str:
    """What is known of a model, in one line; why it cannot be used yet, in another."""
    info = find_model(studio, model_id)
    here, why = is_here(studio, model_id)
    facts = []
    if info is not None:
        facts = [
            f"{short_count(info.params)} parameters" if info.params else "",
            f"context {info.context:,} tokens" if info.context else "",
            f"licence {escape(info.licence)}" if info.licence else "",
            "on this machine" if here else "",
            escape(info.note or ""),
        ]
    line = " \u00b7 ".join(fact for fact in facts if fact)
    missing = f"<p class='warn'>{escape(why)}</p>" if not here else ""
    return f"<p class='hint'>{line}</p>{missing}" if line or missing else ""


def is_hub_id(model_id: str) -> bool:
    """Whether the text has the shape owner/name of the hub (a folder has another)."""
    owner, slash, name = model_id.partition("/")
    return bool(slash and owner and name) and not model_id.startswith((".", "/", "~", "\\"))


def wire_model_panel(studio: Studio, panel: ModelPanel) -> None:
    """Connect the panel."""
    private: dict[str, Any] = {"api_visibility": "private"}
    picked = {"model_id": panel.model}

    @shows_errors
    def on_model(model_id: str | None) -> tuple[Any, Any, str]:
        name = (model_id or "").strip()
        here, _ = is_here(studio, name)
        can_fetch = is_hub_id(name) and not here
        return (
            about_html(studio, name),
            gr.update(visible=can_fetch),
            _size_html(studio, name, can_fetch),
        )

    @shows_errors
    def on_fetch(model_id: str) -> Iterator[tuple[Any, ...]]:
        busy, idle = gr.update(visible=True), gr.update(visible=False)
        yield "<p class='hint'>Asking the hub\u2026</p>", idle, busy, gr.skip(), gr.skip()
        try:
            for share, words in studio.models.fetch((model_id or "").strip()):
                yield progress_html(share, words), idle, busy, gr.skip(), gr.skip()
        except StudioError as error:
            yield _failed(error), gr.update(visible=True), idle, gr.skip(), gr.skip()
            return
        done = "<p class='good'>The model is here.</p>"
        choices = gr.update(choices=model_choices(studio), value=model_id)
        yield done, gr.update(visible=True), idle, choices, about_html(studio, model_id)

    @shows_errors
    def on_cancel(model_id: str) -> None:
        studio.models.cancel((model_id or "").strip())

    @shows_errors
    def on_token(token: str) -> tuple[str, str]:
        if not (token or "").strip():
            raise ModelError(
                "The token is empty", allowed="hf_\u2026 from huggingface.co/settings/tokens"
            )
        studio.models.set_token(token.strip())
        return "", "<p class='good'>Token kept.</p>"

    panel.model.change(
        on_model, inputs_kwargs=picked, outputs=[panel.about, panel.fetch_box, panel.progress],
        show_progress="hidden", trigger_mode="always_last", **private,
    )  # fmt: skip
    panel.fetch.click(
        on_fetch, inputs_kwargs=picked,
        outputs=[panel.progress, panel.fetch, panel.cancel, panel.model, panel.about],
        show_progress="hidden", concurrency_id="fetch", concurrency_limit=2, **private,
    ).then(
        lambda: (gr.update(visible=True), gr.update(visible=False)), None,
        [panel.fetch, panel.cancel], **private,
    )  # fmt: skip
    panel.cancel.click(on_cancel, inputs_kwargs=picked, outputs=None, queue=False, **private)
    panel.save_token.click(
        on_token, inputs_kwargs={"token": panel.token}, outputs=[panel.token, panel.progress],
        **private,
    )  # fmt: skip


def _failed(error: StudioError) -> str:
    """It stands where the progress stood: the box alone is gone after half a minute."""
    warn(error)
    return f"<p class='warn' role='alert'>{escape(error)}</p>"


def _size_html(studio: Studio, model_id: str, wanted: bool) -> str:
    """Size against free disk, for a model that would be fetched. Only an id that the list does not
    hold is asked of the hub."""
    if not wanted:
        return ""
    info = find_model(studio, model_id)
    if info is not None and info.gb:
        size_bytes, free = info.gb * 1e9, studio.machine.live().get("free_disk_bytes")
    else:
        try:
            found = studio.models.size(model_id)
        except StudioError as error:
            return f"<p class='warn'>{escape(error)}</p>"
        size_bytes, free = found.missing_bytes, found.free_bytes
    room = f"; {gib(free, 0)} free on this disk" if free else ""
    return f"<p class='hint'>About {megabytes(size_bytes)} to download{room}.</p>"


def progress_html(share: float | None, words: str) -> str:
    """A bar with its figures."""
    width = 0.0 if share is None else 100 * max(0.0, min(1.0, share))
    return (
        f"<div class='fetchbar' role='progressbar' aria-label='Download' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{width:.0f}'><i style='width:{width:.1f}%'></i></div>"
        f"<p class='hint'>{escape(words)}</p>"
    )
