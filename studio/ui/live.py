"""The live view of a run: one gr.HTML whose own script polls the run's endpoint.

gr.Plot rebuilds its figure at each update and loses zoom and hover; this appends points instead.
Its value is the id of the run to show ("" = the newest). Events: `command` {run, verb} from the
buttons Pause, Resume, Stop and Stop now, `chat` {run} from "Done. Chat with it", `warm` {run} from
"Start a new run from its weights".
"""

from __future__ import annotations

import json
from importlib import metadata

import gradio as gr

from studio.ui.header import asset

PLOTLY_URL = f"static/plotly-{metadata.version('plotly')}.min.js"
_SCRIPTS = ("charts.js", "run_memory.js", "doctor.js", "live.js")


def build_live(*, read_only: bool = False) -> gr.HTML:
    """The view. `read_only`: another studio holds the workspace, so no button does anything.

    Its script loads plotly itself: gradio's `head` holds the script back until plotly is there, and
    after a reload with the tab already open forgets to run it at all (6.31).
    """
    script = (
        "const q = (selector) => element.querySelector(selector);\n"
        f"const PLOTLY_URL = {json.dumps(PLOTLY_URL)}, READ_ONLY = {json.dumps(read_only)};\n"
    )
    return gr.HTML(
        value="",
        html_template=asset("live.html"),
        js_on_load=script + "".join(map(asset, _SCRIPTS)),
        elem_id="live",
    )
