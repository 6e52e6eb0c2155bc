"""axe-core finds no violation of our making: four tabs, both themes.

axe-core is not shipped with the studio; `npm install axe-core` in the checkout (or AXE_CORE naming
axe.min.js) switches this on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.ui.conftest import Site, Watched, open_page
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]


def axe_script() -> Path | None:
    """Where axe-core lies, None where it is not installed."""
    places = [os.environ.get("AXE_CORE"), ROOT / "node_modules/axe-core/axe.min.js"]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def violations(watched: Watched, settle_s: float = 20.0) -> list[str]:
    """What axe finds once the page is at rest: a button that fades in has no contrast yet."""
    end = time.monotonic() + settle_s
    while (found := scan(watched)) and time.monotonic() < end:
        watched.page.wait_for_timeout(500)
    return found


def scan(watched: Watched) -> list[str]:
    found: Any = watched.page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    return [
        f"{item['id']}: {node['html'][:160]}"
        for item in found["violations"]
        for node in item["nodes"]
    ]


@pytest.mark.skipif(axe_script() is None, reason="axe-core is not installed (npm install axe-core)")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_violation(watched: Watched, fake_site: Site, tmp_path: Path, theme: str) -> None:
    script = axe_script()
    assert script is not None
    watched.open(f"{fake_site.url}/?__theme={theme}")
    watched.page.evaluate(script.read_text(encoding="utf-8"))
    found = {"Data, empty": violations(watched)}
    file = tmp_path / "pairs.csv"
    file.write_text("question,answer\n" + "".join(f"What is {i}?,It is {i}.\n" for i in range(12)))
    watched.page.get_by_label("Training file").set_input_files(file)
    watched.page.locator(".tk.trained").first.wait_for()
    found["Data"] = violations(watched)
    watched.page.get_by_role("button", name="Train a model in 60 seconds").click()
    watched.page.get_by_test_id("run-state").wait_for()
    watched.wait_state("done")
    found["Train"] = violations(watched)
    watched.page.get_by_role("button", name="Done. Chat with it").click()
    watched.page.get_by_role("button", name="Send").click()
    watched.page.get_by_label("Base model").get_by_text("(cut at 96 tokens)").wait_for()
    send = watched.page.get_by_role("button", name="Send")
    wait_until(send.is_enabled, what="the end of the answers")
    found["Chat"] = violations(watched)
    watched.tab("Runs")
    watched.page.get_by_role("button", name="My first run").click()
    watched.page.get_by_role("button", name="Rename").wait_for()
    found["Runs"] = violations(watched)
    assert {tab: items for tab, items in found.items() if items} == {}


@pytest.mark.skipif(axe_script() is None, reason="axe-core is not installed (npm install axe-core)")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_violation_on_a_phone(browser: Any, fake_site: Site, theme: str) -> None:
    script = axe_script()
    assert script is not None
    with open_page(browser, viewport={"width": 390, "height": 844}) as watched:
        watched.open(f"{fake_site.url}/?__theme={theme}")
        watched.page.evaluate(script.read_text(encoding="utf-8"))
        found = {}
        for tab in ("Data", "Train", "Chat", "Runs"):
            watched.tab(tab)
            watched.page.locator("button[role=tab].selected", has_text=tab).wait_for()
            found[tab] = violations(watched)
    assert {tab: items for tab, items in found.items() if items} == {}
