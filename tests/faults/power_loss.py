"""Power cuts in a save and an append: what survives in every state the disk may be left in.

    python -m tests.faults.power_loss

The real journal and checkpoint code runs once under a recording (tests/faults/disk_model.py); then
the power is cut after each of its calls, and every legal state of the disk is put into a folder and
opened as a resume opens it. Exhaustive up to 12 un-synced operations, else 1,000 samples.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from studio.backend import checkpoints
from studio.backend.journal import Journal
from studio.core.events import read_records
from studio.core.runs import RunPaths, read_json
from studio.hardware.platforms import write_json
from tests.faults import writer
from tests.faults.disk_model import (
    Recording,
    crash_choices,
    recording,
    replay,
    write_tree,
)  # fmt: skip
from tests.faults.result import Result


@dataclass(frozen=True)
class Promise:
    """What was told to be durable so far."""

    metrics: frozenset[int] = frozenset()
    saved_step: int = 0
    adapter: int = 0
    adapter_may_be: int = 0
    state_step: int = 0


class Scene:
    """A run folder, what is promised in it, and what is done to it under the recording."""

    def __init__(self, paths: RunPaths, log: Recording, promise: Promise) -> None:
        self.paths, self.log, self.promise = paths, log, promise

    def promise_more(self, **more: object) -> None:
        self.promise = replace(self.promise, **more)  # type: ignore[arg-type]
        self.log.note(self.promise)

    def append(self, journal: Journal, *steps: int) -> None:
        for step in steps:
            journal.record("step", step=step, loss=1.0)
        journal.sync()
        self.promise_more(metrics=self.promise.metrics | set(steps))

    def save(self, step: int) -> None:
        writer.save(self.paths, step)
        self.promise_more(saved_step=step)

    def keep_adapter(self, version: int) -> None:
        staged = self.paths.root / ".staging-adapter"
        os.mkdir(staged)
        self.promise_more(adapter_may_be=version)
        writer.fill(version)(staged)
        checkpoints.replace_folder(staged, self.paths.adapter)
        self.promise_more(adapter=version)


def first_save(scene: Scene) -> None:
    """A new run: metrics.jsonl and checkpoints/ come into being."""
    journal = Journal(scene.paths, 1)
    scene.append(journal, 1, 2)
    scene.save(2)
    scene.append(journal, 3)
    journal.close()


def save_and_append(scene: Scene) -> None:
    """A later save, which removes the oldest checkpoint, and appends around it."""
    journal = Journal(scene.paths, 2)
    scene.append(journal, 7, 8, 9)
    journal.update(now=True, step=9)
    scene.promise_more(state_step=9)
    scene.save(9)
    scene.append(journal, 10)
    journal.close()


def save_over_damaged(scene: Scene) -> None:
    """A checkpoint of the same step lies there, damaged (see `prepare_run`)."""
    scene.save(9)


def keep_adapters(scene: Scene) -> None:
    """A better adapter replaces the kept one, twice."""
    scene.keep_adapter(7)
    scene.keep_adapter(8)


def prepare_run(paths: RunPaths, *steps: int) -> Promise:
    """A run that trained to step 6: checkpoints at `steps` (9 is damaged), an adapter."""
    journal = Journal(paths, 1)
    for step in range(1, 7):
        journal.record("step", step=step, loss=1.0)
    journal.update(now=True, step=6)
    journal.close()
    kept, checkpoints.KEEP_VALID = checkpoints.KEEP_VALID, 100
    try:
        for step in steps:
            writer.save(paths, step)
    finally:
        checkpoints.KEEP_VALID = kept
    if 9 in steps:
        (paths.checkpoints / "step-9" / checkpoints.WEIGHTS).write_bytes(b"damaged")
    paths.adapter.mkdir()
    writer.fill(6)(paths.adapter)
    return Promise(frozenset(range(1, 7)), 6, 6, 6, 6)


SCENES: dict[str, tuple[Callable[[Scene], None], tuple[int, ...]]] = {
    "first save": (first_save, ()),
    "save and append": (save_and_append, (3, 6)),
    "save over a damaged one": (save_over_damaged, (3, 6, 9)),
    "keep an adapter": (keep_adapters, (3, 6)),
}


def problems(paths: RunPaths, promise: Promise) -> list[str]:
    """Open the folder as a resume does; what of the promise is not there."""
    found = []
    checkpoints.clean(paths.checkpoints)
    newest = checkpoints.find_newest(paths.checkpoints).checkpoint
    step = newest.step if newest else 0
    if step < promise.saved_step or (newest and not writer.is_of_step(newest)):
        found.append(f"checkpoint {promise.saved_step} was saved, newest valid is {step}")
    if promise.adapter:
        checkpoints.restore_folder(paths.adapter)
        kept = {promise.adapter, promise.adapter_may_be}
        if not any(is_adapter(paths.adapter, version) for version in kept):
            found.append("the kept adapter is neither the old nor the new one")
    if promise.state_step and (read_json(paths.state_json) or {}).get("step", 0) < 6:
        found.append("state.json is neither the old nor the new one")
    journal = Journal(paths, 9)
    journal.record("step", step=99, loss=1.0)
    journal.close()
    steps = [r["step"] for r in read_records(paths.metrics).records if r["kind"] == "step"]
    if lost := promise.metrics - set(steps):
        found.append(f"metrics of steps {sorted(lost)} were synced and are lost")
    if len(set(steps)) != len(steps) or steps[-1] != 99:
        found.append(f"metrics are there twice or cannot be appended: {steps}")
    return found


def is_adapter(folder: Path, step: int) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == writer.content(name, step)
        for name in (checkpoints.WEIGHTS, "optimizer.bin", "state.json")
    )


def cut_everywhere(result: Result, name: str, folder: Path, draw: random.Random) -> None:
    """One scene: record it, cut it after each call, check each distinct state once."""
    act, steps = SCENES[name]
    paths = RunPaths(folder / "run")
    paths.root.mkdir(parents=True)
    write_json(paths.run_json, {"id": "run"})
    start = prepare_run(paths, *steps) if steps else Promise()
    with recording(paths.root) as log:
        scene = Scene(paths, log, start)
        act(scene)
    promise, seen = start, set()
    for cut in range(len(log.log) + 1):
        done = log.log[:cut]
        if done and done[-1].kind == "note":
            promise = done[-1].note
        exhaustive, choices = crash_choices(done, draw)
        result.count("cuts" if exhaustive else "sampled cuts")
        for choice in choices:
            result.trials += 1
            tree = replay(log.base, done, choice)
            key = (repr(tree), promise)
            if key in seen:
                continue
            seen.add(key)
            result.count("distinct states opened")
            crashed = RunPaths(folder / "crashed")
            shutil.rmtree(crashed.root, ignore_errors=True)
            write_tree(tree, crashed.root)
            found = problems(crashed, promise)
            lost = [f"{done[i].kind} {done[i].names}" for i, fate in choice.items() if not fate]
            result.check(not found, f"{name}, cut {cut}: {'; '.join(found)} (not on disk: {lost})")


def run(scenes: tuple[str, ...] = tuple(SCENES), *, seed: int = 0) -> Result:
    """All scenes."""
    result = Result("power loss", "every legal state after a cut: a valid checkpoint no older than "
                    "the last acknowledged, every synced metric")  # fmt: skip
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        for name in scenes:
            cut_everywhere(result, name, Path(root) / name.replace(" ", "-"), random.Random(seed))
    return result


def main() -> int:
    result = run()
    result.tell()
    print(result.to_json())
    return 0 if result.is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
