"""The live view of a run: one gr.HTML whose own script polls the run's endpoint.

gr.Plot rebuilds its figure at each update and loses zoom and hover; this appends points instead.
Its value is the id of the run to show ("" = the newest). Events: `command` {run, verb} from the
buttons Pause, Resume and Stop, `chat` {run} from "Done. Chat with it".
"""

from __future__ import annotations

import plotly

import gradio as gr

from studio.ui.header import asset

PLOTLY_VERSION = plotly.__version__
PLOTLY_URL = f"static/plotly-{PLOTLY_VERSION}.min.js"


def build_live() -> gr.HTML:
    """The view; plotly's script is loaded once, beside the page."""
    script = "const q = (selector) => element.querySelector(selector);\n"
    return gr.HTML(
        value="",
        html_template=asset("live.html"),
        js_on_load=script + asset("charts.js") + asset("live.js"),
        head=f'<script src="{PLOTLY_URL}" async></script>',
        elem_id="live",
    )
