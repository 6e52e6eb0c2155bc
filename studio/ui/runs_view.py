"""HTML of the Runs tab: the table and the details of one run. Everything in it is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.core.runs import ACTIVE_STATES
from studio.ui.text import NONE, duration, escape, gib, loss, when

if TYPE_CHECKING:
    from studio.services.summary import RunSummary

COLUMNS = ("Run", "State", "Model", "Method", "Loss", "Held-out loss", "Peak memory", "Time")
EMPTY = """<div class='empty'><h2>No runs yet</h2><p>A run appears here as soon as it is started.
</p></div>"""


def table_html(runs: list[RunSummary], chosen: str) -> str:
    """The table; the chosen run's row is marked."""
    if not runs:
        return EMPTY
    head = "".join(f"<th scope='col'>{title}</th>" for title in COLUMNS)
    body = "".join(_row(run, run.id == chosen) for run in runs)
    return (
        "<div class='runs'><div class='wrap' tabindex='0' role='region' aria-label='Runs'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _row(run: RunSummary, chosen: bool) -> str:
    mark = "true" if chosen else "false"
    memory = f"{gib(run.peak_bytes)} {run.peak_kind}" if run.peak_bytes else NONE
    cells = (
        escape(run.model_name), escape(run.method), loss(run.loss), loss(run.eval_loss),
        escape(memory), duration(run.duration_s),
    )  # fmt: skip
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    lock = " <span class='muted'>read-only</span>" if run.read_only else ""
    return (
        f"<tr data-chosen='{mark}'><th scope='row'>"
        f"<button type='button' data-run='{escape(run.id)}' aria-pressed='{mark}'>"
        f"{escape(run.name)}</button>{lock}"
        f"<span class='muted when'>{escape(when(run.created))}</span></th>"
        f"<td>{pill_html(run)}</td>{rest}</tr>"
    )


def pill_html(run: RunSummary) -> str:
    """The state as a coloured word, with the progress while it runs."""
    share, state = "", escape(run.shown_state)
    if run.state in ACTIVE_STATES and run.total_steps:
        share = f" {100 * run.step // run.total_steps} %"
    return f"<span class='pill' data-state='{state}'>{state}{share}</span>"


def details_html(run: RunSummary) -> str:
    """What came out of one run, with its downloads; of a damaged one, what is wrong with it."""
    facts = [
        ("Data", escape(run.dataset_name)),
        ("Steps", f"{run.step:,} of {run.total_steps:,}"),
        ("Best at step", NONE if run.best_step is None else f"{run.best_step:,}"),
    ]
    facts = [*(facts if run.is_usable else []), ("Folder", f"<code>runs/{escape(run.id)}</code>")]
    listed = "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in facts)
    return (
        f"<div class='run-details'><h2>{escape(run.name)} {pill_html(run)}</h2>{_remarks(run)}"
        f"<dl>{listed}</dl><p class='links'>{_downloads(run)}</p></div>"
    )


def _remarks(run: RunSummary) -> str:
    """How it ended, or why it does not go on."""
    found = []
    if run.stalled:
        found.append(("warn", f"{run.stalled.text} {run.stalled.remedy}"))
    if run.ending:
        found.append(("warn", run.ending.text))
    if text := (run.error or {}).get("text") or run.verdict:
        found.append(("bad" if run.error else "ok", text))
    if run.damaged and run.is_usable:
        found.append(("warn", run.damaged))
    return "".join(f"<p class='l-end' data-tone='{tone}'>{escape(t)}</p>" for tone, t in found)


def _downloads(run: RunSummary) -> str:
    if not run.is_usable:
        return "<span class='muted'>Nothing to download: run.json cannot be read.</span>"
    base = f"api/runs/{escape(run.id)}"
    links = f"<a href='{base}/run.zip' download>Download run</a>"
    if (run.exit or {}).get("adapter_dir"):
        links = f"<a href='{base}/adapter.zip' download>Download adapter</a>{links}"
    return links


def note_html(text: str) -> str:
    """A short confirmation."""
    return f"<p class='good' role='status'>{escape(text)}</p>"
