"""One row as the model sees it, and what the lengths of all rows mean: HTML and values.

Owns the coloured tokens, the verdict on the end token, the value of the histogram (drawn by
`assets/data_lengths.js`) and the figures of an epoch. Pure: takes what the services return.

A token is one short element, its number stands in one list of the container: a row of 4,096 tokens
is about 100 kB of HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from studio.core.token_stats import TokenSummary, cut_at, histogram, padding
from studio.ui.data_look import Look
from studio.ui.text import count, duration, escape, percent, plural, short_count

TOKENS_SHOWN = 8192
WAYS = {
    "random": ("Random order", "rows as they come"),
    "grouped": ("Grouped by length", "rows of like length together"),
    "packed": ("Packed", "several rows in one sequence"),
}


def rendered_html(
    result: Mapping[str, Any], number: int, *, line: int | None = None, model: str = ""
) -> str:
    """One row as the chat template renders it; what the loss is on is highlighted."""
    tokens = list(result.get("tokens") or [])
    trained, total = int(result.get("trained_tokens") or 0), int(result.get("total_tokens") or 0)
    cut = int(result.get("cut_tokens") or 0)
    shown = tokens[:TOKENS_SHOWN]
    spans = "".join(map(_span, shown))
    ids = ",".join(str(int(token.get("id", 0))) for token in shown)
    more = f"<p class='muted'>Shown: the first {TOKENS_SHOWN:,} tokens.</p>"
    share = percent(trained / total) if total else ""
    cut_note = f", {plural(cut, 'token')} beyond the max length are cut" if cut else ""
    place = f"Row {number:,}" + (f", line {line:,} of the file" if line is not None else "")
    whose = f" Tokens of {escape(model)}." if model else ""
    return (
        f"<section class='rendered'><p class='muted'><b>{place}.</b> {plural(total, 'token')}, "
        f"{trained:,} of them learned ({share}){cut_note}.{whose}</p>"
        f"{_end_token(result.get('end_token'))}"
        "<p class='token-legend'><span class='tk trained'>learned</span>"
        "<span class='tk context'>context</span><span class='tk special'>special token</span>"
        "<span class='tk cut'>cut off</span><span class='muted'>Point at a token, or use the arrow "
        "keys, to see its number.</span></p>"
        f"<div class='tokens' tabindex='0' role='group' aria-label='Tokens of row {number:,}' "
        f"data-ids='{ids}'>{spans}</div><p class='token-note' role='status'></p>"
        f"{more if len(tokens) > TOKENS_SHOWN else ''}</section>"
    )


def _span(token: Mapping[str, Any]) -> str:
    # Letters of data.css: t learned, c context, x cut off, s special.
    letter = "x" if token.get("cut") else "t" if token.get("trained") else "c"
    special = " s" if token.get("special") else ""
    return f"<i class='{letter}{special}'>{escape(token.get('text', ''))}</i>"


def _end_token(report: Mapping[str, Any] | None) -> str:
    """Whether the model learns to stop."""
    if not report or not report.get("message"):
        return ""
    fine = report.get("verdict") == "ok"
    sign = "&#10003;" if fine else "!"
    return (
        f"<p class='end-token {'fine' if fine else 'bad'}'><span class='mark "
        f"{'ok' if fine else 'warning'}' aria-hidden='true'>{sign}</span>"
        f"<span>{escape(report['message'])}</span></p>"
    )


def lengths_value(summary: TokenSummary, look: Look, base: str) -> str:
    """What the histogram needs, as JSON: the browser answers a moved line from it alone.

    `base`: the imported set; an edited one has another id, and a moved line stays.
    """
    return json.dumps({
        "set": base, "max_length": look.max_length, "rows": summary.rows,
        "longest": summary.longest, "exact": summary.exact, "tokens": summary.tokens,
        "lengths": [summary.lengths.at, summary.lengths.count],
        "answer_starts": [summary.answer_starts.at, summary.answer_starts.count],
        "bars": [[bar["from"], bar["to"], bar["rows"]] for bar in histogram(summary)],
    }, separators=(",", ":"))  # fmt: skip


def epoch_html(
    summary: TokenSummary, look: Look, max_length: int, held_out: int, tokens_per_s: float | None
) -> str:
    """Tokens, padding, steps and time of an epoch at this cut."""
    cut = cut_at(summary, max_length)
    train_share = 1 - held_out / max(1, summary.rows)
    tokens = cut.tokens * train_share
    chosen = "packed" if look.packing else "grouped" if look.grouped else "random"
    ways = padding(
        summary, max_length, batch_size=look.batch_size, accumulation=look.accumulation,
        held_out=held_out,
    )  # fmt: skip
    steps = next((way.steps_per_epoch for way in ways if way.way == chosen), 0)
    tiles = [
        ("Tokens an epoch", short_count(tokens), "of the training rows"),
        ("Learned", percent(cut.trained_share), "of the tokens of all rows"),
        ("Steps an epoch", count(steps), f"{look.batch_size * look.accumulation:,} rows a step"),
        _time_tile(tokens, tokens_per_s),
    ]
    cells = "".join(
        f"<div><span>{title}</span><b>{escape(value)}</b><em>{escape(note)}</em></div>"
        for title, value, note in tiles
    )
    rows = "".join(_way(way, way.way == chosen) for way in ways)
    return (
        f"<div class='sum'>{cells}</div><div class='ways-wrap' tabindex='0' role='group' "
        "aria-label='Padding'><table class='ways'><caption>Padding, by how batches are made"
        "</caption><thead><tr><th scope='col'>Way</th><th scope='col'>Padding</th>"
        f"<th scope='col'>Steps an epoch</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _time_tile(tokens: float, tokens_per_s: float | None) -> tuple[str, str, str]:
    if not tokens_per_s:
        return ("Time an epoch", "\u2013", "known after a first run of this model")
    return (
        "Time an epoch", duration(tokens / tokens_per_s),
        f"at {tokens_per_s:,.0f} tokens/s, as in its last run",
    )  # fmt: skip


def _way(way: Any, chosen: bool) -> str:
    title, note = WAYS[way.way]
    mark = " <span class='chip-on'>chosen</span>" if chosen else ""
    return (
        f"<tr><th scope='row'>{title}{mark}<span class='muted'>{note}</span></th>"
        f"<td>{percent(way.waste_share) if way.waste_share else '0 %'}</td>"
        f"<td>{way.steps_per_epoch:,}</td></tr>"
    )


def speed_of(runs: Sequence[Any], model_id: str) -> float | None:
    """Tokens a second of the newest run that ended with this model; None where there is none."""
    for run in runs:
        trained = ((run.config or {}).get("model") or {}).get("id")
        speed = (run.exit or {}).get("tokens_per_s")
        if trained == model_id and isinstance(speed, int | float) and speed > 0:
            return float(speed)
    return None
