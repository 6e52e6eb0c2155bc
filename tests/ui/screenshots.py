"""Pictures of the page from a real run: `make screenshots`.

    python -m tests.ui.screenshots              the pictures that the docs use, into docs/images
    python -m tests.ui.screenshots --all DIR    four tabs, both themes, 1440 and 390 pixels wide

Starts the studio on an empty workspace, trains the first run, asks one question.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser_setup import find_chromium
from tests.conftest import ROOT
from tests.ui.conftest import FLAGS, Site, Watched, free_port, open_page
from tests.waiting import wait_until

TABS = ("Data", "Train", "Chat", "Runs")
THEMES = ("light", "dark")
SIZES = {"": (1440, 960), "-phone": (390, 844)}
DOCS = ROOT / "docs" / "images"
DOCS_PICTURES = ("data-light", "chat-light", "runs-light", "train-light-phone")
TRAIN_TIMEOUT_S = 600


def shoot(watched: Watched, file: Path, *, whole: bool = True) -> None:
    """One picture, after charts and fonts had time to settle."""
    watched.page.evaluate("document.fonts.ready")
    watched.page.wait_for_timeout(1200)
    watched.page.mouse.move(0, 0)
    watched.page.screenshot(path=file, full_page=whole)
    sys.stdout.write(f"{file}\n")


def train_first_run(browser: Any, url: str, during: Path) -> None:
    """Click the first run, take a picture in the middle of it, wait for its end."""
    with open_page(browser, viewport={"width": 1440, "height": 1180}) as watched:
        watched.open(url)
        watched.page.get_by_role("button", name="Train a model in 60 seconds").click()
        watched.page.get_by_test_id("run-state").wait_for()
        wait_until(
            lambda: int(watched.text("run-step")) >= 18, timeout_s=TRAIN_TIMEOUT_S, what="18"
        )
        shoot(watched, during, whole=False)
        watched.wait_state("done", timeout_s=TRAIN_TIMEOUT_S)


def ready(watched: Watched, tab: str) -> None:
    """Bring a tab into the state that is worth a picture."""
    page = watched.page
    watched.tab(tab)
    if tab == "Data":
        page.locator("#dataset input").click()
        page.get_by_role("option", name="harbor-style").first.click()
        page.locator(".tk.trained").first.wait_for()
    elif tab == "Train":
        wait_until(lambda: watched.points() >= 30, what="the curve")
        page.locator("#startcard .sum").wait_for()
    elif tab == "Chat":
        page.locator("button.prompt").first.click()
        message = page.get_by_label("Message")
        wait_until(lambda: message.input_value(), what="the prompt")
        send = page.get_by_role("button", name="Send")
        send.click()
        bots = page.locator("[data-testid=bot]")
        wait_until(lambda: bots.count() == 2 and send.is_enabled(), timeout_s=300, what="answers")
    else:
        page.get_by_role("button", name="My first run").click()
        page.get_by_role("button", name="Rename").wait_for()


def tour(browser: Any, url: str, folder: Path, wanted: tuple[str, ...] | None) -> None:
    """All tabs in all looks; `wanted` names the pictures to take, None takes all."""
    for suffix, (width, height) in SIZES.items():
        for theme in THEMES:
            names = {tab: f"{tab.lower()}-{theme}{suffix}" for tab in TABS}
            chosen = [tab for tab in TABS if wanted is None or names[tab] in wanted]
            if not chosen:
                continue
            with open_page(browser, viewport={"width": width, "height": height}) as watched:
                watched.open(f"{url}/?__theme={theme}")
                for tab in chosen:
                    ready(watched, tab)
                    shoot(watched, folder / f"{names[tab]}.png")


def main() -> None:
    """Parse the arguments, start a studio, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="DIR", help="every tab, theme and size")
    folder = parser.parse_args().all
    wanted = None if folder else DOCS_PICTURES
    folder = (folder or DOCS).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        port = free_port()
        command = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--workspace"]
        site = Site([*command, f"{scratch}/w"], f"http://127.0.0.1:{port}", Path(scratch, "log"))
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            site.start()
            train_first_run(browser, site.url, folder / "train-light.png")
            tour(browser, site.url, folder, wanted)
        finally:
            browser.close()
            site.stop()


if __name__ == "__main__":
    main()
