"""The Data tab without a browser: its sentences, its tokens, its jobs, its lists."""

from __future__ import annotations

import csv
import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from studio.core.errors import DatasetError
from studio.core.steps import parse_step
from studio.core.turn_edits import TurnEdit
from studio.server import build_app
from studio.services.hub_datasets import HubLook, HubPreview
from studio.services.known_mappings import known_mapping
from studio.services.left_out_rows import EXCLUDED, list_excluded
from studio.services.row_correction import LeftOutRow
from studio.services.row_places import nearest_position, next_flagged, position_of, rows_at
from studio.ui.data_checks import Opened, all_checks, checks_html, list_link, rows_of
from studio.ui.data_desk import reasons_of
from studio.ui.data_edit import edit_step, editor_html, mending_html, require_editable, sent_parts
from studio.ui.data_import import REFUSED, hub_choices, import_upload, refused_upload
from studio.ui.data_jobs import Jobs, follow, updates_of
from studio.ui.data_look import Look, TokenBook
from studio.ui.data_tokens import epoch_html, rendered_html
from studio.ui.data_view import facts_html, hub_html, sentence
from tests.ui.fake_studio import build_fake_studio
from tests.waiting import wait_until

LOOK = Look.of({"max_length": 24, "val_frac": 0.2})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def studio(tmp_path: Path) -> Any:
    return build_fake_studio(tmp_path / "w")


@pytest.fixture
def info(studio: Any, tmp_path: Path) -> Any:
    """20 rows: one empty, one repeated, one whose answer begins behind 24 words."""
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(20)]
    rows[3]["answer"] = ""
    rows[9] = dict(rows[2])
    rows[12]["question"] = "so " * 40
    return studio.datasets.import_file(write(tmp_path / "rows.jsonl", rows))


def counted(studio: Any, info: Any) -> TokenBook:
    book = TokenBook()
    book.put(info, LOOK, studio.inspector.token_stats(info.folder, "starter", LOOK.options()))
    return book


def test_the_counts_are_one_sentence() -> None:
    why = [(7, "empty texts"), (5, "duplicates")]
    assert sentence(836, 93, 12, why) == (
        "836 rows train, 93 are held out, 12 are left out: 7 empty texts, 5 duplicates."
    )
    assert sentence(1, 1, 0, why) == "1 row trains, 1 is held out, 0 are left out."
    assert "836 rows train" in facts_html(rows=941, used=929, left_out=12, held_out=93)


def test_reasons_name_what_the_file_lacks_and_what_was_left_out(studio: Any, info: Any) -> None:
    assert reasons_of(info) == [(1, "empty or missing text")]
    after = studio.edits.apply(info.id, {"step": "exclude", "check": "duplicate"})
    assert reasons_of(after) == [(1, "empty or missing text"), (1, "duplicate")]
    assert sum(count for count, _ in reasons_of(after)) == after.left_out
    parse_step(after.steps[0])


def test_checks_of_tokens_stand_among_the_others_once_counted(studio: Any, info: Any) -> None:
    before = {entry["id"] for entry in all_checks(info, LOOK, TokenBook())}
    assert "duplicate" in before and "answer_cut" not in before
    book = counted(studio, info)
    entries = {entry["id"]: entry for entry in all_checks(info, LOOK, book)}
    assert entries["answer_cut"]["count"] == 1
    assert entries["answer_cut"]["first"][0]["i"] == 13
    assert rows_of(info, LOOK, book, Opened("answer_cut")) == [{"i": 13, "line": 13, "detail": ""}]
    html = checks_html(info, LOOK, book, Opened("duplicate"))
    assert html.count("left out in training") == 1
    assert "Leave out 1 duplicate<" in html and "repeats row 3" in html
    assert "data-act='row' data-check='10'" in html
    assert "Leave out" not in checks_html(info, LOOK, book, Opened(), can_change=False)


def test_a_row_of_4096_tokens_is_small(studio: Any) -> None:
    token = {"id": 14321, "text": " tokens", "trained": True}
    html = rendered_html(
        {"tokens": [token] * 4096, "total_tokens": 4096, "trained_tokens": 4096}, 1
    )
    assert html.count("<i class='t'>") == 4096
    assert len(html) < 170_000
    hostile = rendered_html({"tokens": [{"id": 1, "text": "<script>'"}], "total_tokens": 1}, 1)
    assert "<script>" not in hostile and "&lt;script&gt;&#x27;" in hostile


def test_rows_are_found_by_their_number_in_the_source(info: Any) -> None:
    assert position_of(info, 5) == 3  # row 4 is left out
    with pytest.raises(DatasetError, match="no such row"):
        position_of(info, 4)
    assert nearest_position(info, 4) == 3 and nearest_position(info, 999) == 18
    assert rows_at(info, [0, 3, 99]) == [(1, 1), (5, 5)]
    assert next_flagged(info, 0) == position_of(info, 10)
    (info.folder / "places.npy").unlink()  # from before there were checks
    assert position_of(info, 5) == 3


def test_an_edit_keeps_all_but_the_texts() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": 1}], "weight": 0}
    row = {"i": 7, "messages": [{"role": "user", "content": "Hello"}, call]}
    assert edit_step(row, json.dumps(["Hello", ""])) is None
    step = edit_step(row, json.dumps(["Hi", ""]))
    assert step == {"step": "edit", "row": 7,
                    "messages": [{"role": "user", "content": "Hi"}, call]}  # fmt: skip
    for sent in ("", "[]", '{"a": 1}', "[1, 2]", '["one"]'):
        with pytest.raises(DatasetError):
            edit_step(row, sent)
    assert "&lt;b&gt;" in editor_html({"i": 1, "text": "<b>"})


def test_a_job_tells_how_far_it_is_and_can_be_cancelled() -> None:
    jobs, go = Jobs(), threading.Event()

    def work(progress: Any, cancelled: Any) -> str:
        progress(0.25, "100 rows read")
        go.set()
        wait_until(cancelled, timeout_s=30, what="the cancelling")
        raise DatasetError("cancelled")

    job = jobs.start(work, kind="import", page="a", title="Import")
    go.wait(30)
    bars = follow(job)
    told = json.loads(next(bars))
    assert (told["percent"], told["text"], told["stopping"]) == (25.0, "100 rows read", False)
    jobs.cancel("no such job")
    jobs.cancel(told["job"])
    list(bars)
    assert job.by_user
    with pytest.raises(DatasetError):
        job.outcome()


def test_a_newer_job_of_the_same_page_replaces_the_older() -> None:
    jobs = Jobs()

    def until_cancelled(progress: Any, cancelled: Any) -> None:
        wait_until(cancelled, timeout_s=30, what="the newer job")

    older = jobs.start(until_cancelled, kind="tokens", page="a", title="")
    other = jobs.start(lambda p, c: 1, kind="tokens", page="b", title="")
    newer = jobs.start(lambda p, c: 2, kind="tokens", page="a", title="")
    for job in (older, other, newer):
        job.join(30)
    assert older.replaced and not other.replaced and newer.outcome() == 2
    # Gradio empties the outputs of a handler that makes no update at all.
    for job, wanted in ((older, [{"__type__": "update"}]), (newer, ["2"])):
        made = updates_of(job, lambda bar: [bar], lambda got: [str(got)], lambda error: ["failed"])
        assert list(made) == [wanted]


def test_wrong_values_of_the_page_stand_as_defaults() -> None:
    look = Look.of({"max_length": float("nan"), "val_frac": "x", "seed": -1, "system_prompt": 3,
                    "batch_size": True, "epochs": 0})  # fmt: skip
    assert look == Look.of({})


def test_the_mapping_of_the_same_columns_is_used_again(studio: Any, tmp_path: Path) -> None:
    def rows(n: int) -> list[dict[str, str]]:
        return [{"question": f"q{n}{i}", "answer": f"a{i}", "better": f"b{i}"} for i in range(6)]

    first = import_upload(studio, str(write(tmp_path / "one.jsonl", rows(1))))
    assert first.mapping["answer"] == "answer"
    chosen = {"question": "question", "answer": "better"}
    studio.datasets.remap(first.id, "pairs", chosen)
    second = import_upload(studio, str(write(tmp_path / "two.jsonl", rows(2))))
    assert second.mapping == chosen
    other = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(6)]
    third = import_upload(studio, str(write(tmp_path / "three.jsonl", other)))
    assert third.mapping["answer"] == "answer" and known_mapping(studio.datasets, third) is None


def test_an_epoch_has_units_and_marks_what_is_chosen(studio: Any, info: Any) -> None:
    summary = counted(studio, info).get(info, LOOK)
    assert summary is not None
    html = epoch_html(summary, LOOK, 24, 4, 100.0)
    assert "tokens/s" in html and html.count("class='chip-on'") == 1
    assert "known after a first run" in epoch_html(summary, LOOK, 24, 4, None)


def test_what_the_hub_offers_is_listed_and_escaped() -> None:
    splits = [{"name": "train", "rows": 15011}, {"name": "extra", "rows": None}]
    look = HubLook("owner/<b>", ["default", "small"], "default", splits)
    config, split = hub_choices(look, "test")
    assert config["value"] == "default" and config["choices"] == ["default", "small"]
    assert split["choices"] == [("train (15,011 rows)", "train"), ("extra", "extra")]
    assert split["value"] == "train" and hub_choices(look, "extra")[1]["value"] == "extra"
    html = hub_html(look, HubPreview(["a<i>"], [{"a<i>": "<script>"}]))
    assert "<script>" not in html and "<b>owner/&lt;b&gt;</b>" in html and "1 row;" in html


def test_the_rows_that_changes_left_out_are_a_line_and_a_file(studio: Any, info: Any) -> None:
    step = {"step": "exclude", "rows": [2, 5], "why": "=dull <b>"}
    left = studio.edits.apply(info.id, step)
    [entry] = [e for e in all_checks(left, LOOK, TokenBook()) if e["id"] == EXCLUDED]
    assert (entry["count"], entry["level"]) == (2, "info")

    def listed(info: Any, start: int, count: int) -> list[Any]:
        return list(list_excluded(studio.datasets, info, start, count))

    opened = Opened.read(f"{EXCLUDED}:0")
    html = checks_html(left, LOOK, TokenBook(), opened, excluded=listed)
    assert (
        "data-act='mend' data-check='5'" in html
        and "What is 4?" in html
        and "<b>" not in (html.partition("Left out 2 rows")[2][:40])
    )
    fixed = checks_html(left, LOOK, TokenBook(), opened, can_change=False, excluded=listed)
    assert "data-act='mend'" not in fixed
    client = TestClient(build_app(studio), base_url="http://127.0.0.1:7860")
    answer = client.get(f"/api/datasets/{left.id}/checks/{EXCLUDED}.csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["i"] for row in rows] == ["2", "5"] and rows[1]["content"].startswith("What is 4?")
    assert list_link(left, LOOK, EXCLUDED).endswith(f"/checks/{EXCLUDED}.csv")


def test_a_row_that_could_not_be_used_is_shown_escaped(info: Any) -> None:
    found = LeftOutRow(4, 4, "empty", "'<b>' is empty", {"question": "<script>", "answer": None},
                       None)  # fmt: skip
    html = mending_html(found, info)
    assert "<script>" not in html and "<b>" not in html and html.count("<textarea") == 2
    broken = LeftOutRow(4, 4, "unreadable", "3 cells", None, "a;<i>;c")
    html = mending_html(broken, info)
    assert "a;&lt;i&gt;;c" in html and html.count("<textarea") == 2
    line = LeftOutRow(4, 4, "unreadable", "no JSON", None, '{"question": <i>')
    html = mending_html(line, info)
    assert html.count("<textarea") == 1 and "&lt;i&gt;" in html and "Put row back" in html


def test_a_broken_conversation_is_shown_turn_by_turn(info: Any) -> None:
    chats = replace(info, format="messages", mapping={"messages": "messages"})
    turns = [
        {"role": "<b>", "content": "<script>"},
        {"role": "assistant", "content": [{"text": "See"}, {"type": "<i>"}], "weight": 0.5},
    ]
    found = LeftOutRow(4, 4, "roles", "turn 1 ...", {"messages": turns}, None)
    html = mending_html(found, chats)
    rows, _, _ = html.partition("<template>")
    assert "<script>" not in html and "<i>" not in html and "<b>&lt;" not in html
    assert rows.count("class='one-turn'") == 2 and rows.count("<textarea") == 3
    assert "<option value='&lt;b&gt;' selected>&lt;b&gt; (unknown)</option>" in rows
    assert "It also holds &lt;i&gt;, which cannot be trained on" in rows
    assert "data-key='weight'" in rows and "Turn 1 has an unknown role" in rows
    empty = mending_html(replace(found, row={"messages": []}), chats)
    assert empty.partition("<template>")[0].count("data-before=''") == 2


def test_turns_that_the_page_sent_are_read_and_all_else_is_refused() -> None:
    turn = {"before": 1, "role": "user", "text": "Hi", "extras": {"name": "Ada"}}
    new = {**turn, "before": None}
    assert sent_parts(json.dumps(["a", [turn, new]])) == [
        "a", [TurnEdit(1, "user", "Hi", {"name": "Ada"}), TurnEdit(None, "user", "Hi",
                                                                   {"name": "Ada"})],
    ]  # fmt: skip
    for part in (
        7, None, {}, [7], ["a"], [{}], [{**turn, "text": None}], [{**turn, "before": "1"}],
        [{**turn, "before": True}], [{**turn, "extras": {"name": 7}}], [{**turn, "extras": None}],
    ):  # fmt: skip
        with pytest.raises(DatasetError, match="The page sent no edit of this row"):
            sent_parts(json.dumps([part]))
    for sent in ("", "{}", "[" * 100_000):
        with pytest.raises(DatasetError, match="The page sent no edit of this row"):
            sent_parts(sent)


def test_a_row_that_is_too_long_for_a_text_box_is_refused_before_one_is_made() -> None:
    turns = [{"role": "user", "content": "x" * 600_000}, {"role": "assistant", "content": None}]
    require_editable({"messages": turns})
    require_editable({"text": "short"})
    for long in ({"messages": [*turns, turns[0]]}, {"text": "x" * 1_000_001}):
        with pytest.raises(DatasetError, match="too long to be edited here"):
            require_editable(long)


def test_a_refused_file_leaves_the_chosen_data_set_in_sight(studio: Any, info: Any) -> None:
    desk = SimpleNamespace(studio=studio, updates=lambda **changed: changed)
    error = DatasetError("b.csv: this is <b>")
    found: Any = refused_upload(cast(Any, desk), error, {"value": info.id, "val_frac": 0.1})
    assert found["facts"].startswith("<p class='failure'") and "<b>." not in found["facts"]
    assert "still chosen" in found["facts"] and info.name in found["facts"]
    assert "row-list" in found["rows"] and found["refused"] == REFUSED
    alone: Any = refused_upload(cast(Any, desk), error, {"value": "sample:style"})
    assert "still chosen" not in alone["facts"] and alone["rows"] == ""


def test_the_rows_of_a_check_are_a_file(
    studio: Any, info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(build_app(studio), base_url="http://127.0.0.1:7860")
    base = f"/api/datasets/{info.id}/checks"
    answer = client.get(f"{base}/duplicate.csv")
    assert (
        answer.status_code == 200 and "rows-duplicate.csv" in answer.headers["content-disposition"]
    )
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["i"], row["line"]) for row in found] == [("10", "10")]
    cut = client.get(f"{base}/answer_cut.csv", params={"max_length": "24", "model": "starter"})
    assert cut.text.splitlines() == ["i,line", "13,13"]
    monkeypatch.setattr("studio.data_api.LISTED", 1)
    monkeypatch.setattr("studio.data_api.token_rows", lambda *asked: ([(1, 1)], 14))
    cut = client.get(f"{base}/cut.csv", params={"max_length": "24", "model": "starter"})
    assert cut.text.splitlines()[-1] == "the list ends here: 1 of 14 rows"
    assert client.get(f"{base}/nonsense.csv").status_code == 404
    assert client.get(f"{base}/duplicate.exe").status_code == 404
    assert client.get("/api/datasets/nothing/checks/duplicate.csv").status_code >= 400
    assert list(studio.settings.tmp.glob("list-*")) == []
