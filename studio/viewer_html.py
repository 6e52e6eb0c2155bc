"""HTML of the viewers' page: pure functions from a run to text, everything in it escaped."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

from studio.core.runs import ACTIVE_STATES, END_STATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from studio.services.summary import RunSummary

REFRESH_S = 5
WIDTH, HEIGHT, EDGE = 720, 240, 8
MAX_POINTS = 720
_KNOBS = (
    ("lora", "r"), ("lora", "lora_alpha"), ("lora", "lora_dropout"), ("lora", "use_dora"),
    ("quantization", "load_in_4bit"), ("train", "learning_rate"), ("train", "num_train_epochs"),
    ("train", "max_steps"), ("train", "per_device_train_batch_size"), ("train", "max_length"),
    ("train", "seed"),
)  # fmt: skip


def escape(value: Any) -> str:
    """Text for a page; nothing in it is a tag."""
    return html.escape(str(value), quote=True)


def list_page(runs: Sequence[RunSummary]) -> str:
    """All runs, newest first."""
    rows = "".join(
        f'<tr><td><a href="/view/runs/{escape(run.id)}">{escape(run.name)}</a></td>'
        f"<td>{escape(run.state)}</td><td>{run.step}/{run.total_steps}</td>"
        f"<td>{_figure(run.eval_loss)}</td><td>{escape(run.method)}</td>"
        f"<td>{escape(run.model_name)}</td></tr>"
        for run in runs
    )
    head = "<tr><th>Run<th>State<th>Step<th>Eval loss<th>Method<th>Model</tr>"
    body = f"<table>{head}{rows}</table>" if runs else "<p>No runs yet.</p>"
    return _document("Runs", body, refresh=any(run.state in ACTIVE_STATES for run in runs))


def run_page(run: RunSummary, series: dict[str, Any], *, can_chat: bool) -> str:
    """One run: state, curves, settings."""
    facts = [
        ("State", run.state), ("Step", f"{run.step} of {run.total_steps}"),
        ("Loss", _figure(run.loss)), ("Eval loss", _figure(run.eval_loss)),
        ("Model", run.model_name), ("Method", run.method), ("Data", run.dataset_name),
    ]  # fmt: skip
    for section, name in _KNOBS:
        value = (run.config.get(section) or {}).get(name)
        if isinstance(value, int | float | str | bool):
            facts.append((name, value))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    chat = f'<p><a href="/view/chat/{escape(run.id)}">Chat with this adapter</a></p>'
    failed = "<p>The run failed. Its owner can see why.</p>" if run.error else ""
    body = (
        f'<p><a href="/view">All runs</a></p>{failed}{curves(series)}'
        f"{chat if can_chat else ''}<dl>{listed}</dl>"
    )
    return _document(run.name, body, refresh=run.state not in END_STATES)


def chat_page(run: RunSummary) -> str:
    """A form and two answers; view.js fills them."""
    run_id = escape(run.id)
    body = (
        f'<p><a href="/view/runs/{run_id}">{escape(run.name)}</a></p>'
        f'<form id="ask" data-run="{run_id}"><label>Question<textarea id="question" rows="3" '
        'maxlength="4000" required></textarea></label><button>Send</button></form>'
        '<p id="status" role="status"></p><div class="sides"><section><h2>Base model</h2>'
        '<pre id="base"></pre></section><section><h2>With adapter</h2><pre id="adapter"></pre>'
        '</section></div><script src="/view/assets/view.js"></script>'
    )
    return _document("Chat", body, refresh=False)


def curves(series: dict[str, Any]) -> str:
    """Training and evaluation loss as one picture; "" where there is nothing to draw."""
    lines = {
        "train": _points(series.get("step") or {}, "loss"),
        "eval": _points(series.get("eval") or {}, "eval_loss"),
    }
    drawn = [point for points in lines.values() for point in points]
    if len(drawn) < 2:
        return ""
    left, right = min(x for x, _ in drawn), max(x for x, _ in drawn)
    low, high = min(y for _, y in drawn), max(y for _, y in drawn)

    def place(point: tuple[float, float]) -> str:
        x = EDGE + (point[0] - left) / ((right - left) or 1) * (WIDTH - 2 * EDGE)
        y = HEIGHT - EDGE - (point[1] - low) / ((high - low) or 1) * (HEIGHT - 2 * EDGE)
        return f"{x:.1f},{y:.1f}"

    paths = "".join(
        f'<polyline class="{name}" points="{" ".join(map(place, points))}"/>'
        for name, points in lines.items()
        if points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss over steps">{paths}</svg>'
        f"<p>Loss {low:.3f} to {high:.3f}, steps {left:g} to {right:g}; "
        "thin: training, thick: evaluation.</p>"
    )


def _points(columns: dict[str, list[Any]], name: str) -> list[tuple[float, float]]:
    pairs = zip(columns.get("step") or [], columns.get(name) or [], strict=False)
    found = [(float(x), float(y)) for x, y in pairs if _is_number(x) and _is_number(y)]
    stride = max(1, math.ceil(len(found) / MAX_POINTS))
    return found[::stride]


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        and abs(value) < 1e12
    )  # fmt: skip


def _figure(value: float | None) -> str:
    return f"{value:.3f}" if _is_number(value) else "-"


def _document(title: str, body: str, *, refresh: bool) -> str:
    again = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f"<title>{escape(title)} - LoRA Studio</title>"
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/view/assets/view.css"></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>"
    )
