"""Fixtures of the backend's tests: a tiny model and run folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend.tiny import RunMaker, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose template has generation markers."""
    return save_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def make_run(tmp_path: Path, model_folder: Path) -> RunMaker:
    """Makes run folders: make_run({"train": {...}}, rows=40)."""
    return RunMaker(tmp_path / "runs", model_folder)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers of 8 tokens instead of 96: a random model never ends by itself."""
    from studio.backend import measuring

    monkeypatch.setattr(measuring, "MAX_NEW_TOKENS", 8)
