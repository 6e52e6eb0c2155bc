"""Making a run: checked first, written once, one run per request."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from studio.core.config_io import build_config
from studio.core.errors import ConfigError, DatasetError, DeviceError, ModelError, StoreError
from studio.core.runs import read_json
from studio.services import runs
from studio.services.runs import create_run, run_bytes
from tests.fakes.parts import build_parts


@pytest.fixture
def parts(tmp_path):
    return build_parts(tmp_path / "workspace")


def config(**sections):
    return build_config({"data": {"path": "tiny.jsonl"}, **sections})


def test_run_json_says_everything_and_holds_no_auto(parts):
    paths = create_run(parts, config(), name="My run")
    record = read_json(paths.run_json)
    assert record["dataset"]["rows_train"] == 18 and record["dataset"]["rows_held_out"] == 2
    assert record["model"]["id"] == "starter" and record["versions"]["torch"]
    assert record["seed"] == 42 and record["total_steps"] > 0
    assert "auto" not in json.dumps(record["resolved"]).replace('"target_modules"', "")
    assert record["auto"]["runtime.device"]
    assert (paths.root / record["dataset"]["path"] / "data.jsonl").exists()
    run = parts.runs.get(paths.id)
    assert (run.name, run.state, run.dataset_name) == ("My run", "queued", "tiny")


def test_fifty_starts_of_one_request_are_one_run(parts):
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: create_run(parts, config(), request_id="x").id, range(50)))
    assert len(ids) == 1 and len(parts.runs.list()) == 1
    assert create_run(parts, config(), request_id="y").id not in ids


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ({"data": {"path": "gone.jsonl"}}, DatasetError, "no such file"),
        ({"data": {}}, ConfigError, "data.path"),
        ({"model": {"id": "nobody/nothing"}}, ModelError, "no such model"),
        ({"runtime": {"device": "cuda:0"}}, DeviceError, "not available"),
        ({"train": {"optim": "paged_adamw_8bit"}}, ConfigError, "CUDA"),
    ],
)
def test_what_cannot_work_leaves_no_trace(parts, values, kind, text):
    with pytest.raises(kind, match=text):
        create_run(parts, config(**values))
    assert parts.runs.ids() == []
    assert list((parts.workspace / "tmp").iterdir()) == []


def test_full_disk_is_told_before_anything_is_written(parts, monkeypatch):
    monkeypatch.setattr(runs, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match=r"needs about \d+ MiB"):
        create_run(parts, config())
    assert parts.runs.ids() == []


def test_failed_write_leaves_no_half_run(parts, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "rename", refuse)
    with pytest.raises(StoreError, match="No space left"):
        create_run(parts, config())
    assert parts.runs.ids() == []
    assert list((parts.workspace / "tmp").iterdir()) == []


def test_run_bytes_grows_with_rank():
    model = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    small = run_bytes(build_config({"lora": {"r": 8}}), model)
    assert run_bytes(build_config({"lora": {"r": 16}}), model) == 2 * small
    # Llama 3.1 8B, r=16, all linear: 41.9 M trained parameters (peft's own count).
    kept = run_bytes(build_config({"lora": {"r": 16}}), model) / 10
    assert 1.0 <= kept / (41.9e6 * 4) < 1.6
