"""`python -m studio plan`: its answer for a card, as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.cli import main
from studio.services import model_shapes
from tests.services.fake_counter import FakeCounter


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(model_shapes, "ChildServer", lambda *_, **__: FakeCounter("13 B"))
    file = tmp_path / "config.yaml"
    file.write_text("model: {id: Qwen/Qwen3-8B}\n")
    return file


def plan(config: Path, tmp_path: Path, *arguments: str) -> int:
    return main(["plan", str(config), "--workspace", str(tmp_path / "ws"), *arguments])


def test_json_for_a_card(config: Path, tmp_path: Path, capsys) -> None:
    assert plan(config, tmp_path, "--gpu", "rtx 4090", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["name"] == "RTX 4090"
    total = found["total"]
    assert total["low"] <= total["expected"] <= total["high"]
    assert sum(item["bytes"] for item in found["items"]) == total["expected"]
    assert found["fits"] is False and found["answer"].startswith("Needs ")
    assert {"title", "saved_bytes", "speed"} <= found["advice"][0].keys()
    assert found["proposal"]["fits"]
    assert found["proposal"]["needs_bytes"] <= found["device"]["free_bytes"]


def test_text_for_so_many_gib(config: Path, tmp_path: Path, capsys) -> None:
    assert plan(config, tmp_path, "--vram-gib", "80") == 0
    text = capsys.readouterr().out
    assert "Base weights" in text and "Fits with" in text and "a card of 80 GiB" in text
    assert plan(config, tmp_path, "--vram-gib", "4") == 0
    assert "Choose a smaller model" in capsys.readouterr().out


def test_settings_can_be_changed(config: Path, tmp_path: Path, capsys) -> None:
    sizes = []
    for four in ("false", "true"):
        change = f"quantization.load_in_4bit={four}"
        assert plan(config, tmp_path, "--vram-gib", "80", "--json", "--set", change) == 0
        sizes.append(json.loads(capsys.readouterr().out)["total"]["expected"])
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "RTX 4091"], "not in the table"),
        (["--vram-gib", "-3"], "no size of a card"),
        (["--vram-gib", "nan"], "no size of a card"),
        (["--gpu", "T4", "--vram-gib", "16"], "exclude each other"),
        (["--vram-gib", "16", "--set", "model.id=nobody/nothing"], "not on this machine yet"),
    ],
)
def test_what_it_refuses(config: Path, tmp_path: Path, capsys, arguments, says) -> None:
    assert plan(config, tmp_path, *arguments) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
