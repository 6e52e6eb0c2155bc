"""A broken file walks through the page: mapped, checked, corrected, seen, cut, trained."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from studio.services.datasets import DatasetStore
from tests.ui.conftest import Site, Watched
from tests.ui.test_end_to_end import set_knobs, stop_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CUT_TOKENS = 96
FIXED = "Beep boop! Berth 4, as ever. Robot out."


def write_broken(path: Path) -> Path:
    """40 rows: two empty answers, two duplicates, one answer behind 300 words of question; and the
    answers worth learning stand in another column than the one that is called so."""
    rows = [
        {"question": f"Where does boat {i} lie?", "answer": f"Draft {i}.",
         "better": f"Beep boop! Boat {i} lies at berth {i + 2}. Robot out."}
        for i in range(1, 41)
    ]  # fmt: skip
    for broken in (4, 9):
        rows[broken]["better"] = " "
    rows[20], rows[21] = dict(rows[0]), dict(rows[1])
    rows[30]["question"] = "Where does it lie? " * 100
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer", "better"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def tiles(page: Any) -> dict[str, int]:
    """The four counts."""
    text = page.locator("#data-view .tiles").inner_text()
    return {name: int(value) for name, value in re.findall(r"([A-Z][a-z ]+)\n(\d+)", text)}


def choose(page: Any, label: str, option: str) -> None:
    """Pick an option of a dropdown."""
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).click()


def changes(page: Any) -> list[str]:
    return list(page.locator("#changes .steps li").all_inner_texts())


def test_a_broken_file_becomes_a_trained_adapter(
    watched: Watched, real_site: Site, tmp_path: Path
) -> None:
    page, file = watched.page, write_broken(tmp_path / "boats.csv")
    watched.open(real_site.url)
    page.get_by_label("Training file").set_input_files(file)
    page.get_by_role("heading", name=file.name).wait_for()
    correct_mapping(page)
    correct_rows(page)
    cut_at_the_line(watched)
    dataset = DatasetStore(tmp_path / "w").list()[0]
    assert [step["step"] for step in dataset.steps] == ["exclude", "edit", "exclude", "exclude"]
    run_id = train(watched, real_site)
    run = tmp_path / "w" / "runs" / run_id
    try:
        watched.wait_state("done", timeout_s=300)
    finally:
        stop_run(real_site, run_id, tmp_path / "w")
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    assert json.loads((run / "run.json").read_text())["dataset"]["id"] == dataset.id
    trained = [json.loads(line) for line in dataset.data_file.read_text().splitlines()]
    said = {row["i"]: row["messages"][-1]["content"] for row in trained}
    assert said[3] == FIXED and not {5, 7, 10, 21, 22, 31} & set(said) and len(said) == 34
    assert watched.problems == []


def correct_mapping(page: Any) -> None:
    """The column `answer` holds drafts."""
    assert tiles(page)["Left out"] == 0
    choose(page, "answer", "better")
    wait_until(lambda: tiles(page)["Left out"] == 2, what="the other column")
    sums = page.locator(".sums")
    assert sums.inner_text().endswith("2 are left out: 2 empty or missing texts.")
    page.get_by_role("button", name="Show rows: rows with an empty").click()
    hits = page.locator(".hits li")
    hits.first.wait_for()
    assert hits.count() == 2 and "row 5" in hits.first.inner_text()


def correct_rows(page: Any) -> None:
    """Duplicates out, in again and out; one row written anew, one left out by hand."""
    page.get_by_role("button", name="Leave out 2 duplicates").click()
    wait_until(lambda: tiles(page)["Left out"] == 4, what="the duplicates left out")
    assert "2 duplicates" in page.locator(".sums").inner_text()
    page.get_by_role("button", name="Undo", exact=True).click()
    wait_until(lambda: tiles(page)["Left out"] == 2, what="the duplicates back")
    page.get_by_role("button", name="Redo", exact=True).click()
    wait_until(lambda: tiles(page)["Left out"] == 4, what="the duplicates left out again")
    number = page.get_by_label("Row", exact=True)
    number.fill("3")
    page.get_by_text("Row 3, line 4 of the file.").wait_for()
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator(".editor textarea").last.fill(FIXED)
    page.get_by_role("button", name="Save row").click()
    wait_until(lambda: "Edited row 3" in changes(page), what="the edited row")
    tokens = page.locator("#rendered .tokens")
    wait_until(lambda: "as ever" in tokens.inner_text(), what="the new answer as tokens")
    assert "as ever" in "".join(tokens.locator("i.t").all_inner_texts())
    assert "generation stops on it" in page.locator(".end-token.fine").inner_text()
    number.fill("7")
    page.get_by_text("Row 7, line 8 of the file.").wait_for()
    page.get_by_role("button", name="Leave out", exact=True).click()
    wait_until(lambda: tiles(page)["Left out"] == 5, what="the row left out")
    page.get_by_text("Row 7 is left out; Edit opens it. This is row 8.").wait_for()


def cut_at_the_line(watched: Watched) -> None:
    """The line says whose answer is lost; taking it makes that a check with a fix."""
    page = watched.page
    page.locator(".p-lengths[data-drawn]").wait_for()
    page.get_by_label("Cut at tokens").fill(str(CUT_TOKENS))
    line = page.locator(".cut-line")
    wait_until(lambda: "1 loses the whole answer" in line.inner_text(), what="the sentence")
    page.get_by_role("button", name=f"Use {CUT_TOKENS} tokens", exact=True).click()
    page.locator(".check", has_text="whose whole answer is cut off").wait_for()
    lost = page.locator(".check", has_text="whose whole answer is cut off")
    assert "line 32" in lost.inner_text()
    lost.get_by_role("button", name="Leave out 1 row").click()
    wait_until(lambda: tiles(page)["Left out"] == 6, what="the row without an answer left out")
    wait_until(lambda: "No row is cut" in line.inner_text(), what="nothing cut any more")


def train(watched: Watched, site: Site) -> str:
    """A short run with the settings as they are; returns its id."""
    watched.tab("Train")
    watched.page.locator("#startcard .sum").wait_for()
    assert watched.page.locator("#knob-train-max-length input").input_value() == str(CUT_TOKENS)
    set_knobs(
        watched, train_max_steps=3, train_per_device_train_batch_size=4,
        train_gradient_accumulation_steps=1,
    )  # fmt: skip
    watched.page.locator("#startcard .sum", has_text="3 in all").wait_for()
    watched.page.get_by_role("button", name="Start training").click()
    wait_until(lambda: site.json("/api/runs")["runs"], timeout_s=60, what="the run")
    return str(site.json("/api/runs")["runs"][0]["id"])
