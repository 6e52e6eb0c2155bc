"""MemoryService: what it asks, keeps, says, and what it does where nobody tells."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import DeviceError, ModelError, StudioError
from studio.core.memory import Constants
from studio.services.memory import DataFacts, MemoryService
from studio.services.models import ModelStore
from tests.services.fake_counter import FakeCounter, FakeMachine
from tests.tiny_models import make_model_folder

PRESETS = Path(__file__).parents[2] / "presets"
MODEL = "Qwen/Qwen3-8B"
GIB = 2**30


def service(workspace: Path, counter=None, machine=None) -> MemoryService:
    return MemoryService(
        workspace, ModelStore(workspace, PRESETS), machine or FakeMachine(),
        child=counter or FakeCounter(),
    )  # fmt: skip


def test_the_second_question_is_arithmetic(workspace: Path) -> None:
    counter = FakeCounter()
    memory = service(workspace, counter)
    assert not memory.is_measured(MODEL, RunConfig())
    memory.estimate(MODEL, RunConfig())
    assert memory.is_measured(MODEL, RunConfig())
    asked, begun = list(counter.asked), time.perf_counter()
    for r in (4, 8, 32, 64):
        memory.estimate(MODEL, build_config({"lora": {"r": r}, "train": {"max_length": 16 * r}}))
    assert counter.asked == asked == ["/profile", "/step_costs"]
    assert (time.perf_counter() - begun) / 4 < 0.1


def test_what_was_counted_outlives_the_process(workspace: Path) -> None:
    first = service(workspace).estimate(MODEL, RunConfig())
    counter = FakeCounter()
    again = service(workspace, counter)
    assert again.is_measured(MODEL, RunConfig())
    assert again.estimate(MODEL, RunConfig()).estimate == first.estimate
    assert counter.asked == []
    for file in (workspace / "cache" / "profiles").iterdir():
        file.write_text('{"torn": ')
    damaged = service(workspace, counter)
    assert damaged.estimate(MODEL, RunConfig()).estimate == first.estimate
    assert counter.asked == ["/profile", "/step_costs"]


def test_it_fits_or_says_what_would(workspace: Path) -> None:
    memory = service(workspace, machine=FakeMachine(24 * GIB))
    found = memory.estimate(MODEL, RunConfig())
    assert found.fits and found.sentence.startswith("Fits with") and not found.advice
    small = service(workspace, machine=FakeMachine(8 * GIB)).estimate(MODEL, RunConfig())
    assert small.fits is False and small.sentence.startswith("Needs ")
    assert "4-bit saves" in small.sentence
    assert small.device.used_bytes == 16 * GIB


def test_a_proposal_fits(workspace: Path) -> None:
    memory = service(workspace, machine=FakeMachine(8 * GIB))
    proposal = memory.propose(MODEL, RunConfig())
    assert proposal.fits and proposal.needs_bytes <= 8 * GIB
    assert memory.estimate(MODEL, proposal.config).fits


def test_another_card(workspace: Path) -> None:
    memory = service(workspace)
    found = memory.estimate(MODEL, RunConfig(), card=memory.card("rtx 3060"))
    assert found.device.name == "RTX 3060" and found.device.total_bytes == 12 * GIB
    with pytest.raises(DeviceError, match="not in the table"):
        memory.card("RTX 0001")
    (workspace / "cards.yaml").write_text("cards: [{name: RTX 0001, vram_mib: 9000}]")
    assert memory.card("rtx 0001").vram_bytes == 9000 << 20


def test_without_readings_the_answer_is_an_honest_unknown(workspace: Path) -> None:
    machine = FakeMachine()
    machine.gpus, machine.note = [], "The NVIDIA driver does not answer"
    memory = service(workspace, machine=machine)
    found = memory.estimate(MODEL, RunConfig())
    assert found.fits is None and "unknown" in found.sentence
    assert "driver does not answer" in " ".join(found.warnings)
    with pytest.raises(StudioError, match="free memory of this device is unknown"):
        memory.propose(MODEL, RunConfig())
    silent = service(workspace, machine=FakeMachine(None)).estimate(MODEL, RunConfig())
    assert silent.fits is None and "does not tell" in silent.warnings[0]


def test_mig_slices_and_several_readings(workspace: Path) -> None:
    machine = FakeMachine(10 * GIB, is_mig=True)
    machine.gpus.append({**machine.gpus[0], "used_bytes": 20 * GIB})
    found = service(workspace, machine=machine).estimate(MODEL, RunConfig())
    assert found.device.free_bytes == 4 * GIB and "MIG" in found.warnings[0]


def test_a_model_whose_step_cannot_be_counted(workspace: Path) -> None:
    counter = FakeCounter(refuses=True)
    memory = service(workspace, counter)
    found = memory.estimate(MODEL, RunConfig())
    assert found.estimate.unknown == ("activations",) and found.fits is None
    assert "cannot be counted" in found.warnings[0]
    memory.estimate(MODEL, RunConfig())
    assert counter.asked.count("/step_costs") == 1  # not asked again
    with pytest.raises(ModelError, match="No settings can be proposed"):
        memory.propose(MODEL, RunConfig())


def test_not_counted_yet_is_not_counted_behind_ones_back(workspace: Path) -> None:
    counter = FakeCounter()
    memory = service(workspace, counter)
    found = memory.estimate(MODEL, RunConfig(), measure=False)
    assert found.estimate.unknown and counter.asked == ["/profile"]


def test_facts_of_the_data_and_fitted_constants(workspace: Path) -> None:
    memory = service(workspace)
    whole = memory.estimate(MODEL, RunConfig())
    short = memory.estimate(MODEL, RunConfig(), facts=DataFacts(longest_tokens=100))
    assert short.estimate.expected < whole.estimate.expected
    memory.fit_constants("RTX 4090", Constants(2 * GIB, 0.0, 0.0))
    fitted = memory.estimate(MODEL, RunConfig()).estimate
    assert fitted.low == fitted.expected == fitted.high
    assert {item.name: item.bytes for item in fitted.items}["context"] == 2 * GIB


def test_tables(workspace: Path) -> None:
    memory = service(workspace)
    sizes = memory.table(None, RunConfig())
    assert len(sizes) == 4 * 6
    full = next(r for r in sizes if r["model"] == "7 B" and r["method"] == "Full, fp32")
    assert full["bytes"] == pytest.approx(108e9, rel=0.01)
    own = memory.table(MODEL, RunConfig())
    assert [row["bytes"] for row in own] == sorted((r["bytes"] for r in own), reverse=True)


def test_full_paths_of_modules_are_resolved_by_the_child(workspace: Path) -> None:
    counter = FakeCounter()
    config = build_config({"lora": {"target_modules": ["layers.0.self_attn.q_proj"]}})
    found = service(workspace, counter).estimate(MODEL, config)
    adapter = next(item for item in found.estimate.items if item.name == "adapter")
    assert adapter.bytes == 4 * 16 * (4096 + 4096)


def test_bad_models(workspace: Path, tmp_path: Path) -> None:
    memory = service(workspace)
    with pytest.raises(StudioError):
        memory.estimate(str(tmp_path / "none"), RunConfig())


@pytest.mark.slow
def test_with_the_real_child(workspace: Path, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    memory = MemoryService(workspace, ModelStore(workspace, PRESETS), FakeMachine())
    try:
        found = memory.estimate(str(folder), RunConfig())
        assert not found.estimate.unknown and found.fits
        (folder / "config.json").write_text('{"model_type": "no_such_model"}')
        with pytest.raises(ModelError, match="unknown to transformers"):
            memory.estimate(str(folder), RunConfig())
    finally:
        memory.close()


class SlowCounter(FakeCounter):
    """Counts until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def request(self, method: str, path: str, body: Any) -> dict[str, Any]:
        if path == "/step_costs" and body["variant"]["packed"]:
            self.begun.set()
            assert self.go_on.wait(30)
        return super().request(method, path, body)


def test_what_is_known_is_told_while_something_else_is_counted(workspace: Path) -> None:
    counter = SlowCounter()
    memory, packed = service(workspace, counter), build_config({"train": {"packing": True}})
    memory.estimate(MODEL, RunConfig())
    found: list[Any] = []
    counts = threading.Thread(target=lambda: found.append(memory.estimate(MODEL, packed)))
    counts.start()
    try:
        assert counter.begun.wait(30)
        assert memory.is_measured(MODEL, RunConfig()) and not memory.is_measured(MODEL, packed)
        assert memory.estimate(MODEL, RunConfig(), measure=False).fits
        assert not found
    finally:
        counter.go_on.set()
        counts.join(30)
    assert not found[0].estimate.unknown


def test_what_cannot_be_counted_counts_as_measured(workspace: Path) -> None:
    """Or a page that asks for what is not measured would ask for ever."""
    memory = service(workspace, FakeCounter(refuses=True))
    memory.estimate(MODEL, RunConfig())
    assert memory.is_measured(MODEL, RunConfig())


def test_an_unknown_architecture_is_asked_for_once(workspace: Path) -> None:
    class Refusing(FakeCounter):
        def request(self, method: str, path: str, body: Any) -> dict[str, Any]:
            self.asked.append(path)
            raise ModelError("transformers does not know this architecture", value="Mystery")

    counter = Refusing()
    memory = service(workspace, counter)
    assert not memory.is_measured(MODEL, RunConfig())
    for _ in range(2):
        with pytest.raises(ModelError, match="does not know"):
            memory.estimate(MODEL, RunConfig())
    assert memory.is_measured(MODEL, RunConfig()) and counter.asked == ["/profile"]
