"""Which weights a warm start takes, what it refuses, and what the new run's folder holds then."""

import hashlib
import json
import shutil
import struct

import pytest

from studio.core.config_io import build_config
from studio.core.errors import ConfigError, ModelError, StoreError
from studio.core.runs import read_json
from studio.services import warm_start
from studio.services.runs import create_run
from tests.fakes.parts import build_parts


@pytest.fixture
def parts(tmp_path):
    return build_parts(tmp_path / "workspace")


def config(**sections):
    return build_config({"data": {"path": "tiny.jsonl"}, "lora": {"r": 8}, **sections})


def weights(value):
    header = json.dumps({"x.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + struct.pack("<f", value)


def put(folder, step, *, manifest=True, r=8):
    folder.mkdir(parents=True)
    (folder / warm_start.WEIGHTS).write_bytes(weights(step))
    (folder / warm_start.ADAPTER_CONFIG).write_text(json.dumps({"r": r, "use_dora": False}))
    if not manifest:
        (folder / "lora_studio.json").write_text(json.dumps({"step": step}))
        return
    names = (warm_start.WEIGHTS, warm_start.ADAPTER_CONFIG)
    files = {n: {"sha256": hashlib.sha256((folder / n).read_bytes()).hexdigest()} for n in names}
    record = {"step": step, "files": files, "model_fingerprint": "f" * 64}
    (folder / "MANIFEST.json").write_text(json.dumps(record))


@pytest.fixture
def source(parts):
    """A stopped run with two checkpoints and a kept adapter of another step."""
    paths = create_run(parts, config())
    for step in (3, 12):
        put(paths.checkpoints / f"step-{step}", step)
    put(paths.adapter, 7, manifest=False)
    paths.exit_json.write_text(json.dumps({"state": "stopped", "steps": 12}))
    return paths


@pytest.mark.parametrize(("wanted", "step"), [("", 7), ("@3", 3), ("@12", 12), ("@7", 7)])
def test_the_named_weights_are_copied_and_noted(parts, source, wanted, step):
    paths = create_run(parts, config(), warm_start=source.id + wanted)
    record = read_json(paths.run_json)["warm_start"]
    assert (record["run"], record["step"]) == (source.id, step)
    copied = (paths.warm_start / warm_start.WEIGHTS).read_bytes()
    assert copied == weights(step)
    assert record["weights_sha256"] == hashlib.sha256(copied).hexdigest()
    manifest = source.checkpoints / f"step-{step}" / "MANIFEST.json"
    listed = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None
    assert record["manifest_sha256"] == listed
    assert "warm_start" not in read_json(paths.run_json)["resolved"]
    shutil.rmtree(source.root)  # the new run needs it no more
    assert (paths.warm_start / warm_start.ADAPTER_CONFIG).is_file()


def test_without_a_kept_adapter_the_newest_whole_checkpoint_is_taken(parts, source):
    shutil.rmtree(source.adapter)
    damaged = source.checkpoints / "step-12" / warm_start.WEIGHTS
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    found = warm_start.find(parts.runs, source.id)
    assert found.record["step"] == 3
    with pytest.raises(StoreError, match=r"no whole weights of step 12.*not as its manifest says"):
        warm_start.find(parts.runs, f"{source.id}@12")


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [("{id}@x", ConfigError, "RUN@STEP"), ("{id}@5", StoreError, "step 5"),
     ("20990101-000000-abcd", StoreError, "20990101-000000-abcd"),
     ("../../etc@1", StoreError, "etc")],
)  # fmt: skip
def test_what_is_not_there_is_refused_and_leaves_no_run(parts, source, wanted, kind, text):
    before = len(parts.runs.list())
    with pytest.raises(kind, match=text):
        create_run(parts, config(), warm_start=wanted.format(id=source.id))
    assert len(parts.runs.list()) == before


def test_another_rank_is_told_before_the_run_is_made(parts, source):
    with pytest.raises(ModelError, match=r"lora\.r is 8 there and 4 here.*lora\.r=8"):
        create_run(parts, config(lora={"r": 4}), warm_start=source.id)
