"""The out-of-memory doctor in the page, on run folders as a trainer leaves them: what is shown, on
which screens, and who may press the button."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from studio.core.config_io import build_config
from studio.core.out_of_memory import MemoryFault, OtherProgram
from studio.core.runs import RunPaths
from tests.services.test_memory import service
from tests.ui.conftest import Site, Watched, open_page
from tests.ui.fake_runs import finish, make_run, write_step
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
GIB = 2**30
CONFIG = {
    "data": {"path": "x"}, "runtime": {"device": "cpu", "num_threads": 1},
    "model": {"dtype": "float32", "attn_implementation": "sdpa"},
    "train": {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1,
              "max_length": 512, "activation_checkpointing": False, "optim": "adamw_torch_fused",
              "eval_steps": 10, "save_steps": 10},
}  # fmt: skip


def failed_run(folder: Path, fault: MemoryFault, name: str = "Out of memory") -> RunPaths:
    """A run of nine steps that ended in its fourth."""
    paths = make_run(folder / "w" / "runs", build_config(CONFIG), name)
    for step in range(4):
        write_step(paths, step, 9)
    finish(paths, 3, 9, "failed")
    what = "The computer ran out of main memory (RAM) in training"
    text = f"{what}. Halve train.max_length."
    error = {"type": "OutOfMemoryError", "text": text, "what": what, "memory": fault.to_dict()}
    record = json.loads(paths.exit_json.read_text()) | {"error": error, "verdict": text}
    paths.exit_json.write_text(json.dumps(record))
    return paths


@pytest.fixture(scope="module")
def nearly(folder: Path) -> int:
    """A little less than what the estimate asks for."""
    with contextlib.closing(service(folder / "shapes")) as memory:
        return int(0.9 * memory.estimate("starter", build_config(CONFIG)).estimate.high)


def fault_of(budget_bytes: int, **more: Any) -> MemoryFault:
    return MemoryFault(
        "host", "training", 3, asked_bytes=GIB, free_bytes=GIB // 4, total_bytes=200 * GIB,
        used_bytes=budget_bytes - GIB // 4, budget_bytes=budget_bytes, **more,
    )  # fmt: skip


def show_run(watched: Watched, paths: RunPaths) -> None:
    """Open the run in the live view."""
    watched.tab("Runs")
    watched.page.get_by_role("button", name="Refresh", exact=True).click()
    watched.page.locator(f"button[data-run='{paths.id}']").click()
    watched.page.locator("#run-panel").get_by_role("button", name="Open", exact=True).click()


def open_run(watched: Watched, site: Site, paths: RunPaths, theme: str = "light") -> Any:
    """Show the run in the live view; its panel, once it is worked out."""
    watched.page.goto(f"{site.url}/?__theme={theme}")
    watched.page.get_by_role("tab", name="Runs", exact=True).wait_for()
    show_run(watched, paths)
    panel = watched.page.locator("#live .l-doctor")
    panel.locator(".doc").wait_for()
    return panel


def test_it_shows_what_was_asked_what_was_free_and_what_would_fit(
    watched: Watched, site: Site, folder: Path, nearly: int
) -> None:
    panel = open_run(watched, site, failed_run(folder, fault_of(nearly)))
    text = panel.inner_text()
    assert "in training after step 3: 1 GiB was asked for, and 256 MiB of 200 GiB was" in text
    assert "It starts over: this run had saved no checkpoint yet." in text
    options = panel.get_by_role("radio")
    assert options.count() >= 2 and options.first.is_checked()
    assert "saves" in text and "about a third slower" in text
    end = watched.page.locator("#live .l-end")  # the run's own line names no knobs beside these
    end.get_by_text("in training. What would fit stands below.").wait_for()
    assert "train.max_length" not in end.inner_text()
    panel.get_by_role("button", name="Apply and retry").dblclick()
    name = watched.page.locator("#live .l-name", has_text="Out of memory, ")
    name.wait_for()
    runs = [run for run in site.json("/api/runs")["runs"] if run["name"] == name.inner_text()]
    assert len(runs) == 1, "two clicks, one run"
    wait_until(lambda: not panel.is_visible(), what="the panel to go with its run")
    assert watched.problems == []


def test_names_of_other_programs_are_text_and_nothing_else(
    watched: Watched, site: Site, folder: Path, nearly: int
) -> None:
    other = OtherProgram(7, 9 * GIB, "<img src=x onerror=alert(1)>")
    panel = open_run(watched, site, failed_run(folder, fault_of(nearly, others=(other,))))
    panel.get_by_text("<img src=x onerror=alert(1)> (process 7)").wait_for()
    assert panel.locator("img").count() == 0
    assert watched.problems == []


def test_where_nothing_fits_it_says_so_and_offers_no_button(
    watched: Watched, site: Site, folder: Path
) -> None:
    panel = open_run(watched, site, failed_run(folder, fault_of(GIB)))
    panel.get_by_text("Even with the smallest settings it needs about").wait_for()
    assert panel.get_by_role("button").count() == 0
    assert "Halve train.max_length." in watched.page.locator("#live .l-end").inner_text()


def test_while_it_works_the_seconds_are_counted(
    watched: Watched, site: Site, folder: Path, nearly: int
) -> None:
    watched.page.add_init_script(
        "const real = window.fetch;"
        "window.fetch = (url, ...rest) => String(url).endsWith('/doctor')"
        " ? new Promise((done) => { window.goOn = () => done(real(url, ...rest)); })"
        " : real(url, ...rest);"
    )
    paths = failed_run(folder, fault_of(nearly), "Slow to tell")
    watched.open(site.url)
    show_run(watched, paths)
    panel = watched.page.locator("#live .l-doctor")
    panel.get_by_text("Working out which settings would fit: 2 s, up to a minute").wait_for()
    watched.page.evaluate("window.goOn()")
    panel.get_by_role("button", name="Apply and retry").wait_for()
    assert watched.problems == []


def test_a_run_that_failed_otherwise_has_no_such_panel(
    watched: Watched, site: Site, folder: Path, nearly: int
) -> None:
    paths = failed_run(folder, fault_of(nearly))
    record = json.loads(paths.exit_json.read_text())
    del record["error"]["memory"]
    paths.exit_json.write_text(json.dumps(record))
    other = failed_run(folder, fault_of(nearly), "Another")
    open_run(watched, site, other)
    show_run(watched, paths)
    watched.page.locator("#live .l-end", has_text="ran out of main memory").wait_for()
    wait_until(lambda: not watched.page.locator("#live .l-doctor").is_visible(), what="no panel")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_the_screen(
    browser: Any, site: Site, folder: Path, nearly: int, theme: str, width: int
) -> None:
    with open_page(browser, viewport={"width": width, "height": 900}) as watched:
        panel = open_run(watched, site, failed_run(folder, fault_of(nearly)), theme)
        box = panel.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        clipped = panel.evaluate(
            "(e) => [...e.querySelectorAll('*')].filter((n) => n.clientWidth > 0 && n.scrollWidth "
            "> n.clientWidth + 1 && getComputedStyle(n).display !== 'inline')"
            ".map((n) => n.className)"
        )
        assert clipped == []
