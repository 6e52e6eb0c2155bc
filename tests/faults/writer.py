"""A trainer without torch on the real file layer: journal, checkpoints, resume.

It says on a descriptor what has returned (`acks`), so that whoever kills it knows what must be
there afterwards. Each record and each checkpoint holds values that follow from its step alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from studio.backend import checkpoints
from studio.backend.journal import Journal
from studio.core.events import current, read_records
from studio.core.runs import RunPaths, read_json
from studio.hardware.platforms import write_json

FACTS = {"config_sha256": "c" * 64}
_SIZES = {checkpoints.WEIGHTS: 6000, "optimizer.bin": 9000, "state.json": 300}


def content(name: str, step: int) -> bytes:
    """What the file `name` of checkpoint `step` holds."""
    block = hashlib.sha256(f"{name} {step}".encode()).digest()
    return (block * (_SIZES[name] // len(block) + 1))[: _SIZES[name]]


def fill(step: int) -> Callable[[Path], None]:
    """Writes the files of checkpoint `step`, through calls of `os` that a test can watch."""

    def write(folder: Path) -> None:
        for name in _SIZES:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                view = memoryview(content(name, step))
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)

    return write


def save(paths: RunPaths, step: int) -> None:
    """A checkpoint, with the check of the weights left out: these are no tensors."""
    with mock.patch.object(checkpoints, "check_finite"):
        checkpoints.save(paths.checkpoints, step, fill(step), FACTS)


def is_of_step(checkpoint: checkpoints.Checkpoint) -> bool:
    """Whether every file of a checkpoint is that of its step."""
    return all(
        (checkpoint.path / name).read_bytes() == content(name, checkpoint.step) for name in _SIZES
    )


def attempt(paths: RunPaths, acks: int, *, save_every: int = 3, steps: int = 10**9) -> None:
    """One attempt: go on from the newest valid checkpoint until killed or `steps` are done."""
    previous = read_json(paths.process_json) or {}
    number = int(previous.get("attempt", 0)) + 1
    write_json(paths.process_json, {"attempt": number})
    journal = Journal(paths, number)
    journal.update(now=True, state="running")
    checkpoints.clean(paths.checkpoints)
    found = checkpoints.find_newest(paths.checkpoints).checkpoint
    first = found.step if found else 0
    journal.step = first
    journal.record("resume", from_step=first)
    for step in range(first + 1, first + steps + 1):
        os.write(acks, b"append\n")
        journal.record("step", step=step, loss=1.0 / step)
        os.write(acks, f"metric {number} {step}\n".encode())
        journal.step = step
        journal.update(step=step)
        if step % save_every == 0:
            os.write(acks, b"save\n")
            journal.sync()
            save(paths, step)
            os.write(acks, f"saved {step}\n".encode())
    journal.close()


def problems(
    paths: RunPaths, metrics: set[tuple[int, int]], saved_step: int, kills: int
) -> list[str]:
    """What is wrong with a run folder after a crash.

    Args:
        metrics: (attempt, step) of every record that was acknowledged.
        saved_step: the newest acknowledged checkpoint, 0 if there was none.
        kills: how often the writer was killed here; each may tear one line.
    """
    found: list[str] = []
    batch = read_records(paths.metrics)
    steps = [(r["attempt"], r["step"]) for r in batch.records if r["kind"] == "step"]
    if lost := metrics - set(steps):
        found.append(f"{len(lost)} committed metrics lost, one is {min(lost)}")
    if len(set(steps)) != len(steps):
        found.append(f"{len(steps) - len(set(steps))} metrics are there twice")
    shown = [r["step"] for r in current(batch.records) if r["kind"] == "step"]
    if shown != list(range(1, len(shown) + 1)):
        found.append(f"the curve has gaps or repeats: {shown[-20:]}")
    if batch.damaged > kills:
        found.append(f"{batch.damaged} damaged lines after {kills} kills")
    newest = checkpoints.find_newest(paths.checkpoints)
    step = newest.checkpoint.step if newest.checkpoint else 0
    if step < saved_step:
        found.append(f"checkpoint {saved_step} was saved, newest valid {step} ({newest.skipped})")
    if newest.checkpoint and not is_of_step(newest.checkpoint):
        found.append(f"checkpoint {step} holds files of another step")
    if paths.state_json.exists():
        json.loads(paths.state_json.read_text())
    return found
