"""The page in a real browser, on a fake studio: names, errors, hostile text, the live view."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.core.config import RunConfig
from studio.hardware.platforms import held_lock
from tests.ui.conftest import Site, Watched
from tests.ui.fake_runs import make_run, write_step
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror='window.__xss=1'><script>window.__xss=2</script>"


def start_run(watched: Watched, site: Site) -> None:
    """One click: the first run; waits until it is shown."""
    watched.open(site.url)
    watched.page.get_by_role("button", name="Train a model in 60 seconds").click()
    watched.page.get_by_test_id("run-state").wait_for()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i}?", "answer": f"The number {i}."} for i in range(count)]


def test_stable_names_no_errors_no_other_host(watched: Watched, fake_site: Site) -> None:
    watched.open(fake_site.url)
    page = watched.page
    assert page.title() == "LoRA Studio"
    assert page.get_by_role("heading", name="LoRA Studio").count() == 1
    assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == [
        "Data",
        "Train",
        "Chat",
        "Runs",
    ]
    page.get_by_label("Training file").wait_for(state="attached")
    for name in ("Train a model in 60 seconds", "Use my own file", "Look at a finished run"):
        assert page.get_by_role("button", name=name).is_visible()
    watched.tab("Train")
    for name in ("Start training", "Pause", "Resume", "Stop"):
        page.get_by_role("button", name=name).wait_for()
    assert page.get_by_test_id("run-step").inner_text() == "0"
    assert page.get_by_test_id("run-state").count() == 1
    watched.tab("Chat")
    page.get_by_role("button", name="Send").wait_for()
    for label in ("Message", "Base model", "With adapter"):
        wait_until(lambda name=label: page.get_by_label(name).count() == 1, what=label)
    watched.tab("Runs")
    page.get_by_text("No runs yet").wait_for()
    assert watched.problems == []
    assert watched.hosts == {fake_site.url.removeprefix("http://")}


def test_a_file_is_read_shown_and_its_faults_named(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    rows = [
        *pairs(20),
        {"question": "", "answer": "No question."},
        {"question": HOSTILE, "answer": HOSTILE},
    ]
    rows[0]["answer"] = HOSTILE
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    watched.open(fake_site.url)
    watched.page.get_by_label("Training file").set_input_files(file)
    page = watched.page
    page.get_by_role("heading", name="pairs.jsonl").wait_for()
    view = page.locator("#data-view")
    assert "Question and answer" in view.inner_text()
    tiles = re.findall(r"(Rows|For training|Held out|Left out)\n(\d+)", view.inner_text())
    assert dict(tiles) == {"Rows": "22", "For training": "19", "Held out": "2", "Left out": "1"}
    assert "line 21" in view.inner_text()
    assert HOSTILE in view.inner_text()
    page.locator(".tk.trained").first.wait_for()
    assert page.evaluate("window.__xss") is None
    page.get_by_label("Held out").first.fill("0.5")
    page.get_by_label("Held out").first.press("Enter")
    wait_until(
        lambda: re.search(r"For training\n1[01]", view.inner_text()),
        what="half of the rows held out",
    )
    assert watched.problems == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", b"", "empty"),
        ("picture.csv", b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, "picture.csv"),
        ("half.json", b'[{"question": "a", ', "half.json"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_sentence(
    watched: Watched, fake_site: Site, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    watched.open(fake_site.url)
    watched.page.get_by_label("Training file").set_input_files(file)
    sentence = watched.page.locator("#data-view .failure, .toast-body").first
    sentence.wait_for()
    text = sentence.inner_text()
    assert says in text
    assert "Traceback" not in text and "Error(" not in text
    watched.page.get_by_role("button", name="Use my own file").wait_for()


def test_bad_settings_are_named_in_the_page(watched: Watched, fake_site: Site) -> None:
    watched.open(fake_site.url)
    watched.tab("Train")
    page = watched.page
    page.locator("#startcard .sum").wait_for()
    for label, value, says in (
        ("Rank r", "0", "choose a whole number 1 to 512"),
        ("Alpha", "99999", "choose a whole number 1 to 2048"),
        ("Epochs", "", "num_train_epochs"),
    ):
        box = page.get_by_label(label, exact=False).first
        before = box.input_value()
        box.fill(value)
        box.press("Tab")
        page.locator("#startcard .faults", has_text=says).wait_for()
        page.get_by_role("button", name="Start training").click()
        page.locator(".toast-body", has_text=says).first.wait_for()
        page.locator("#refusal [role=alert]", has_text=says).wait_for()
        box.fill(before)
        box.press("Tab")
        page.locator("#startcard .sum").wait_for()
    assert fake_site.json("/api/runs") == {"runs": []}


def test_the_run_is_followed_reloaded_and_chatted_with(watched: Watched, fake_site: Site) -> None:
    start_run(watched, fake_site)
    page = watched.page
    wait_until(lambda: watched.points() >= 3, what="points in the chart")
    wait_until(lambda: "% " in page.title(), what="the progress in the title")
    watched.reload()
    page.get_by_test_id("run-state").wait_for()
    watched.wait_state("done")
    assert watched.text("run-step") == "30"
    wait_until(lambda: watched.points() == 30, what="all points after the reload")
    drawn = "document.querySelector('.p-loss').data[0].x"
    wait_until(lambda: page.evaluate(drawn) == list(range(1, 31)), what="each step drawn once")
    assert page.locator(".answer").count() == 3
    assert "I am not sure <b>about</b> that & more." in page.locator(".answers").inner_text()
    page.get_by_role("button", name="Done. Chat with it").click()
    message = page.get_by_label("Message")
    wait_until(
        lambda: message.input_value() == "How do I reset the lamp?", what="a held-out prompt"
    )
    page.get_by_role("button", name="Send").click()
    base, adapter = page.get_by_label("Base model"), page.get_by_label("With adapter")
    wait_until(lambda: "(cut at 96 tokens)" in base.inner_text(), what="the base's whole answer")
    assert "I am not sure <b>about</b> that & more." in base.inner_text()
    assert "the tide turns at nine if a < b && c." in adapter.inner_text()
    assert base.locator("b").count() == 0
    assert watched.problems == []


def test_zoom_survives_new_points(watched: Watched, slow_site: Site) -> None:
    start_run(watched, slow_site)
    page = watched.page
    wait_until(lambda: watched.points() >= 4, what="points in the chart")
    page.evaluate(
        "Plotly.relayout(document.querySelector('.p-loss'), "
        "{'xaxis.range[0]': 1, 'xaxis.range[1]': 3})"
    )
    before = watched.points()
    wait_until(lambda: watched.points() > before, what="more points")
    watched.page.get_by_role("button", name="Toggle dark mode").click()
    assert page.evaluate("document.querySelector('.p-loss').layout.xaxis.range") == [1, 3]
    other = "document.querySelector('.p-grad').layout.xaxis.range"
    wait_until(lambda: page.evaluate(other) == [1, 3], what="the other charts to follow")


def test_runs_are_renamed_deleted_and_brought_back(watched: Watched, fake_site: Site) -> None:
    start_run(watched, fake_site)
    watched.wait_state("done")
    watched.tab("Runs")
    page = watched.page
    page.get_by_role("button", name="My first run").click()
    page.locator("#run-panel .rename input, #run-panel .rename textarea").fill(HOSTILE)
    page.get_by_role("button", name="Rename").click()
    table = page.locator("#runs-table")
    wait_until(lambda: HOSTILE in table.inner_text(), what="the new name, as text")
    assert page.evaluate("window.__xss") is None
    page.get_by_role("button", name="Use these settings again").click()
    page.get_by_role("tab", name="Train", exact=True, selected=True).wait_for()
    wait_until(
        lambda: page.get_by_label("Alpha").first.input_value() == "64", what="the run's alpha"
    )
    watched.tab("Runs")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo delete").click()
    wait_until(lambda: HOSTILE in table.inner_text(), what="the run from the trash")
    assert len(fake_site.json("/api/runs")["runs"]) == 1


def test_commands_reach_the_supervisor(watched: Watched, slow_site: Site) -> None:
    start_run(watched, slow_site)
    wait_until(lambda: watched.text("run-state") == "running", what="running")
    watched.page.get_by_role("button", name="Stop").click()
    watched.wait_state("stopped")
    assert watched.page.get_by_role("button", name="Resume").is_enabled()


def test_two_thousand_steps_stay_quick(watched: Watched, fake_site: Site, tmp_path: Path) -> None:
    """A tick costs the browser under 60 ms and the wire under 1 kB, behind 2,000 steps as well."""
    paths, total = make_run(tmp_path / "w" / "runs", RunConfig(), "A long run"), 4000
    for step in range(2001):
        write_step(paths, step, total)
    with held_lock(paths.lock) as got:
        assert got
        watched.open(fake_site.url)
        watched.tab("Train")
        wait_until(lambda: watched.points() >= 2000, what="2,000 points")
        ticks = []
        for step in range(2001, 2041):
            write_step(paths, step, total)
            wait_until(lambda now=step: watched.points() == now, what=f"step {step}")
            tick = "document.querySelector('[data-tick]').dataset.tick"
            ticks.append(float(watched.page.evaluate(tick)))
            if min(ticks) < 60 and len(ticks) >= 4:
                break
        metrics = f"{fake_site.url}/api/runs/{paths.id}/metrics"
        cursor = httpx.get(metrics, timeout=30).json()["cursor"]
        write_step(paths, step + 1, total)
        answer = httpx.get(metrics, params={"since": cursor}, timeout=30)
    assert answer.json()["series"]["step"]["step"] == [step + 1]
    assert len(answer.content) < 1000
    assert min(ticks) < 60, ticks  # the quietest of forty: other processes share the cores
