"""What runs of a workspace teach the estimator, and the sentence about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.core import kept_profiles
from studio.core.config_io import build_config
from studio.core.errors import StoreError
from studio.core.fit_constants import CONSTANTS_FILE, kept_constants
from studio.core.memory import CUDA, GIB, MIB, Constants
from studio.core.run_memory import HOST
from studio.hardware.probe import MachineProbe
from studio.services.measured_memory import MeasuredMemory, use_kept
from studio.services.memory import MemoryService
from studio.services.models import ModelStore
from studio.services.runs import package_versions
from studio.services.store import RunStore
from tests.core.memory_records import CARD, record, records

TRUTH = Constants(700 * MIB, 0.15, 0.1)


def add_run(workspace: Path, number: int, memory: object, state: str = "done") -> str:
    folder = workspace / "runs" / f"20260101-00000{number}-aaaa"
    folder.mkdir(parents=True)
    made = {"schema": 1, "created": f"2026-01-01T00:00:0{number}Z", "config": {"model": {}}}
    (folder / "run.json").write_text(json.dumps(made))
    (folder / "process.json").write_text('{"attempt": 1}')
    end = {"state": state, "attempt": 1, "steps": 2}
    if memory is not None:
        end["memory"] = memory
    (folder / "exit.json").write_text(json.dumps(end))
    return folder.name


def test_three_runs_on_a_card_fit_its_constants(workspace: Path) -> None:
    told: dict[str, Constants] = {}
    measured = MeasuredMemory(workspace, RunStore(workspace), told.__setitem__)
    made = records("cuda:0", TRUTH, 3)
    ids = [add_run(workspace, n, made[n]) for n in range(2)]
    assert measured.of_run(ids[0]).sentence == (
        "Not enough runs yet to fit the estimate to this card: 2 of 3."
    )
    assert told == {} and not (workspace / CONSTANTS_FILE).exists()
    add_run(workspace, 2, made[2])
    view = measured.of_run(ids[0])
    assert view.fit.constants.context_bytes == TRUTH.context_bytes
    assert view.sentence.startswith("On this card we are within ")
    assert "3 runs, each predicted from the others" in view.sentence
    add_run(workspace, 3, made[2])
    assert "4 runs of 3 different recipes" in measured.of_run(ids[0]).sentence
    assert list(told) == [CARD]
    assert kept_constants(json.loads((workspace / CONSTANTS_FILE).read_text())) == told


def test_devices_are_kept_apart(workspace: Path) -> None:
    measured = MeasuredMemory(workspace, RunStore(workspace))
    for n, made in enumerate(records("cuda:0", TRUTH, 3)):
        add_run(workspace, n, made)
    cpu = add_run(workspace, 7, record("cpu", TRUTH, GIB, GIB))
    view = measured.of_run(cpu)
    assert view.sentence == "Not enough runs yet to fit the estimate to this computer: 1 of 3."
    assert measured.refresh()[CARD].runs == 3
    assert measured.refresh()[HOST].constants is None


def test_damaged_missing_and_failed_ones_are_passed_over(workspace: Path) -> None:
    measured = MeasuredMemory(workspace, RunStore(workspace))
    made = records("cuda:0", TRUTH, 4)
    add_run(workspace, 0, made[0])
    damaged = add_run(workspace, 1, {**made[1], "measured": "much"})
    none = add_run(workspace, 2, None)
    add_run(workspace, 3, made[3], state="failed")
    assert measured.refresh()[CARD].runs == 1
    assert measured.damaged == 1
    assert measured.of_run(damaged).damaged and measured.of_run(damaged).sentence == ""
    view = measured.of_run(none)
    assert (view.record, view.damaged, view.sentence) == (None, False, "")
    with pytest.raises(StoreError):
        measured.of_run("20260101-000009-aaaa")


def test_a_run_under_way_shows_what_it_has(workspace: Path) -> None:
    store = RunStore(workspace)
    run_id = add_run(workspace, 0, None)
    folder = workspace / "runs" / run_id
    (folder / "exit.json").unlink()
    measured = MeasuredMemory(workspace, store)
    assert measured.of_run(run_id).record is None
    (folder / "memory.json").write_text(json.dumps(record("cpu", TRUTH, GIB, GIB)))
    assert measured.of_run(run_id).record.device == HOST
    (folder / "memory.json").write_text('{"device": ')  # torn by a crash
    assert measured.of_run(run_id).record is None


def test_a_run_from_elsewhere_teaches_nothing(workspace: Path) -> None:
    for n, made in enumerate(records("cpu", TRUTH, 3)):
        run_id = add_run(workspace, n, made)
        (workspace / "runs" / run_id / "imported.json").write_text("{}")
    measured = MeasuredMemory(workspace, RunStore(workspace))
    assert measured.refresh() == {}
    view = measured.of_run(run_id)
    assert view.record is not None and view.sentence == ""


def test_a_read_only_studio_fits_and_writes_nothing(workspace: Path) -> None:
    told: dict[str, Constants] = {}
    for n, made in enumerate(records("cpu", TRUTH, 3)):
        add_run(workspace, n, made)
    MeasuredMemory(workspace, RunStore(workspace), told.__setitem__, read_only=True).refresh()
    assert list(told) == [HOST]
    assert not (workspace / CONSTANTS_FILE).exists()


def test_the_next_start_uses_what_was_fitted(workspace: Path, repo_root: Path) -> None:
    for n, made in enumerate(records("cuda:0", TRUTH, 3)):
        add_run(workspace, n, made)
    MeasuredMemory(workspace, RunStore(workspace)).refresh()
    memory = MemoryService(workspace, ModelStore(workspace, repo_root / "presets"), None)
    use_kept(workspace, memory.fit_constants)
    assert memory._fitted[CARD].context_bytes == TRUTH.context_bytes != CUDA.context_bytes
    (workspace / CONSTANTS_FILE).write_text("{")
    told: dict[str, Constants] = {}
    use_kept(workspace, told.__setitem__)
    assert told == {}


def test_trainer_and_page_call_the_computer_by_one_name(workspace: Path, repo_root: Path) -> None:
    models = ModelStore(workspace, repo_root / "presets")
    memory = MemoryService(workspace, models, MachineProbe(workspace))
    assert memory.device(build_config({"runtime": {"device": "cpu"}})).name == HOST


def test_a_full_disk_keeps_the_fit_in_memory(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StoreError("No space left")

    monkeypatch.setattr("studio.services.measured_memory.write_json", full)
    told: dict[str, Constants] = {}
    for n, made in enumerate(records("cpu", TRUTH, 3)):
        add_run(workspace, n, made)
    MeasuredMemory(workspace, RunStore(workspace), told.__setitem__).refresh()
    assert list(told) == [HOST]


def test_the_trainer_finds_the_shapes_that_the_page_had_counted(
    workspace: Path, repo_root: Path
) -> None:
    """The trainer names the file as `ModelShapes` does, from run.json's versions."""
    memory = MemoryService(workspace, ModelStore(workspace, repo_root / "presets"), None)
    text = (repo_root / "presets" / "starter" / "config.json").read_bytes()
    expected = kept_profiles.model_key(text, json.loads(json.dumps(package_versions())))
    assert memory._shapes._key("starter") == expected
