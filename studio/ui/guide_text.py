"""The guide "Which knobs?" as HTML: docs/guide/which-knobs.md with the numbers of one's own run.

Owns the few marks of Markdown that the guide uses and where numbers go into it. Links that lead
out open apart and tell nothing of this page; links into the repository become the file's name.
Pure text; knows nothing of models, memory or gradio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from studio.ui.text import escape

FILE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "which-knobs.md"
_HERE = re.compile(r"<!-- here: (\w+) -->")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Here:
    """What a section says of one's own model: a sentence and, below it, a small table."""

    sentence: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """One knob: its title, the points with their sources, the name of its numbers."""

    title: str
    points: tuple[str, ...]
    here: str | None


def read_guide(file: Path = FILE) -> tuple[Section, ...]:
    """The sections of the guide. Raises OSError where the file is not there."""
    sections = []
    for part in file.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        place = _HERE.search(body)
        points = re.findall(r"^- (.+?)(?=^- |\n\n|\Z)", body, re.MULTILINE | re.DOTALL)
        texts = tuple(" ".join(point.split()) for point in points)
        sections.append(Section(title.strip(), texts, place.group(1) if place else None))
    return tuple(sections)


def guide_html(sections: tuple[Section, ...], here: Mapping[str, Here] | None = None) -> str:
    """All sections, with the numbers that there are."""
    return "<div class='guide'>" + "".join(_section(s, here or {}) for s in sections) + "</div>"


def _section(section: Section, here: Mapping[str, Here]) -> str:
    points = "".join(f"<li>{_inline(point)}</li>" for point in section.points)
    own = here.get(section.here or "")
    numbers = "" if own is None else here_html(own)
    return f"<section><h3>{escape(section.title)}</h3><ul>{points}</ul>{numbers}</section>"


def here_html(own: Here) -> str:
    """The box with one's own numbers. Everything in it is escaped."""
    table = ""
    if own.rows:
        head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in own.head)
        body = "".join(_row(row) for row in own.rows)
        table = f"<div class='wide'><table><thead><tr>{head}</tr></thead>{body}</table></div>"
    return f"<div class='here'><p><b>Yours.</b> {escape(own.sentence)}</p>{table}</div>"


def _row(row: tuple[str, ...]) -> str:
    first, *others = row
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f"<tr><th scope='row'>{escape(first)}</th>{cells}</tr>"


def _inline(text: str) -> str:
    """Text with its links."""
    parts, end = [], 0
    for match in _LINK.finditer(text):
        parts += [escape(text[end : match.start()]), _link(*match.groups())]
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def _link(words: str, target: str) -> str:
    if target.startswith("https://"):
        return (
            f"<a href='{escape(target)}' target='_blank' rel='noopener noreferrer'>"
            f"{escape(words)}</a>"
        )
    file = target.partition("#")[0].rpartition("/")[2]
    return f"{escape(words)}: <code>docs/{escape(file)}</code>"
