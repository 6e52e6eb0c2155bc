"""F1 to F22: trainers, pages, disks and run folders that break."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from studio.backend import checkpoints, failures, training
from studio.backend.callbacks import RunCallback
from studio.backend.inbox import Inbox
from studio.backend.journal import Journal
from studio.core.config_io import build_config
from studio.core.endings import Evidence, OomKills, explain
from studio.core.errors import StoreError
from studio.core.runs import RunPaths
from studio.hardware.nvml import Nvml
from studio.hardware.platforms import boot_id, held_lock, store_error, write_json
from studio.listening import open_socket
from studio.services import liveness, runs
from studio.services.launcher import LocalLauncher
from studio.services.read_only import holder_words, refusal
from studio.services.store import RunStore
from studio.services.supervisor import Supervisor
from tests.fakes.parts import build_parts
from tests.faults import writer
from tests.faults.fault_messages import NOTES, PAGE, RUNS, SIDE, START, TERMINAL, fault
from tests.faults.io_faults import Faults
from tests.faults.state_machine import NOBODY, Workspace
from tests.hardware.test_nvml import FakeNvml
from tests.waiting import wait_until

FAKE_TRAINER = Path(__file__).parents[2] / "fakes" / "trainer.py"


def told_of(store: RunStore, run_id: str) -> str:
    """State and sentence as the run's panel shows them."""
    run = store.get(run_id)
    return f"{run.shown_state}: {(run.error or {}).get('text') or run.damaged or run.verdict}"


def trained(folder: Path, *steps: int) -> Workspace:
    """A workspace whose run trains, with a checkpoint after each number of steps."""
    workspace = Workspace(folder / "workspace")
    workspace.start("a")
    workspace.tick()
    for count in steps:
        workspace.train(count, save=True)
    return workspace


def only(workspace: Workspace) -> RunPaths:
    [run_id] = workspace.runs
    return workspace.store.paths(run_id)


@fault(1, "kill -9 of the trainer", RUNS)
def _(folder: Path) -> str:
    parts = build_parts(folder / "workspace")
    supervisor = Supervisor(parts, launcher=LocalLauncher((sys.executable, str(FAKE_TRAINER))))
    with mock.patch.dict(os.environ, FAKE_MODE="die", FAKE_STEPS="9"):
        config = build_config({"data": {"path": "tiny.jsonl"}})
        run_id = supervisor.start(config, request_id="a")
        supervisor.tick()

    def ended() -> bool:
        supervisor._reap()
        return not supervisor._children

    wait_until(ended, what="the trainer's death")
    return told_of(parts.runs, run_id)


@fault(2, "kill -9 in the middle of a write", RUNS)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    paths = only(workspace)
    workspace.kill_trainer()
    data = paths.metrics.read_bytes()
    paths.metrics.write_bytes(data[:-9])
    (paths.checkpoints / ".staging-step-3").mkdir()
    record = {"attempt": 1, "pid": NOBODY["pid"], "start_time": 1.0, "boot_id": boot_id()}
    write_json(paths.process_json, record)
    workspace.tick()
    return told_of(workspace.store, paths.id)


@fault(3, "kill -9 of the page", RUNS, quiet=True)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    workspace.kill_ui()
    active = workspace.supervisor.active()
    shown = f"{active.shown_state}, step {active.step}" if active else "lost"
    workspace.train(1, save=False)
    after = workspace.store.get(only(workspace).id)
    workspace.close()
    return f"{shown}; then {after.shown_state}, step {after.step}"


@fault(4, "both killed, the computer restarted, the pid taken by another process", RUNS)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    paths = only(workspace)
    workspace.kill_trainer()
    write_json(paths.process_json, {"attempt": 1, "pid": os.getpid(), "start_time": 1.0,
                                    "boot_id": "another boot"})  # fmt: skip
    workspace.kill_ui()
    workspace.tick()
    return told_of(workspace.store, paths.id)


@fault(5, "SIGTERM, SIGINT or SIGHUP to the trainer", RUNS, quiet=True)
def _(folder: Path) -> str:
    inbox = Inbox(RunPaths(folder))
    inbox._on_signal(signal.SIGTERM, None)
    inbox.poll()
    return f"{inbox.end_state}: {inbox.cause}; it saved first and can be resumed"


def resumed(folder: Path, **changes: str) -> Any:
    """A resume of a run whose newest of two checkpoints is cut short; what it warned of."""
    paths = RunPaths(folder / "20260101-000000-0001")
    paths.commands.mkdir(parents=True)
    for step in (3, 6):
        writer.save(paths, step)
    newest = paths.checkpoints / "step-6" / checkpoints.WEIGHTS
    newest.write_bytes(newest.read_bytes()[:100])
    now = {"config_sha256": "c" * 64, "dataset_fingerprint": None, "model_fingerprint": None,
           "versions": None, **changes}  # fmt: skip
    journal = Journal(paths, 2)
    attempt = SimpleNamespace(paths=paths, journal=journal, record={"id": paths.id})
    try:
        with mock.patch.object(training, "identity", lambda attempt: now):
            training._find_checkpoint(attempt)  # type: ignore[arg-type]
        return f"{journal.warnings[0]}. The run goes on from step {journal.step}"
    finally:
        journal.close()


@fault(6, "power loss in a save", NOTES, quiet=True)
def _(folder: Path) -> str:
    return str(resumed(folder))


def save_with(folder: Path, call: str, code: int) -> None:
    paths = RunPaths(folder)
    writer.save(paths, 3)
    with Faults(call, code, 1, lasting=True).active():
        writer.save(paths, 6)


@fault(7, "fsync fails (EIO)", NOTES)
def _(folder: Path) -> None:
    save_with(folder, "fsync", errno.EIO)


@fault(8, "disk full in a save", NOTES)
def _(folder: Path) -> None:
    save_with(folder, "write", errno.ENOSPC)


@fault(9, "disk read-only, permission lost, folder deleted", RUNS)
def _(folder: Path) -> str:
    with Faults("open", errno.EROFS, 1, lasting=True).active():
        try:
            write_json(folder / "state.json", {})
        except StoreError as error:
            first = str(error)
    gone = store_error(folder / "run", OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    denied = store_error(folder / "run", OSError(errno.EACCES, os.strerror(errno.EACCES)))
    return f"{first} // {denied} // {gone}"


@fault(10, "CUDA out of memory in the first step", RUNS)
def _(folder: Path) -> object:
    import torch

    config = build_config({"runtime": {"device": "cuda:0"},
                           "train": {"per_device_train_batch_size": 4}})  # fmt: skip
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB "
        "of which 406.69 MiB is free. Including non-PyTorch memory, this process has 23.28 GiB "
        "memory in use. Of the allocated memory 22.10 GiB is allocated by PyTorch, and 512.00 MiB "
        "is reserved by PyTorch but unallocated."
    )
    return failures.translate(error, "first_step", config)


@fault(11, "the kernel kills the trainer for want of main memory", RUNS)
def _(folder: Path) -> str:
    found = explain(Evidence(
        phase="training", step=12, exit_code=-9, kills_before=OomKills(system=1),
        kills_after=OomKills(system=2), rss_bytes=15 * 2**30, available_bytes=2**28,
        total_bytes=16 * 2**30,
    ))  # fmt: skip
    return f"{found.text}. {found.remedy}."


@fault(12, "NaN in the loss", RUNS)
def _(folder: Path) -> None:
    with contextlib.closing(Journal(RunPaths(folder), 1)) as journal:
        run: Any = SimpleNamespace(journal=journal, config=build_config({}))
        progress: Any = SimpleNamespace(tokens_total=0)
        callback = RunCallback.__new__(RunCallback)  # what it needs of a training, and no more
        callback.run, callback.progress, callback._saved_step = run, progress, 2
        callback.diverged(4, float("nan"), 1.0, 2e-4)


@fault(13, "the trainer hangs", RUNS)
def _(folder: Path) -> str:
    now = datetime.now(UTC)
    silent = (now - timedelta(seconds=75)).isoformat()
    state = {"state": "running", "phase": "training", "time": silent, "progress_time": silent}
    stalled = liveness.find_stall("running", state, 0.5, now)
    return f"{stalled.text} {stalled.remedy}" if stalled else "nothing"


@fault(14, "NVIDIA's library fails in the middle of a run", SIDE)
def _(folder: Path) -> str:
    fake = FakeNvml()
    reader = Nvml(fake)
    reader.devices()
    fake.broken["nvmlDeviceGetCount"] = fake.NVML_ERROR_GPU_IS_LOST
    reader.devices()
    return reader.note or "nothing"


@fault(15, "the clock jumps an hour back", RUNS, quiet=True)
def _(folder: Path) -> str:
    paths = RunPaths(folder)
    paths.commands.mkdir()
    paths.process_json.write_text("{}")
    (paths.commands / "0001-stop.json").write_text("{}")
    now = datetime.now(UTC) - timedelta(hours=1)
    ahead = {"state": "running", "phase": "training", "time": datetime.now(UTC).isoformat()}
    stalled = liveness.find_stall("running", ahead, 0.5, now)
    ending = liveness.find_ending(paths, 15.0, now)
    return f"shown as stalled: {'yes' if stalled else 'no'}; {ending.text if ending else 'nothing'}"


@fault(16, "the port is in use", TERMINAL)
def _(folder: Path) -> None:
    with open_socket("127.0.0.1", 0, exact=False) as taken:
        open_socket("127.0.0.1", taken.getsockname()[1], exact=True).close()


@fault(17, "two studios on one workspace", PAGE)
def _(folder: Path) -> object:
    record = {"pid": 4711, "host": "ada", "since": datetime.now(UTC).isoformat(),
              "url": "http://127.0.0.1:7860"}  # fmt: skip
    return refusal(holder_words(record))


@fault(18, "two clicks on Start, and a Start beside another", START)
def _(folder: Path) -> None:
    parts = build_parts(folder / "workspace")
    config = build_config({"data": {"path": "tiny.jsonl"}})
    same = {runs.create_run(parts, config, request_id="click").id for _ in range(2)}
    if len(same) != 1:
        raise AssertionError("two clicks made two runs")
    with (
        mock.patch.object(runs, "_CREATE_TIMEOUT_S", 0.0),
        held_lock(parts.workspace / "create.lock"),
    ):
        runs.create_run(parts, config, request_id="another")


@fault(19, "the index of runs is damaged or gone", RUNS, quiet=True)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    workspace.close()
    fresh = RunStore(workspace.root)  # there is no index: the folders are the list
    return f"{len(fresh.list())} of {len(workspace.runs)} runs listed from their folders"


@fault(20, "run.json cut short", RUNS)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    paths = only(workspace)
    workspace.kill_trainer()
    workspace.corrupt(paths.id, "run.json", "half")
    return told_of(workspace.store, paths.id)


@fault(21, "every checkpoint is damaged", NOTES, quiet=True)
def _(folder: Path) -> str:
    paths = RunPaths(folder)
    for step in (3, 6):
        writer.save(paths, step)
        (paths.checkpoints / f"step-{step}" / checkpoints.WEIGHTS).write_bytes(b"")
    with contextlib.closing(Journal(paths, 2)) as journal:
        attempt = SimpleNamespace(paths=paths, journal=journal, record={"id": paths.id})
        training._find_checkpoint(attempt)  # type: ignore[arg-type]
        return f"{'; '.join(journal.warnings)}. The run begins again at step {journal.step}"


@fault(22, "the data set changed since the checkpoint", RUNS)
def _(folder: Path) -> object:
    return resumed(folder, dataset_fingerprint="another")
