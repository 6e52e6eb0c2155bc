"""The stylesheets are joined on one page: a class belongs to one of them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ASSETS = Path(__file__).parents[2] / "studio/ui/assets"
GRADIO = {".dark"}  # classes that the page has from elsewhere


def test_no_class_is_styled_by_two_sheets() -> None:
    sheets: dict[str, set[str]] = defaultdict(set)
    for sheet in ASSETS.glob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8"), flags=re.S)
        for selectors in re.findall(r"([^{}]+)\{", text):
            for selector in map(str.strip, selectors.split(",")):
                if re.fullmatch(r"\.[a-zA-Z][\w-]*", selector) and selector not in GRADIO:
                    sheets[selector].add(sheet.name)
    assert len(sheets) > 50
    assert {name: sorted(where) for name, where in sheets.items() if len(where) > 1} == {}
