"""`make memory`: the page is what the generator writes, and a broken-off run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory
from benchmarks.memory_page import summary, write_page
from benchmarks.memory_rss import RUNS
from tests.conftest import ROOT


def rss_rows(error: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"what": str(run), "fitted": run.fitted, "measured": 10**9,
         "predicted": round(10**9 * (1 + error)), "low": 9 * 10**8, "high": 11 * 10**8}
        for run in RUNS
    ]  # fmt: skip


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    kept = json.loads(memory.RESULTS.read_text(encoding="utf-8"))
    (tmp_path / "docs" / "images").mkdir(parents=True)
    write_page(tmp_path, kept)
    for name in ("memory.md", "images/memory-published.svg", "images/memory-rss.svg"):
        written = (tmp_path / "docs" / name).read_text(encoding="utf-8")
        assert written == (ROOT / "docs" / name).read_text(encoding="utf-8"), (
            f'{name} is out of date: make memory ARGS="--only none"'
        )


def test_the_runs_cover_the_shapes_and_most_are_held_out() -> None:
    assert len(RUNS) >= 20 and len({str(run) for run in RUNS}) == len(RUNS)
    for shape in ("5M", "135M", "0.5B"):
        own = [run for run in RUNS if run.shape == shape]
        assert len(own) >= 8
        assert sum(not run.fitted for run in own) >= 4
        assert {run.four_bit for run in own} == {run.checkpointing for run in own} == {True, False}
        assert {run.dtype for run in own} == {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("error", "met"), [(0.0, True), (0.09, True), (-0.11, False), (0.5, False)]
)
def test_missed_numbers_are_called_so(error: float, met: bool) -> None:
    lines = summary({"rss": rss_rows(error)})
    assert [line.is_met for line in lines] == [met, met]


def test_a_row_outside_without_a_reason_is_a_miss() -> None:
    row = {"predicted": 5.0, "measured": 10.0, "note": ""}
    lines = {line.what: line for line in summary({"published": [row]})}
    assert not lines["rows outside 20 % that are explained"].is_met
    told = summary({"published": [{**row, "note": "other kernels"}]})
    assert {line.what: line for line in told}["rows outside 20 % that are explained"].is_met


def test_a_broken_off_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(number: int, folder: Path) -> dict[str, Any]:
        if len(asked) == 3:
            raise RuntimeError("killed")
        asked.append(number)
        assert folder.is_dir()
        return {"what": str(RUNS[number]), "measured": 10**9, "fitted": False,
                "measured_phases": {}}  # fmt: skip

    said = {row["what"]: {"predicted": 1, "low": 1, "high": 1} for row in rss_rows()}
    monkeypatch.setattr(memory, "RESULTS", tmp_path / "results" / "memory.json")
    monkeypatch.setattr(memory, "in_its_own_process", measured)
    monkeypatch.setattr(memory, "predict", lambda *_: said)
    kept: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match="killed"):
        memory.run_part("rss", kept, resume=False)
    written = json.loads(memory.RESULTS.read_text(encoding="utf-8"))
    assert [row["what"] for row in written["rss"]] == [str(run) for run in RUNS[:3]]
    asked.clear()
    with pytest.raises(RuntimeError, match="killed"):
        memory.run_part("rss", written, resume=True)
    assert asked == [3, 4, 5]
    asked.clear()
    last = {"what": str(RUNS[-1]), "measured": 7, "fitted": True, "measured_phases": {}}
    with pytest.raises(RuntimeError, match="killed"):
        memory.run_part("rss", {"rss": [last]}, resume=True)
    kept = json.loads(memory.RESULTS.read_text(encoding="utf-8"))
    assert len(kept["rss"]) == 4 and kept["rss"][-1] == last, "what is there stays there"
    asked.clear()
    with pytest.raises(RuntimeError, match="killed"):
        memory.run_part("rss", written, resume=False)
    assert asked == [0, 1, 2], "without --resume everything is measured again"


def test_a_finished_part_is_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "RESULTS", tmp_path / "memory.json")
    calls: list[str] = []

    def exact() -> list[dict[str, Any]]:
        calls.append("exact")
        return [{"kind": "llama", "numbers": 1, "wrong": []}]

    monkeypatch.setitem(memory.PARTS, "exact", exact)
    kept: dict[str, Any] = {}
    for resume in (True, True, False):
        memory.run_part("exact", kept, resume=resume)
    assert calls == ["exact", "exact"]


def test_a_row_of_an_earlier_trainer_stays_until_it_is_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(number: int, folder: Path) -> dict[str, Any]:
        if number == 1:
            raise RuntimeError("killed")
        return {"what": str(RUNS[number]), "measured": 8, "measured_phases": {}}

    monkeypatch.setattr(memory, "RESULTS", tmp_path / "results" / "memory.json")
    monkeypatch.setattr(memory, "in_its_own_process", measured)
    earlier = [{"what": str(run), "measured": 9, "fitted": False} for run in RUNS[:2]]
    with pytest.raises(RuntimeError, match="killed"):
        memory.run_part("rss", {"rss": earlier}, resume=True)
    kept = json.loads(memory.RESULTS.read_text(encoding="utf-8"))["rss"]
    assert [row["measured"] for row in kept] == [8, 9]
