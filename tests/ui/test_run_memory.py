"""The drawing of a run's memory: the HTML alone, and in the page."""

from __future__ import annotations

import json
import re

import pytest

from studio.core.fit_constants import fit
from studio.core.memory import CUDA, GIB, MIB, Constants
from studio.core.run_memory import TRAINING, read_record
from studio.services.measured_memory import RunView
from studio.ui.run_memory import DAMAGED, memory_html, run_sentence
from tests.core.memory_records import CARD, record, records

TRUTH = Constants(700 * MIB, 0.15, 0.1)


def html_of(made: dict, runs: int = 4) -> str:
    learned = fit([read_record(one) for one in records("cuda:0", TRUTH, runs)], CUDA)
    return memory_html(RunView(read_record(made), learned))


def test_both_sides_of_each_phase_on_one_scale() -> None:
    made = record("cuda:0", TRUTH, 2 * GIB, GIB)
    html = html_of(made)
    run = read_record(made)
    assert html.count("data-side='predicted'") == html.count("data-side='measured'") == 5
    for words in ("Loading", "Training", "Evaluation", "Sample answers", "Saving"):
        assert f"<h4>{words}</h4>" in html
    widths = [
        sum(map(float, re.findall(r"width:([\d.]+)%", side)))
        for side in html.split("class='rm-side'")[1:]
    ]  # fmt: skip
    training = run.bars()[1]
    assert max(widths) == pytest.approx(100, abs=0.01)
    largest = max(training.predicted_bytes, training.measured_bytes)
    assert widths[2] == pytest.approx(100 * training.predicted_bytes / largest, abs=0.01)
    assert widths[3] == pytest.approx(100 * training.measured_bytes / largest, abs=0.01)
    assert CARD in html and "On this card we are within" in html
    # Each piece once in the legend, with the size it has in the largest bar.
    legend = html.split("rm-legend", 1)[1]
    assert legend.count("data-part='activations'") == 1
    assert "Activations <b>1.00 GiB</b>" in legend


def test_the_sentence_says_how_far_apart_they_are() -> None:
    made = record("cuda:0", TRUTH, 2 * GIB, GIB)
    run = read_record(made)
    share = round(100 * (run.peak_bytes / run.predicted.expected - 1))
    assert share > 0
    assert run_sentence(run).endswith(f"in training: {share} % more than predicted.")
    for values in made["measured"].values():
        values["nvml_process_bytes"] = run.predicted.expected
    assert run_sentence(read_record(made)).endswith("while loading: as predicted.")
    made["estimate"]["unknown"] = ["activations"]
    assert "At least" in run_sentence(read_record(made))
    made |= {"estimate": None, "no_estimate": "The shapes were not counted"}
    assert "No estimate: The shapes were not counted." in run_sentence(read_record(made))
    made["measured"] = {}
    assert run_sentence(read_record(made)) == ""


def test_what_is_missing_is_left_out() -> None:
    assert memory_html(RunView(None, None)) == ""
    assert DAMAGED in memory_html(RunView(None, None, damaged=True))
    made = record("cpu", TRUTH, GIB, GIB)
    made["estimate"] = None
    html = html_of(made, runs=1)
    assert "data-side='measured'" in html and "data-side='predicted'" not in html
    assert "1 of 3" in html
    for phase in made["measured"]:
        made["measured"][phase] = {"rss_bytes": None}
    assert memory_html(RunView(read_record(made), None)) == ""
    made["measured"] = {TRAINING: {"rss_bytes": 0}}
    assert memory_html(RunView(read_record(made), None)) == ""


def test_what_a_file_says_is_escaped() -> None:
    made = record("cuda:0", TRUTH, GIB, GIB)
    evil = "'\"><img src=x onerror=alert(1)>"
    made["device"]["name"] = evil
    made["estimate"]["items"][0] |= {"name": evil, "title": evil}
    made["estimate"]["items"][0]["phase"] = "always"
    html = html_of(made)
    assert "<img" not in html and "onerror=alert" in html
    assert "'\"" not in html


@pytest.mark.browser
def test_the_page_draws_it_and_a_run_without_one_shows_nothing_broken(
    fake_site, watched, tmp_path
) -> None:
    """A run with a record, and one without: bars in the live view and in the Runs tab."""
    from studio.core.config import RunConfig
    from tests.ui.fake_studio import finish, make_run, write_step  # starts no server

    workspace = tmp_path / "w"
    with_record = make_run(workspace / "runs", RunConfig(), "With a record")
    without = make_run(workspace / "runs", RunConfig(), "Without one")
    for paths in (with_record, without):
        write_step(paths, 0, 2)
        finish(paths, 2, 2)
    end = json.loads(with_record.exit_json.read_text())
    end["memory"] = record("cuda:0", TRUTH, 2 * GIB, GIB)
    with_record.exit_json.write_text(json.dumps(end))
    watched.open(fake_site.url)
    watched.tab("Runs")
    page = watched.page
    page.get_by_role("button", name="With a record").click()
    page.locator("#run-panel .rm-phase").first.wait_for()
    assert page.locator("#run-panel .rm-phase").count() == 5
    page.get_by_role("button", name="Open", exact=True).click()
    live = page.locator("#live .l-memory")
    live.locator(".rm-phase").first.wait_for()
    assert "more than predicted" in live.inner_text()
    assert "1 of 3" in live.inner_text()
    widest = live.locator(".rm-bar").first.bounding_box()
    pieces = live.locator("[data-side=measured] .rm-bar").nth(1).locator("i")
    spans = [pieces.nth(n).bounding_box()["width"] for n in range(pieces.count())]
    assert sum(spans) == pytest.approx(widest["width"], rel=0.02)
    watched.tab("Runs")
    page.get_by_role("button", name="Without one").click()
    page.locator("#run-panel h2", has_text="Without one").wait_for()
    assert page.locator("#run-panel .rm-phase").count() == 0
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("#live .l-name", has_text="Without one").wait_for()
    live.wait_for(state="hidden")
    assert watched.problems == []
