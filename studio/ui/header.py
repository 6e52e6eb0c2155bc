"""The strip on top: name, state, memory of the device, what this machine can do, theme toggle.

The figures are fetched by `assets/header.js` from /api/machine; the list of abilities is rendered
when the page is built, since it changes only with the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from studio.ui.text import escape

ASSETS = Path(__file__).parent / "assets"
ABILITIES = (
    ("cuda", "Training on an NVIDIA GPU"),
    ("bnb", "4-bit models (QLoRA)"),
    ("bf16", "bfloat16 arithmetic"),
    ("mps", "Training on an Apple GPU"),
)


def asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def build_header(capabilities: Mapping[str, Any], notice: str | None = None) -> gr.HTML:
    """The header. `notice` is a standing remark, for example that the workspace is read-only."""
    template = asset("header.html").replace("@doctor", _plain_template(doctor_html(capabilities)))
    if notice:
        template += f"<p class='notice' role='status'>{_plain_template(escape(notice))}</p>"
    return gr.HTML(html_template=template, js_on_load=asset("header.js"), elem_id="top")


def doctor_html(capabilities: Mapping[str, Any]) -> str:
    """What this machine can do and, for what it cannot, why."""
    reasons = capabilities.get("reasons") or {}
    items = []
    for name, title in ABILITIES:
        able = bool(capabilities.get(name))
        mark = "<b class='yes'>yes</b>" if able else "<b class='no'>no</b>"
        why = "" if able else f"<span>{escape(reasons.get(name) or 'not on this machine')}</span>"
        items.append(f"<li>{mark}<div><strong>{title}</strong>{why}</div></li>")
    for name, why in reasons.items():
        if name not in dict(ABILITIES):
            items.append(f"<li><b class='note'>note</b><div><span>{escape(why)}</span></div></li>")
    summary = escape(capabilities.get("summary") or "")
    build = " \u00b7 ".join(
        escape(capabilities[key]) for key in ("torch", "platform") if capabilities.get(key)
    )
    proposal = escape((capabilities.get("proposal") or {}).get("why") or "")
    return (
        f"<h2>{summary}</h2><p class='muted'>{build}</p><ul>{''.join(items)}</ul>"
        + (
            f"<p class='proposal'><strong>Suggested here.</strong> {proposal}</p>"
            if proposal
            else ""
        )
        + "<p class='muted'>In a terminal: <code>python -m studio doctor</code></p>"
    )


def _plain_template(html: str) -> str:
    """HTML that gradio's template language leaves alone (it reads ${..}, {{..}} and backticks)."""
    for char in "$`{}\\":
        html = html.replace(char, f"&#{ord(char)};")
    return html
