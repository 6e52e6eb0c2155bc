"""The form comes back as it was left; what is not valid any more gives way to the default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ui.conftest import Site, Watched
from tests.waiting import wait_until

pytestmark = pytest.mark.browser


def test_hand_set_values_survive_a_reload(watched: Watched, fake_site: Site, tmp_path: Path):
    watched.open(fake_site.url)
    page = watched.page
    watched.tab("Train")
    wait_until(lambda: page.evaluate("window.studioFormIsBack === true"), what="the memory")
    alpha = page.get_by_label("Alpha").first
    alpha.fill("77")
    alpha.press("Tab")
    page.get_by_label("Run name").fill("Kept name")
    page.get_by_label("Run name").press("Tab")
    kept = "JSON.parse(localStorage.getItem('studio-form-1') || '{}')"
    wait_until(lambda: page.evaluate(kept).get("lora__lora_alpha") == 77, what="it to be kept")
    wait_until(lambda: page.evaluate(kept).get("name") == "Kept name", what="the name")
    assert not any("token" in name for name in page.evaluate(kept))
    watched.reload()
    wait_until(lambda: page.get_by_label("Alpha").first.input_value() == "77", what="the value")
    assert page.get_by_label("Run name").input_value() == "Kept name"
    bad = json.dumps(json.dumps({"lora__lora_alpha": -1, "lora__r": 8, "preset": "x", "name": 7}))
    page.evaluate(f"window.studioFormIsBack = false; localStorage.setItem('studio-form-1', {bad})")
    watched.reload()
    wait_until(lambda: page.get_by_label("Alpha").first.input_value() == "32", what="the default")
    assert page.get_by_label("Run name").input_value() == ""
    # A reload breaks off what gradio was fetching; a refusal by the studio would be another thing.
    assert not [text for text in watched.problems if text[:3].isdigit()]
