"""HTML of the Data tab's right side: figures, problems, first rows, one row as the model sees it.

Pure: takes what the services return, gives escaped HTML. Knows nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.ui.text import clip, count, escape, percent, plural

PREVIEW_ROWS = 6
CELL_CHARS = 280
TOKENS_SHOWN = 1500

EMPTY = """<div class='empty'><svg width='44' height='44' viewBox='0 0 24 24' aria-hidden='true'>
<path d='M4 5h16M4 12h16M4 19h9' fill='none' stroke='currentColor' stroke-width='1.6'
stroke-linecap='round'/></svg><h2>No examples yet</h2><p>Drop a file on the left, or pick a sample:
you see here what was understood before anything is trained.</p></div>"""


def facts_html(
    *, rows: int, used: int, left_out: int, held_out: int, note: str = "", name: str = ""
) -> str:
    """The four counts, and what was understood of the file."""
    tiles = (
        ("Rows", rows, ""),
        ("For training", used - held_out, "good"),
        ("Held out", held_out, "hold"),
        ("Left out", left_out, "bad" if left_out else ""),
    )
    cells = "".join(
        f"<div class='tile {tone}'><span>{title}</span><b>{count(value)}</b></div>"
        for title, value, tone in tiles
    )
    heading = f"<h2 class='view-title'>{escape(name)}</h2>" if name else ""
    line = f"<p class='muted'>{note}</p>" if note else ""
    return f"<div class='facts'>{heading}{line}<div class='tiles four'>{cells}</div></div>"


def problems_html(problems: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """Rows that cannot be used: line, reason, remedy. Empty where there are none."""
    if not left_out and not problems:
        return ""
    items = "".join(_problem(item) for item in problems[:50])
    more = f"<p class='muted'>Shown: the first {min(50, len(problems))} kinds.</p>"
    return (
        f"<details class='problems' open><summary>{plural(left_out, 'row')} left out, and why"
        f"</summary><ul>{items}</ul>{more if len(problems) > 50 else ''}</details>"
    )


def _problem(item: Mapping[str, Any]) -> str:
    line = item.get("line")
    where = f"<b>line {escape(line)}</b> " if line is not None else ""
    times = int(item.get("count") or 1)
    more = f" <span class='muted'>(and {times - 1:,} more)</span>" if times > 1 else ""
    remedy = f" <span class='muted'>{escape(item['remedy'])}</span>" if item.get("remedy") else ""
    return f"<li>{where}{escape(item.get('reason', ''))}{remedy}{more}</li>"


def rows_html(examples: Sequence[Mapping[str, Any]]) -> str:
    """First rows as conversations, in the form that training uses."""
    if not examples:
        return ""
    body = "".join(_row(example) for example in examples[:PREVIEW_ROWS])
    return (
        "<section class='rows' aria-label='First rows'><h3>First rows</h3>"
        f"<div class='row-list' tabindex='0' role='group' aria-label='First rows, scrollable'>"
        f"{body}</div></section>"
    )


def _row(example: Mapping[str, Any]) -> str:
    number = escape(example.get("i", ""))
    messages = example.get("messages")
    if not messages:
        text = escape(clip(example.get("text", ""), CELL_CHARS))
        return f"<article><span class='no'>{number}</span><p class='said'>{text}</p></article>"
    turns = "".join(
        f"<p class='turn {escape(m.get('role', ''))}'><b>{escape(m.get('role', ''))}</b>"
        f"<span>{escape(clip(m.get('content', ''), CELL_CHARS))}</span></p>"
        for m in messages
    )
    return f"<article><span class='no'>{number}</span><div>{turns}</div></article>"


def rendered_html(result: Mapping[str, Any], number: int) -> str:
    """One row as the chat template renders it; what the loss is on is highlighted."""
    tokens = list(result.get("tokens") or [])
    trained, total = int(result.get("trained_tokens") or 0), int(result.get("total_tokens") or 0)
    cut = int(result.get("cut_tokens") or 0)
    spans = "".join(_span(kind, text) for kind, text in _runs(tokens[:TOKENS_SHOWN]))
    more = f"<p class='muted'>Shown: the first {TOKENS_SHOWN:,} tokens.</p>"
    share = percent(trained / total) if total else ""
    cut_note = f", {plural(cut, 'token')} beyond the max length are cut" if cut else ""
    return (
        f"<section class='rendered'><h3>How the model sees row {number}</h3>"
        f"<p class='muted'>{plural(total, 'token')}, {trained:,} of them learned ({share})"
        f"{cut_note}.</p>"
        "<p class='token-legend'><span class='tk trained'>learned</span>"
        "<span class='tk context'>context</span><span class='tk special'>special token</span>"
        "<span class='tk cut'>cut off</span></p>"
        f"<pre class='tokens' tabindex='0' aria-label='Rendered row'>{spans}</pre>"
        f"{more if len(tokens) > TOKENS_SHOWN else ''}</section>"
    )


def _kind(token: Mapping[str, Any]) -> str:
    if token.get("cut"):
        return "cut"
    kind = "trained" if token.get("trained") else "context"
    return f"{kind} special" if token.get("special") else kind


def _runs(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Neighbouring tokens of one kind joined; special tokens stay apart."""
    runs: list[tuple[str, str]] = []
    for token in tokens:
        kind, text = _kind(token), str(token.get("text", ""))
        if runs and runs[-1][0] == kind and "special" not in kind:
            runs[-1] = (kind, runs[-1][1] + text)
        else:
            runs.append((kind, text))
    return runs


def _span(kind: str, text: str) -> str:
    return f"<span class='tk {kind}'>{escape(text)}</span>"


def failure_html(message: str) -> str:
    """A sentence about what could not be used, standing where the preview would be."""
    return f"<p class='failure' role='alert'>{escape(message)}</p>"
