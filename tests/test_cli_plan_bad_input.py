"""`python -m studio plan` on models and machines that are not as they should be: one clear sentence
or an item called unknown, exit code 0 or 1, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.cli import main
from studio.services import model_shapes
from studio.services import studio as parts
from tests.services.fake_counter import FakeCounter, FakeMachine
from tests.tiny_models import make_model_folder

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320,
}  # fmt: skip


def plan(folder: Path, tmp_path: Path, *arguments: str) -> int:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps({"model": {"id": str(folder)}}))
    return main(["plan", str(file), "--workspace", str(tmp_path / "ws"), *arguments])


def with_config(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("not json", "cannot be read"),
        ("[1]", "cannot be read"),
        ({**LLAMA, "hidden_size": -64}, "impossible hidden_size"),
        ({**LLAMA, "hidden_size": 64.5}, "impossible hidden_size"),
        ({**LLAMA, "num_hidden_layers": 0}, "impossible num_hidden_layers"),
        ({**LLAMA, "num_hidden_layers": "two"}, "impossible num_hidden_layers"),
        ({**LLAMA, "vocab_size": 10**12}, "impossible vocab_size"),
        ({**LLAMA, "num_attention_heads": True}, "impossible num_attention_heads"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, capsys, config: Any, says: str) -> None:
    assert plan(with_config(tmp_path / "m", config), tmp_path, "--vram-gib", "8") == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_a_folder_without_a_config(tmp_path: Path, capsys) -> None:
    (tmp_path / "m").mkdir()
    assert plan(tmp_path / "m", tmp_path, "--vram-gib", "8") == 1
    error = capsys.readouterr().err
    assert "no config.json" in error and "Choose a folder" in error
    assert plan(tmp_path / "nowhere", tmp_path, "--json") == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_only_transformers_can_tell(tmp_path: Path, capsys) -> None:
    folder = make_model_folder(tmp_path / "m")
    sound = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"model_type": "no_such_model"}, "unknown to transformers"),
        ({"num_attention_heads": 7, "head_dim": None}, "config.json"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "text-generation model"),
    ):
        with_config(folder, {**sound, **change})
        assert plan(folder, tmp_path, "--vram-gib", "8") == 1, change
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error, change


def planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    machine: FakeMachine, *arguments: str, counter: FakeCounter | None = None,
) -> dict[str, Any]:  # fmt: skip
    monkeypatch.setattr(model_shapes, "ChildServer", lambda *_, **__: counter or FakeCounter())
    monkeypatch.setattr(parts, "MachineProbe", lambda *_: machine)
    file = tmp_path / "plan.yaml"
    file.write_text("model: {id: Qwen/Qwen3-8B}\n")
    assert main(["plan", str(file), "--workspace", str(tmp_path / "ws"), "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["expected"] == sum(item["bytes"] for item in found["items"])
    return found


def test_a_card_nobody_reads(tmp_path: Path, capsys, monkeypatch) -> None:
    machine = FakeMachine()
    machine.gpus, machine.note = [], "No NVIDIA driver"
    found = planned(tmp_path, capsys, monkeypatch, machine)
    assert found["fits"] is None and found["proposal"] is None
    assert found["device"]["free_bytes"] is None
    assert found["warnings"] == ["No NVIDIA driver: its free memory is unknown"]


def test_slices_and_several_cards(tmp_path: Path, capsys, monkeypatch) -> None:
    machine = FakeMachine(10 << 30, is_mig=True)
    machine.gpus.append({**machine.gpus[0], "index": 1, "name": "T4", "is_mig": False})
    found = planned(tmp_path, capsys, monkeypatch, machine)
    assert "MIG" in found["warnings"][0]
    second = planned(tmp_path, capsys, monkeypatch, machine, "--set", "runtime.device=cuda:1")
    assert second["device"]["name"] == "T4" and not second["warnings"]
    third = planned(tmp_path, capsys, monkeypatch, machine, "--set", "runtime.device=cuda:2")
    assert third["fits"] is None and "there is cuda:0, cuda:1" in third["warnings"][0]


def test_a_step_that_cannot_be_counted_is_an_unknown_item(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    counter = FakeCounter(refuses=True)
    found = planned(tmp_path, capsys, monkeypatch, FakeMachine(), counter=counter)
    assert found["unknown"] == ["activations"] and found["fits"] is None
    assert found["answer"].startswith("At least ")
    assert "cannot be counted" in found["warnings"][0]
