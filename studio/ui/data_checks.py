"""The checks panel: one line a check, the rows it names, its list as a file, its one-click fix.

Owns which checks are shown (those of the data set, of its split, and of the tokens once they were
counted) and their HTML. The buttons carry `data-act` and `data-check`; `assets/data_checks.js`
turns a click into an event. Knows nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from studio.core.checks import CHECKS, TOKEN_CHECKS
from studio.core.errors import DatasetError
from studio.core.token_stats import TokenSummary, cut_at
from studio.services.check_lists import check_summaries, list_check
from studio.services.dataset_records import DatasetInfo
from studio.services.left_out_rows import EXCLUDED
from studio.services.near_duplicates import expected_s, found_near_duplicates
from studio.services.row_places import rows_at
from studio.ui.data_look import Look, TokenBook
from studio.ui.text import clip, duration, escape, plural

PAGE_ROWS = 20
# Lists the rows that changes have left out, of a data set.
Excluded = Callable[[DatasetInfo, int, int], list[dict[str, Any]]]
REFUSED = "refused"
_UNLEARNED = {check: "left out in training" for check in ("no_trained_token", "answer_cut")}
_SINGULAR = (
    ("that repeat ", "that repeats "), ("that are cut", "that is cut"),
    ("that likely hold ", "that likely holds "), ("that also train", "that also trains"),
)  # fmt: skip
_MARKS = {"error": ("!", "Error"), "warning": ("?", "Warning"), "info": ("i", "Note")}


@dataclass(frozen=True)
class Opened:
    """The check whose rows are listed, and from which hit on; written as "duplicate:20"."""

    check: str = ""
    start: int = 0

    @classmethod
    def read(cls, text: Any) -> Opened:
        check, _, start = str(text or "").partition(":")
        known = check in CHECKS or check == EXCLUDED
        return cls(check if known else "", int(start) if start.isdecimal() else 0)

    def __str__(self) -> str:
        return f"{self.check}:{self.start}" if self.check else ""


def all_checks(info: DatasetInfo, look: Look, book: TokenBook) -> list[dict[str, Any]]:
    """Every check that found something, worst first."""
    entries = check_summaries(info, val_frac=look.val_frac, seed=look.seed)
    summary = book.get(info, look)
    if summary is not None:
        entries += token_checks(info, look, summary, book)
    worst = {"error": 0, "warning": 1, "info": 2}
    order = {check: place for place, check in enumerate(CHECKS)}
    entries += _excluded_entries(info)
    return sorted(entries, key=lambda e: (worst[e["level"]], order.get(e["id"], 0)))


def _excluded_entries(info: DatasetInfo) -> list[dict[str, Any]]:
    """The rows that changes have left out, as a line among the checks."""
    unused = sum(entry["count"] for entry in info.checks if entry.get("left_out"))
    count = info.left_out - unused
    if not info.base or count <= 0:
        return []
    return [{
        "id": EXCLUDED, "title": "rows that changes have left out", "level": "info",
        "count": count, "listed": count, "first": [], "left_out": True, "fix": None,
        "remedy": "Open one to put it back, or undo the change",
    }]  # fmt: skip


def token_checks(
    info: DatasetInfo, look: Look, summary: TokenSummary, book: TokenBook
) -> list[dict[str, Any]]:
    """The checks that the chosen model's tokenizer decides, at this max_length."""
    cut = cut_at(summary, look.max_length)
    counts = {
        "no_trained_token": summary.never_trained, "answer_cut": cut.answer_lost,
        "cut": cut.rows_cut,
    }  # fmt: skip
    entries = []
    for check, count in counts.items():
        if not count:
            continue
        listed = book.rows(info, look, check)
        if check == "no_trained_token":  # those whose answer is cut have a line of their own
            lost = set(book.rows(info, look, "answer_cut"))
            listed = [row for row in listed if row not in lost]
        entries.append(_token_entry(info, check, count, listed))
    if summary.refused:
        entries.append(_refused_entry(summary))
    return entries


def _token_entry(
    info: DatasetInfo, check: str, count: int, listed: Sequence[int]
) -> dict[str, Any]:
    known = CHECKS[check]
    number = min(count, len(listed))
    label = f"Leave out {'the first ' if number < count else ''}{plural(number, 'row')}"
    places = rows_at(info, listed[:5])
    return {
        "id": check, "title": known.title, "level": known.level, "count": count,
        "listed": number, "first": [{"i": i, "line": line, "detail": ""} for i, line in places],
        "remedy": known.remedy, "left_out": False,
        "fix": {"step": {"step": "exclude", "check": check}, "label": label} if number else None,
    }  # fmt: skip


def _refused_entry(summary: TokenSummary) -> dict[str, Any]:
    reasons = "; ".join(
        f"{reason} ({plural(count, 'row')})"
        for reason, count in list(summary.refused_reasons.items())[:3]
    )
    return {
        "id": REFUSED, "title": "rows that the model's template cannot render", "level": "error",
        "count": summary.refused, "listed": 0, "first": [], "left_out": True, "fix": None,
        "remedy": f"{clip(reasons, 300)}. Choose another model or edit these rows",
    }  # fmt: skip


def rows_of(
    info: DatasetInfo, look: Look, book: TokenBook, opened: Opened, excluded: Excluded | None = None
) -> list[dict[str, Any]]:
    """The hits of the opened check on this page of its list."""
    if opened.check == EXCLUDED:
        return [] if excluded is None else excluded(info, opened.start, PAGE_ROWS)
    if opened.check in TOKEN_CHECKS:
        listed = book.rows(info, look, opened.check)[opened.start : opened.start + PAGE_ROWS]
        return [{"i": i, "line": line, "detail": ""} for i, line in rows_at(info, listed)]
    return list_check(
        info, opened.check, opened.start, PAGE_ROWS, val_frac=look.val_frac, seed=look.seed
    )


def excluded_rows(info: DatasetInfo, look: Look, book: TokenBook, check: str) -> list[int]:
    """The rows, by `i`, that the fix of a token check leaves out.

    Raises:
        DatasetError: there are none, or their tokens were not counted at this max_length.
    """
    rows = book.rows(info, look, check)
    if check == "no_trained_token":
        lost = set(book.rows(info, look, "answer_cut"))
        rows = [row for row in rows if row not in lost]
    if not rows:
        raise DatasetError(
            "This check names no row with these settings", value=check, remedy="Count tokens again"
        )
    return [i for i, _ in rows_at(info, rows)]


# ---------------------------------------------------------------------------------------- HTML


def checks_html(
    info: DatasetInfo, look: Look, book: TokenBook, opened: Opened, *, can_change: bool = True,
    excluded: Excluded | None = None,
) -> str:  # fmt: skip
    """The panel. `excluded` lists the rows that changes have left out."""
    lines = ""
    for entry in all_checks(info, look, book):
        is_open = opened.check == entry["id"]
        hits = rows_of(info, look, book, opened, excluded) if is_open else None
        lines += _line(info, look, entry, hits, opened.start, can_change)
    if not lines:
        lines = (
            "<li class='check fine'><span class='mark ok' aria-hidden='true'>&#10003;</span>"
            "<div class='check-what'><b>Nothing found.</b> <span class='muted'>Empty rows, wrong "
            "roles, duplicates, conflicting answers, broken characters, secrets and addresses were "
            "looked for.</span></div></li>"
        )
    return f"<ul class='checks'>{lines}{_near_line(info)}{_token_line(info, look, book)}</ul>"


def _near_line(info: DatasetInfo) -> str:
    """The search for near-duplicates, where nobody has looked yet."""
    if found_near_duplicates(info.folder) is not None:
        return ""
    return (
        "<li class='check open'><span class='mark info' aria-hidden='true'>i</span>"
        "<div class='check-what'><b>Near-duplicates</b> were not looked for yet. <span "
        f"class='muted'>Takes about {duration(expected_s(info))}.</span></div><div "
        "class='check-acts'><button type='button' data-act='near' data-check=''>Look for "
        "near-duplicates</button></div></li>"
    )


def _token_line(info: DatasetInfo, look: Look, book: TokenBook) -> str:
    if book.get(info, look) is not None:
        return ""
    return (
        "<li class='check open'><span class='mark info' aria-hidden='true'>i</span>"
        "<div class='check-what'><b>Rows that are too long</b> <span class='muted'>are known once "
        "the tokens are counted, below.</span></div></li>"
    )


def _line(
    info: DatasetInfo, look: Look, entry: Mapping[str, Any],
    hits: Sequence[Mapping[str, Any]] | None, start: int, can_change: bool,
) -> str:  # fmt: skip
    """One check; `hits` are its rows from number `start` where it is open."""
    check, level = str(entry["id"]), str(entry["level"])
    sign, word = _MARKS[level]
    chip = "left out" if entry.get("left_out") else _UNLEARNED.get(check, "")
    left = f" <span class='chip-out'>{chip}</span>" if chip else ""
    acts = _actions(info, look, entry, hits is not None, can_change)
    rows = "" if hits is None else _rows(entry, hits, start, can_change)
    title = str(entry["title"])
    return (
        f"<li class='check' data-level='{escape(level)}'>"
        f"<span class='mark {escape(level)}' role='img' aria-label='{word}'>{sign}</span>"
        f"<div class='check-what'><b>{entry['count']:,}</b> {escape(_counted(entry, title))}{left}"
        f"{_places(entry)}<span class='muted remedy'>{escape(entry['remedy'])}.</span></div>"
        f"<div class='check-acts'>{acts}</div>{rows}</li>"
    )


def _counted(entry: Mapping[str, Any], title: str) -> str:
    """ "1 row that repeats", as far as a title of several is easily put in the singular."""
    if entry["count"] != 1:
        return title
    one = title.replace("rows", "row", 1).replace("conversations", "conversation", 1)
    for several, single in _SINGULAR:
        one = one.replace(several, single)
    return one


def _places(entry: Mapping[str, Any]) -> str:
    """The first lines; by row number where the file has no lines."""
    first = entry.get("first") or []
    lines = [hit["line"] for hit in first if hit.get("line") is not None]
    shown = lines or [hit["i"] for hit in first]
    if not shown:
        return ""
    what = "line" if lines else "row"
    what += "" if len(shown) == 1 and entry["count"] == 1 else "s"
    listed = ", ".join(f"{number:,}" for number in shown[:5])
    more = ", \u2026" if entry["count"] > len(shown) else ""
    return f" <span class='places'>{what} {listed}{more}</span>"


def _actions(
    info: DatasetInfo, look: Look, entry: Mapping[str, Any], is_open: bool, can_change: bool
) -> str:
    check, title = escape(entry["id"]), escape(entry["title"])
    if entry["id"] == REFUSED:
        return ""
    word = "Hide rows" if is_open else "Show rows"
    acts = (
        f"<button type='button' data-act='{'hide' if is_open else 'show'}' data-check='{check}' "
        f"aria-expanded='{str(is_open).lower()}' aria-label='{word}: {title}'>{word}</button>"
        f"<a href='{escape(list_link(info, look, str(entry['id'])))}' download "
        f"aria-label='Download list: {title}'>Download list</a>"
    )
    fix = entry.get("fix")
    if fix and can_change:
        acts += (
            f"<button type='button' class='fix' data-act='fix' data-check='{check}'>"
            f"{escape(fix['label'])}</button>"
        )
    return acts


def list_link(info: DatasetInfo, look: Look, check: str) -> str:
    """Where the browser gets the check's rows as CSV."""
    asked: dict[str, Any] = {}
    if check == "held_out_overlap":
        asked = {"val_frac": look.val_frac, "seed": look.seed}
    if check in TOKEN_CHECKS:
        asked = {"model": look.model_id, "loss_on": look.loss_on, "max_length": look.max_length,
                 "system_prompt": look.system_prompt or ""}  # fmt: skip
    query = f"?{urlencode(asked)}" if asked else ""
    return f"api/datasets/{quote(info.id)}/checks/{quote(check)}.csv{query}"


def _rows(
    entry: Mapping[str, Any], hits: Sequence[Mapping[str, Any]], start: int, can_change: bool
) -> str:
    left_out = bool(entry.get("left_out"))
    items = "".join(_hit(hit, left_out, can_change) for hit in hits)
    end = start + len(hits)
    known = max(end, int(entry.get("listed") or 0))
    count, check = int(entry["count"]), escape(entry["id"])
    pages = _page_button(check, max(0, start - PAGE_ROWS), "Earlier") if start else ""
    pages += _page_button(check, end, "More") if end < known else ""
    shown = f"{start + 1:,} to {end:,}" if len(hits) > 1 else f"{end if hits else 0:,}"
    cut = f" The list ends after {known:,} rows." if known < count else ""
    if cut and left_out and can_change:
        cut += " Others are opened by their number: type it below and press Edit."
    told = f"<span class='muted'>{shown} of {plural(count, 'row')}.{cut}</span>"
    return (
        f"<div class='hits'><ol start='{start + 1}'>{items}</ol>"
        f"<p class='pages'>{told}{pages}</p></div>"
    )


def _page_button(check: str, start: int, word: str) -> str:
    return f"<button type='button' data-act='show' data-check='{check}:{start}'>{word}</button>"


def _hit(hit: Mapping[str, Any], left_out: bool, can_change: bool) -> str:
    number = f"row {hit['i']:,}" + (f", line {hit['line']:,}" if hit.get("line") else "")
    act, does = ("mend", "Edit ") if left_out else ("row", "")
    where = (
        f"<span class='at'>{number}</span>" if left_out and not can_change else
        f"<button type='button' class='at' data-act='{act}' data-check='{int(hit['i'])}'>{does}"
        f"{number}</button>"
    )  # fmt: skip
    detail = escape(clip(hit.get("detail") or "", 240))
    preview = hit.get("preview")
    said = f"<code>{escape(clip(preview, 200))}</code>" if preview else ""
    return f"<li>{where} <span class='why'>{detail}</span>{said}</li>"
