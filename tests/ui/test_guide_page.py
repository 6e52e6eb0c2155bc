"""The guide in a real browser: opened, filled, asked for more; links that lead out plainly."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ui.conftest import Site, Watched, open_page
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}


def open_guide(watched: Watched, site: Site, theme: str = "light") -> Any:
    watched.open(f"{site.url}/?__theme={theme}")
    watched.tab("Train")
    guide = watched.page.locator("#guide")
    guide.get_by_role("button", name="Which knobs? A guide with sources").click()
    guide.locator(".guide li").first.wait_for()
    return guide


def own(guide: Any, title: str) -> str:
    """What a section says of the model at hand, "" before it says anything."""
    section = guide.locator("section", has=guide.page.get_by_role("heading", name=title))
    box = section.locator(".here")
    return str(box.inner_text()) if box.count() else ""


def test_opened_and_filled(watched: Watched, fake_site: Site) -> None:
    guide = open_guide(watched, fake_site)
    assert guide.locator("section").count() == 9
    # What stands above it depends on whether the bar has counted the shapes already.
    guide.locator(".here").first.wait_for()
    guide.locator("#guide-count").click()
    wait_until(lambda: "trained numbers" in own(guide, "Rank (r)").lower(), what="the numbers")
    assert "(yours)" in own(guide, "Rank (r)") and "GiB" in own(guide, "Max length")
    assert "alpha / r = 2" in own(guide, "Alpha")
    links = guide.locator(".guide a")
    assert links.count() >= 20
    for link in links.all():
        assert str(link.get_attribute("href")).startswith("https://")
        assert link.get_attribute("rel") == "noopener noreferrer"
    assert guide.locator("img, iframe, script").count() == 0
    assert watched.hosts == {fake_site.url.split("/")[2]}
    assert watched.problems == []


def test_its_numbers_follow_the_form(watched: Watched, fake_site: Site) -> None:
    guide = open_guide(watched, fake_site)
    alpha = watched.page.get_by_label("Alpha", exact=False).first
    alpha.fill("96")
    alpha.press("Tab")
    guide.locator("#guide-count").click()
    wait_until(lambda: "alpha / r = 6" in own(guide, "Alpha"), what="the new ratio")
    assert watched.problems == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(browser: Any, fake_site: Site, size: str) -> None:
    width, height = SIZES[size]
    with open_page(browser, viewport={"width": width, "height": height}) as watched:
        guide = open_guide(watched, fake_site)
        guide.locator("#guide-count").click()
        wait_until(lambda: own(guide, "Rank (r)"), what="the numbers")
        wide = watched.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        for box in guide.locator("section").all():
            place = box.bounding_box()
            assert place["x"] >= 0 and place["x"] + place["width"] <= width
