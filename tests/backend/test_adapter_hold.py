"""An adapter that is replaced while it is read: all of it is of one step, or it is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from studio.backend.adapter_hold import TRIES, held_adapter
from studio.backend.chat_model import find_adapter
from studio.backend.checkpoints import replace_folder
from studio.core.errors import BusyError, StoreError
from studio.core.runs import RunPaths

LOADS = 500


def write(folder: Path, step: int) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"step": step}))
    (folder / "adapter_model.safetensors").write_text(str(step) * 1000)
    (folder / "lora_studio.json").write_text(json.dumps({"step": step}))


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    found = RunPaths(tmp_path / "runs" / "20261122-000000-abcd")
    found.root.mkdir(parents=True)
    found.exit_json.write_text('{"state": "done"}')
    write(found.adapter, 1)
    return found


def replace_often(paths: RunPaths, stop: threading.Event) -> None:
    step = 1
    while not stop.is_set():
        step = step % 9 + 1
        staged = paths.root / ".staging-adapter"
        write(staged, step)
        replace_folder(staged, paths.adapter)
        stop.wait(0.002)


def test_five_hundred_loads_while_it_is_replaced_see_one_step_each(paths, tmp_path):
    stop = threading.Event()
    replacing = threading.Thread(target=replace_often, args=(paths, stop))
    replacing.start()
    seen, refused, tmp = set(), 0, tmp_path / "tmp"
    try:
        for _ in range(LOADS):
            try:
                with held_adapter(lambda: find_adapter(paths), tmp) as (folder, source):
                    texts = {(folder / "adapter_model.safetensors").read_text()[0]}
                    for name in ("adapter_config.json", "lora_studio.json"):
                        texts.add(str(json.loads((folder / name).read_text())["step"]))
                    assert len(texts) == 1 and source == "adapter", texts
                    seen |= texts
            except BusyError:
                refused += 1
    finally:
        stop.set()
        replacing.join()
    assert len(seen) > 1 and refused < LOADS / 2, (seen, refused)
    assert not list((tmp_path / "tmp").iterdir())


def test_what_is_held_outlives_the_adapter(paths, tmp_path):
    with held_adapter(lambda: find_adapter(paths), tmp_path / "tmp") as (folder, _):
        staged = paths.root / ".staging-adapter"
        write(staged, 2)
        replace_folder(staged, paths.adapter)
        assert json.loads((folder / "lora_studio.json").read_text()) == {"step": 1}


def test_no_adapter_and_one_that_never_stands_still_are_sentences(tmp_path):
    def none() -> tuple[Path, str]:
        raise StoreError("This run has no adapter")

    asked = []

    def restless() -> tuple[Path, str]:
        asked.append(1)
        return tmp_path / f"gone{len(asked)}", "adapter"

    with pytest.raises(StoreError, match="no adapter"), held_adapter(none, tmp_path / "tmp"):
        pass
    with pytest.raises(BusyError, match="replaced"), held_adapter(restless, tmp_path / "tmp"):
        pass
    assert len(asked) == TRIES and not list((tmp_path / "tmp").iterdir())
