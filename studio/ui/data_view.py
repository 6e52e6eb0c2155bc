"""HTML of what a data set is: its counts in a sentence, what was understood, its first rows.

Pure: takes what the services return, gives escaped HTML. Knows nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.ui.text import clip, count, escape, plural

PREVIEW_ROWS = 6
CELL_CHARS = 280

EMPTY = """<div class='empty'><svg width='44' height='44' viewBox='0 0 24 24' aria-hidden='true'>
<path d='M4 5h16M4 12h16M4 19h9' fill='none' stroke='currentColor' stroke-width='1.6'
stroke-linecap='round'/></svg><h2>No examples yet</h2><p>Drop a file, or pick a sample:
you see here what was understood before anything is trained.</p></div>"""

# One word or two for why rows are left out; "12 are left out: 7 empty texts, 5 duplicates".
_SHORT = {
    "unreadable": ("unreadable row", "unreadable rows"),
    "wrong_type": ("value of the wrong kind", "values of the wrong kind"),
    "empty": ("empty or missing text", "empty or missing texts"),
    "roles": ("conversation out of order", "conversations out of order"),
    "no_answer": ("row without an answer", "rows without an answer"),
    "unwanted": ("answer labelled as bad", "answers labelled as bad"),
    "duplicate": ("duplicate", "duplicates"),
    "near_duplicate": ("near-duplicate", "near-duplicates"),
    "held_out_overlap": ("held-out row that also trains", "held-out rows that also train"),
    "cut": ("row too long", "rows too long"),
    "answer_cut": ("row whose whole answer is cut", "rows whose whole answer is cut"),
    "no_trained_token": ("row without a learned token", "rows without a learned token"),
    "same_text": ("answer that repeats its question", "answers that repeat their question"),
    "looks_empty": ("text that stands for nothing", "texts that stand for nothing"),
}  # fmt: skip


def facts_html(
    *,
    rows: int,
    used: int,
    left_out: int,
    held_out: int,
    note: str = "",
    name: str = "",
    reasons: Sequence[tuple[int, str]] = (),
) -> str:
    """The four counts, the same as a sentence with the reasons, and what was understood."""
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
    said = escape(sentence(used - held_out, held_out, left_out, reasons))
    return (
        f"<div class='facts'>{heading}{line}<div class='tiles four'>{cells}</div>"
        f"<p class='sums'>{said}</p></div>"
    )


def sentence(
    train: int, held_out: int, left_out: int, reasons: Sequence[tuple[int, str]] = ()
) -> str:
    """ "836 rows train, 93 are held out, 12 are left out: 7 empty texts, 5 duplicates."."""
    verb = "trains" if train == 1 else "train"
    parts = [f"{plural(train, 'row')} {verb}"]
    parts.append(f"{held_out:,} {'is' if held_out == 1 else 'are'} held out")
    parts.append(f"{left_out:,} {'is' if left_out == 1 else 'are'} left out")
    why = ", ".join(f"{number:,} {what}" for number, what in reasons)
    return ", ".join(parts) + (f": {why}" if why and left_out else "") + "."


def short_reason(check: str, number: int) -> str:
    """Why rows are left out, in a few words."""
    one, many = _SHORT.get(check, (check.replace("_", " "),) * 2)
    return one if number == 1 else many


def problems_html(problems: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """Rows that cannot be used: line, reason, remedy; for data sets from before the checks."""
    if not left_out and not problems:
        return ""
    items = "".join(_problem(item) for item in problems[:50])
    return (
        f"<details class='problems' open><summary>{plural(left_out, 'row')} left out, and why"
        f"</summary><ul>{items}</ul></details>"
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
        "<details class='rows' open><summary>First rows, as training reads them</summary>"
        f"<div class='row-list' tabindex='0' role='group' aria-label='First rows, scrollable'>"
        f"{body}</div></details>"
    )


def _row(example: Mapping[str, Any]) -> str:
    number = escape(example.get("i", ""))
    messages = example.get("messages")
    if not messages:
        text = escape(clip(example.get("text", ""), CELL_CHARS))
        return f"<article><span class='no'>{number}</span><p class='said'>{text}</p></article>"
    turns = "".join(
        f"<p class='turn {escape(m.get('role', ''))}'><b>{escape(m.get('role', ''))}</b>"
        f"<span>{escape(clip(spoken(m), CELL_CHARS))}</span></p>"
        for m in messages
    )
    return f"<article><span class='no'>{number}</span><div>{turns}</div></article>"


def spoken(message: Mapping[str, Any]) -> str:
    """What a message says; the names of the tools that it calls where it says nothing."""
    content = message.get("content")
    if content:
        return str(content)
    calls = message.get("tool_calls") or ()
    names = [str(((call or {}).get("function") or {}).get("name") or "a tool") for call in calls]
    return f"(calls {', '.join(names)})" if names else ""


def hub_html(look: Any, preview: Any) -> str:
    """The first rows of a hub's data set, as they would be fetched."""
    columns = list(preview.columns)[:12]
    head = "".join(f"<th scope='col'>{escape(clip(name, 40))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(clip(row.get(c, ''), 140))}</td>" for c in columns) + "</tr>"
        for row in preview.rows
    )
    shown = plural(len(preview.rows), "row")
    return (
        f"<p class='hint'><b>{escape(look.hub_id)}</b>: the first {shown}; nothing was kept.</p>"
        "<div class='peek' tabindex='0' role='group' aria-label='First rows of the hub'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def failure_html(message: str) -> str:
    """A sentence about what could not be used, standing where the preview would be."""
    return f"<p class='failure' role='alert'>{escape(message)}</p>"
