"""The Data tab in a real browser, on a fake studio: the cut-off line, tokens, changes, Cancel."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from studio.core.token_stats import cut_at
from studio.services.datasets import DatasetStore
from tests.ui.conftest import Site, Watched, open_page
from tests.ui.fake_studio import FakeInspector
from tests.ui.test_axe import axe_script, violations
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
OPEN_MS = 300  # a row of 4,096 tokens in the browser


def write_rows(path: Path, count: int = 60) -> Path:
    """Rows of 8 to 200 words; two repeated, one empty."""
    draw = random.Random(5)
    rows = [
        {"question": f"Question {i}? " + "more " * draw.randrange(90),
         "answer": f"Answer {i}. " + "and so on " * draw.randrange(30)}
        for i in range(count)
    ]  # fmt: skip
    rows[7], rows[9] = dict(rows[1]), {"question": "Nothing?", "answer": ""}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_rows(watched: Watched, site: Site, file: Path, theme: str = "light") -> Any:
    """Import a file and wait until everything about it is shown."""
    watched.open(f"{site.url}/?__theme={theme}")
    watched.page.get_by_label("Training file").set_input_files(file)
    watched.page.get_by_role("heading", name=file.name).wait_for()
    watched.page.locator(".p-lengths[data-drawn]").wait_for()
    watched.page.locator("#rendered .tokens i").first.wait_for()
    return watched.page


def test_the_moved_line_says_what_the_arithmetic_says(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    page = open_rows(watched, fake_site, write_rows(tmp_path / "rows.jsonl"))
    info = DatasetStore(tmp_path / "w").list()[0]
    summary = FakeInspector().token_stats(info.folder, "starter", {"max_length": 64})
    typed, line = page.get_by_label("Cut at tokens"), page.locator(".cut-line")
    for length in (16, 40, 77, 120, 5000):
        typed.fill(str(length))
        cut = cut_at(summary, length)
        wanted = [cut.rows_cut, cut.answer_lost] if cut.answer_lost else [cut.rows_cut]
        if cut.rows_cut:
            wanted.append(cut.keeps_99)
            assert f"({100 * cut.rows_cut_share:.1f} %)" in line.inner_text()
            found = re.sub(r"\([^)]*\)|99 %", "", line.inner_text())
            assert list(map(int, re.findall(r"\d+", found))) == wanted, length
        else:
            assert line.inner_text() == "No row is cut at 5,000 tokens."
    page.locator(".p-lengths").scroll_into_view_if_needed()
    chart = page.locator(".p-lengths").bounding_box()
    page.mouse.move(chart["x"] + chart["width"] * 0.6, chart["y"] + 80)
    page.mouse.down()
    page.mouse.move(chart["x"] + chart["width"] * 0.3, chart["y"] + 80, steps=5)
    page.mouse.up()
    dragged = int(page.evaluate("document.querySelector('[data-cut]').dataset.cut"))
    assert 5 < dragged < summary.longest / 2
    page.locator(".cut-use").click()
    note = page.locator(".cut-note")
    wait_until(lambda: f"max length {dragged} tokens" in note.inner_text(), what="the form's knob")
    page.locator(".check", has_text="cut at max_length").wait_for()
    watched.tab("Train")
    assert page.locator("#knob-train-max-length input").first.input_value() == str(dragged)
    watched.tab("Data")
    typed.fill("77")
    line.evaluate("node => { node.textContent = 'of the old count'; }")
    page.get_by_role("button", name="Leave out", exact=True).click()
    wait_until(lambda: line.inner_text() != "of the old count", what="the rows counted again")
    assert page.locator("[data-cut]").get_attribute("data-cut") == "77"
    assert watched.problems == []


def test_tokens_by_keyboard_and_a_long_row_opens_fast(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    rows = [{"question": f"Row {i}?", "answer": "word " * 20} for i in range(6)]
    rows[3] = {"question": "Long?", "answer": "word " * 4090}
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = open_rows(watched, fake_site, file)
    page.locator("#rendered .tokens").focus()
    for key in ("End", "ArrowLeft", "Home", "ArrowRight"):
        page.keyboard.press(key)
    note = page.locator(".token-note").inner_text()
    assert note.startswith("Token 2: number 2, ") and "(context)" in note
    page.evaluate(
        """() => { window.took = []; new MutationObserver(() => {
        const all = document.querySelectorAll('#rendered .tokens i').length;
        if (all > 4000 && !window.took.length) window.took.push(performance.now()); })
        .observe(document.querySelector('#rendered'), {childList: true, subtree: true}); }"""
    )
    took = []
    for _ in range(5):  # the quietest of five: other processes share the cores
        page.get_by_label("Row", exact=True).fill("3")
        page.get_by_text("Row 3, line 3 of the file.").wait_for()
        page.evaluate("() => { window.took.length = 0; window.from = performance.now(); }")
        page.get_by_role("button", name="Next", exact=True).click()
        page.get_by_text("Row 4, line 4 of the file.").wait_for()
        took.append(page.evaluate("window.took[0] - window.from"))
        if min(took) < OPEN_MS:
            break
    assert min(took) < OPEN_MS, took
    assert page.locator("#rendered .tokens i.x").count() > 3000


def test_all_rows_are_changed_and_changed_back(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    page = open_rows(watched, fake_site, write_rows(tmp_path / "rows.jsonl"))
    steps = page.locator("#changes .steps li")
    page.get_by_text("Change all rows").click()
    page.get_by_role("button", name="Write it into the rows").click()
    page.get_by_text("The system prompt is empty").first.wait_for()
    page.get_by_label("System prompt to write into the rows").fill("Answer like a sailor.")
    page.get_by_role("button", name="Write it into the rows").click()
    wait_until(lambda: steps.count() == 1, what="the first step")
    assert "Answer like a sailor." in page.locator(".row-list").inner_text()
    page.get_by_label("Rows to keep").fill("20")
    page.get_by_role("button", name="Keep a sample").click()
    wait_until(lambda: steps.count() == 2, what="the second step")
    assert "18 rows train, 2 are held out, 40 are left out" in page.locator(".sums").inner_text()
    page.get_by_role("button", name="Shuffle the rows").click()
    wait_until(lambda: steps.count() == 3, what="the third step")
    undone = page.locator("#changes .steps .undone")
    for left in (2, 1, 0):
        page.get_by_role("button", name="Undo", exact=True).click()
        wait_until(lambda n=3 - left: undone.count() == n, what=f"{left} steps")
    assert "1 is left out: 1 empty or missing text." in page.locator(".sums").inner_text()
    assert "sailor" not in page.locator(".row-list").inner_text()
    assert page.get_by_role("button", name="Undo", exact=True).is_disabled()
    assert watched.problems == []


def test_a_long_import_is_cancelled_and_keeps_nothing(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    file = tmp_path / "many.jsonl"
    with file.open("w") as rows:
        for i in range(250_000):
            rows.write(f'{{"question": "What is the number {i}?", "answer": "It is {i}, {i}."}}\n')
    watched.open(fake_site.url)
    page = watched.page
    page.get_by_label("Training file").set_input_files(file)
    cancel = page.locator("#import-bar .job-cancel")
    cancel.wait_for()
    assert "Import of many.jsonl" in page.locator("#import-bar").inner_text()
    cancel.click()
    page.get_by_text("was cancelled. Nothing has changed.").first.wait_for()
    wait_until(lambda: not cancel.is_visible(), what="no bar")
    assert DatasetStore(tmp_path / "w").list() == []
    assert list((tmp_path / "w" / "tmp").glob("import-*")) == []
    assert watched.problems == []


def test_a_page_that_is_loaded_again_shows_the_data_set_that_was_open(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    page = open_rows(watched, fake_site, write_rows(tmp_path / "first.jsonl"))
    kept = "JSON.parse(localStorage.getItem('studio-form-1') || '{}').data__path || ''"
    wait_until(lambda: "first" in page.evaluate(kept), what="the first one to be kept")
    with open_page(page.context.browser) as other:  # the newest, for a browser that kept nothing
        open_rows(other, fake_site, write_rows(tmp_path / "second.jsonl", 30))
    watched.reload()
    page.get_by_role("heading", name="first.jsonl").wait_for()
    page.get_by_role("button", name="Show rows: rows that repeat").wait_for()
    page.locator(".p-lengths[data-drawn]").wait_for()
    page.locator("#rendered .tokens i").first.wait_for()
    assert page.get_by_label("Data set").input_value().startswith("first.jsonl")
    with open_page(page.context.browser) as third:
        third.open(fake_site.url)
        third.page.get_by_role("heading", name="second.jsonl").wait_for()
        assert third.problems == []


def test_rows_that_were_left_out_are_opened_corrected_and_put_back(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 20)
    with file.open("a") as rows:
        rows.write('{"question": "Cut off?", "answer": "It is\n')
    original = file.read_bytes()
    page = open_rows(watched, fake_site, file)
    sums, steps = page.locator(".sums"), page.locator("#changes .steps li")
    assert "2 are left out: 1 unreadable row, 1 empty" in sums.inner_text()
    page.get_by_role("button", name="Show rows: rows with an empty").click()
    page.get_by_role("button", name="Edit row 10, line 10").click()
    editor = page.locator("form.editor")
    page.get_by_role("heading", name="Put row 10 back").wait_for()
    page.get_by_role("button", name="Put row back").click()
    page.get_by_text("Row 10 cannot be saved so").first.wait_for()
    editor.locator("textarea").last.fill("Something.")
    page.get_by_role("button", name="Put row back").click()
    wait_until(lambda: steps.all_inner_texts() == ["Put row 10 back, edited"], what="the row")
    assert "1 is left out: 1 unreadable row" in sums.inner_text()
    page.get_by_text("Row 10, line 10 of the file.").wait_for()
    page.get_by_label("Row", exact=True).fill("21")
    page.get_by_text("Row 21 is left out; Edit opens it.").wait_for()
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_role("heading", name="Put row 21 back").wait_for()
    broken = editor.locator("textarea")
    broken.fill(broken.input_value() + ' whole."}')
    page.get_by_role("button", name="Put row back").click()
    wait_until(lambda: "0 are left out" in sums.inner_text(), what="the line put back")
    page.get_by_label("Row", exact=True).fill("3")
    page.get_by_text("Row 3, line 3 of the file.").wait_for()
    page.get_by_role("button", name="Leave out", exact=True).click()
    wait_until(lambda: "1 is left out" in sums.inner_text(), what="a row out by hand")
    page.get_by_role("button", name="Show rows: rows that changes have left out").click()
    page.get_by_role("button", name="Edit row 3, line 3").click()
    page.get_by_role("heading", name="Put row 3 back").wait_for()
    page.get_by_role("button", name="Put row back").click()
    wait_until(lambda: "0 are left out" in sums.inner_text(), what="the row back")
    info = DatasetStore(tmp_path / "w").list()[0]
    assert info.used == 21 and file.read_bytes() == original
    assert watched.problems == []


def test_a_broken_conversation_is_corrected_turn_by_turn(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "wizard", "content": "Me."}]
    good = [turns[0], {"role": "assistant", "content": "Ada."}]
    file = tmp_path / "chats.jsonl"
    rows = [good, turns, [good[1]], *[[{**good[0], "content": f"Q{n}"}, good[1]] for n in range(6)]]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    page = open_rows(watched, fake_site, file)
    steps = page.locator("#changes .steps li")
    page.get_by_role("button", name="Show rows: conversations whose roles").click()
    page.get_by_role("button", name="Edit row 2, line 2").click()
    page.get_by_text("Turn 2 has an unknown role 'wizard'").wait_for()
    page.get_by_label("Speaker of turn 2").select_option("assistant")
    page.get_by_role("button", name="Put row back").click()
    wait_until(lambda: steps.count() == 1, what="the corrected row")
    page.get_by_role("button", name="Show rows: conversations whose roles").click()
    page.get_by_role("button", name="Edit row 3, line 3").click()
    page.get_by_role("button", name="Add a turn").click()
    page.get_by_label("Text of turn 2").fill("Who else?")
    page.get_by_role("button", name="Move up: turn 2").click()
    assert page.get_by_label("Text of turn 1").input_value() == "Who else?"
    page.get_by_role("button", name="Add a turn").click()
    page.get_by_role("button", name="Remove turn 3").click()
    page.get_by_role("button", name="Put row back").click()
    wait_until(lambda: steps.count() == 2, what="the second row")
    [info] = DatasetStore(tmp_path / "w").list()
    row = DatasetStore(tmp_path / "w").rows(info.id, 2, 1)[0]
    assert [turn["content"] for turn in row["messages"]] == ["Who else?", "Ada."]
    assert info.left_out == 0 and watched.problems == []


def test_an_encoding_is_chosen_for_a_file_that_was_refused(
    watched: Watched, fake_site: Site, tmp_path: Path
) -> None:
    word = "\u0433\u043e\u0440\u043e\u0434"
    file = tmp_path / "cities.csv"
    rows = "question,answer\n" + "".join(f"{word} {n}?,{word} {n}.\n" for n in range(12))
    file.write_bytes(rows.encode("cp1251"))
    watched.open(fake_site.url)
    page = watched.page
    page.get_by_label("Training file").set_input_files(file)
    page.locator(".failure", has_text="neither UTF-8 nor Western European").wait_for()
    page.get_by_text("Wrong letters?").click()
    page.get_by_label("Encoding of the file").click()
    page.get_by_role("option", name="Windows-1251, Cyrillic", exact=True).click()
    page.get_by_role("heading", name=file.name).wait_for()
    assert "read as Windows-1251, Cyrillic (chosen by hand)" in page.locator(".facts").inner_text()
    assert f"{word} 1?" in page.locator(".row-list").inner_text()
    page.get_by_label("Encoding of the file").click()
    page.get_by_role("option", name="KOI8-R, Cyrillic", exact=True).click()
    page.locator(".facts", has_text="read as KOI8-R").wait_for()
    assert word not in page.locator(".row-list").inner_text()
    assert len(DatasetStore(tmp_path / "w").list()) == 1
    assert watched.problems == []


@pytest.mark.skipif(axe_script() is None, reason="axe-core is not installed (npm install axe-core)")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_violation_with_everything_open(
    browser: Any, fake_site: Site, tmp_path: Path, theme: str
) -> None:
    script = axe_script()
    assert script is not None
    with open_page(browser, viewport={"width": 1280, "height": 900}) as watched:
        page = open_rows(watched, fake_site, write_rows(tmp_path / "rows.jsonl"), theme)
        page.get_by_role("button", name="Show rows: rows that repeat").click()
        page.locator(".hits").wait_for()
        page.get_by_role("button", name="Edit", exact=True).click()
        page.locator(".editor").wait_for()
        page.evaluate(script.read_text(encoding="utf-8"))
        assert violations(watched) == []
        page.set_viewport_size({"width": 390, "height": 844})
        wide = "document.documentElement.scrollWidth"
        wait_until(lambda: page.evaluate(wide) <= 390, what="a page as wide as the phone")
