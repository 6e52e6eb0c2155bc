"""A full disk and a power cut for the histories of a workspace.

The disk is full by refusing every write and new folder of this process through `os`. A power cut
happens inside one action: the action runs under a recording (tests/faults/disk_model.py), ends at
a random call, and the workspace becomes one random legal state of the disk at that moment. What lay
there before the action counts as durable; cuts across several actions are power_loss.py's.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from studio.backend import checkpoints
from studio.core.events import read_records
from studio.core.runs import INTERRUPTED, QUEUED, RunPaths
from tests.faults.disk_model import (
    ABSENT,
    TORN,
    WHOLE,
    Recording,
    recording,
    replay,
    unsynced,
    write_tree,
)

if TYPE_CHECKING:
    from tests.faults.state_machine import Known, Puppet, Workspace


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No byte and no folder can be written by this process; reading and renaming go on."""
    real_write, real_mkdir = os.write, os.mkdir

    def write(descriptor: int, data: Any) -> int:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data)

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if os.path.isdir(path):
            real_mkdir(path, *arguments, **options)  # as it is: "exists"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with mock.patch.object(os, "write", write), mock.patch.object(os, "mkdir", mkdir):
        yield


def power_cut(workspace: Workspace, act: Callable[[], None], draw: random.Random) -> None:
    """Cut the power somewhere in `act`; the workspace is then as the disk has it."""
    before = snapshot(workspace)
    with recording(workspace.root) as log:
        workspace.acknowledge = lambda: log.note(snapshot(workspace))
        for puppet in workspace.live().values():
            know_open_files(log, puppet)
        act()
        workspace.acknowledge()
    workspace.acknowledge = lambda: None
    after = snapshot(workspace)
    done = log.log[: draw.randint(0, len(log.log))]
    promise = next((op.note for op in reversed(done) if op.kind == "note"), before)
    fates = {i: draw.choice([ABSENT, WHOLE, TORN] if done[i].kind == "write" else [ABSENT, WHOLE])
             for i in unsynced(done)}  # fmt: skip
    tree = replay(log.base, done, fates)
    workspace.close()
    shutil.rmtree(workspace.root)
    write_tree(tree, workspace.root)
    workspace.kill_ui()
    reconcile(workspace, promise, after)


Snapshot = tuple[dict[str, "Known"], dict[str, tuple[str, "Known"]]]


def snapshot(workspace: Workspace) -> Snapshot:
    return copy.deepcopy((workspace.runs, workspace.trash))


def know_open_files(log: Recording, puppet: Puppet) -> None:
    """The recording did not see them opened."""
    for lines in (puppet.journal._metrics, puppet.journal._samples):
        place = log._find(lines._path)
        node = log._node(place) if place else None
        if node is not None:
            log._open[lines._descriptor] = (node, True, [0])


def everything(state: Snapshot) -> dict[str, Known]:
    """Runs by id, those in the trash too."""
    runs, trash = state
    return {**{run_id: known for run_id, known in trash.values()}, **runs}


def reconcile(workspace: Workspace, promise: Snapshot, after: Snapshot) -> None:
    """What was promised must be there; what was under way may be. Then that is the truth."""
    promised, later = everything(promise), everything(after)
    listed = {run.id: run.state for run in workspace.store.list()}
    trashed = {path.name.partition(".")[0]: path.name for path in workspace.store.trash.iterdir()}
    assert not set(listed) & set(trashed), "a run is both there and in the trash"
    assert set(promised) <= set(listed) | set(trashed), "a run is lost"
    assert set(listed) | set(trashed) <= set(promised) | set(later), "a run came from nowhere"
    for run_id in set(promise[0]) & set(after[0]):
        assert run_id in listed, "a run went into the trash by itself"
    workspace.runs, workspace.trash = {}, {}
    for run_id in [*listed, *trashed]:
        old, new = promised.get(run_id), later.get(run_id)
        known = copy.deepcopy(new or old)
        assert known is not None
        known.damaged |= old.damaged if old else set()
        folder = workspace.store.trash / trashed[run_id] if run_id in trashed else None
        paths = RunPaths(folder or workspace.root / "runs" / run_id)
        settle_files(paths, known, old)
        if run_id in listed:
            settle_state(known, old, listed[run_id])
            workspace.runs[run_id] = known
        else:
            workspace.trash[trashed[run_id]] = run_id, known


def settle_files(paths: RunPaths, known: Known, old: Known | None) -> None:
    """Metrics and checkpoint as they are now, once they hold what was promised."""
    if "metrics.jsonl" not in known.damaged:
        steps = [(r["attempt"], r["step"]) for r in read_records(paths.metrics).records
                 if r["kind"] == "step"]  # fmt: skip
        assert len(set(steps)) == len(steps), "a metric is there twice"
        assert set(steps) >= (old.metrics if old else set()), "a synced metric is lost"
        possible = known.metrics | known.maybe | (old.maybe if old else set())
        assert set(steps) <= possible, "a metric came from nowhere"
        known.metrics, known.maybe = set(steps), set()
    newest = checkpoints.find_newest(paths.checkpoints).checkpoint
    step = newest.step if newest else 0
    assert step >= (old.saved_step if old else 0), "a checkpoint is lost"
    known.saved_step = 0 if "checkpoint" in known.damaged else step


def settle_state(known: Known, old: Known | None, shown: str) -> None:
    """A state that the run had before or after the action, or interrupted in between."""
    states = {known.state, old.state if old else QUEUED}
    allowed = {INTERRUPTED if state == "live" else state for state in states}
    if "live" in states:
        allowed |= {INTERRUPTED, QUEUED}  # queued: its resume.json came back with the power
    if len(states) > 1:
        allowed.add(INTERRUPTED)
    if not known.damaged & {"run.json", "exit.json"}:
        assert shown in allowed, f"shown as {shown} after a power cut, may be {sorted(allowed)}"
    known.state = shown if "run.json" not in known.damaged else INTERRUPTED
    known.unstartable = False
