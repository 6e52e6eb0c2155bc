"""The card the page opens on: three ways to begin. It shrinks to a line once there are runs.

Owns the card only; what the choices do is wired in `page`.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

FIRST_PRESET = "first-run"
INTRO = """## Teach a small model your way of answering
Give examples, train an adapter, compare before and after. Everything runs on this machine."""


@dataclass(frozen=True)
class Welcome:
    """The card and its three buttons."""

    card: gr.Column
    start: gr.Button
    own_file: gr.Button
    look: gr.Button


def build_welcome(*, has_runs: bool, can_write: bool = True) -> Welcome:
    """The card; with runs in the workspace it is a slim strip, still one click from a first run."""
    classes = ["welcome", "slim"] if has_runs else ["welcome"]
    with gr.Column(elem_classes=classes, elem_id="welcome") as card:
        gr.Markdown(INTRO, elem_classes="welcome-intro")
        with gr.Row(elem_classes="choices"):
            start = gr.Button(
                "Train a model in 60 seconds", variant="primary", elem_id="go-first",
                interactive=can_write,
            )  # fmt: skip
            own_file = gr.Button("Use my own file", elem_id="go-own")
            look = gr.Button("Look at a finished run", elem_id="go-look")
        gr.HTML(
            "<ol class='choice-notes'><li>The bundled model learns a style from a small sample "
            "set: no network, no settings.</li><li>CSV, JSON, JSONL, Parquet or text. The format "
            "is detected and shown before anything runs.</li><li>Curves, answers before and after, "
            "and a chat with both sides.</li></ol>"
        )
    return Welcome(card, start, own_file, look)
