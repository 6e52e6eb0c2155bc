"""Short samples of the hostile adapters, repositories and templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import hostile_adapters, hostile_repos, hostile_templates
from tests.faults.result import Result


def found(result: Result) -> list[str]:
    """What fell short, but for lateness: other tests share the cores."""
    return [problem for problem in result.failures if not problem.startswith("too late")]


def test_hostile_adapters(tmp_path: Path) -> None:
    result = hostile_adapters.run(24, seed=7, folder=tmp_path)
    assert found(result) == []
    assert (result.trials, result.facts) == (24, {"refused": 18, "accepted": 6})


def test_each_mutation_is_tried_before_any_comes_again() -> None:
    chosen = {hostile_adapters.choose(number, 3) for number in range(200)}
    assert sum(kind == "accepted" for kind, _ in chosen) == len(hostile_adapters.HARMLESS)
    assert sum(kind == "refused" for kind, _ in chosen) == 150


def test_hostile_repositories(tmp_path: Path) -> None:
    result = hostile_repos.run(10, seed=3, folder=tmp_path)
    assert found(result) == []
    assert result.trials == 10 and result.facts["accepted"] >= 2  # the honest one, both ways


def test_hostile_templates(tmp_path: Path) -> None:
    result = hostile_templates.run(12, seed=22, folder=tmp_path)
    assert found(result) == []


def test_the_judge_of_repositories_sees_code(tmp_path: Path) -> None:
    """The watch itself: an import from the model's folder is told."""
    import importlib.util

    module = tmp_path / "evil_of_test.py"
    module.write_text("value = 1\n")
    with hostile_repos.watched(tmp_path) as seen:
        specification = importlib.util.spec_from_file_location("evil_of_test", module)
        assert specification is not None and specification.loader is not None
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
    assert any(event.startswith("exec") for event in seen)


@pytest.mark.full
def test_an_open_door_falls_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the adapter's check some mutation gets through, and the result says so."""
    from studio.backend import chat_model

    monkeypatch.setattr(chat_model, "check_adapter", lambda *_: {})
    result = hostile_adapters.run(24, seed=7, folder=tmp_path)
    assert any("not refused" in problem for problem in result.failures)
