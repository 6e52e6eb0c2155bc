"""A disk that refuses the real trainer at any write: it goes on or pauses, nothing false is saved.

    python -m tests.faults.trainer_disk --trials 60

The real trainer on a tiny model, in this process. From a random call of `os` on (write, sync,
rename, open, folder), once, for a while or for good, ENOSPC, EIO, EROFS or EACCES comes back. The
run must end as done or paused, or, where even exit.json is refused, show as interrupted; each
checkpoint must verify and hold the weights of a run without faults, and a resume on a mended disk
must end with the same losses and the same adapter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from studio.core.events import read_records
from studio.core.runs import RunPaths, derive_state, read_json
from tests.faults.kill_trainer import adapter_bytes, weights_hashes
from tests.faults.result import Result, run_from_command_line

CALLS = ("write", "fsync", "rename", "replace", "open", "mkdir")
CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
HOW_LONG = (1, 6, 10**9)  # calls that fail in a row
VALUES = {"data": {"val_frac": 0.1},
          "train": {"max_steps": 6, "save_steps": 2, "eval_steps": 3, "eval_max_rows": 2,
                    "per_device_train_batch_size": 1}}  # fmt: skip


@dataclass
class Refusals:
    """Lets calls from the k-th on fail, counted while the trainer trains."""

    call: str
    code: int
    k: int
    count: int
    root: Path
    calls: int = field(default=0, repr=False)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        real = getattr(os, self.call)

        def failing(*arguments: Any, **options: Any) -> Any:
            if not self._concerns(arguments):
                return real(*arguments, **options)
            self.calls += 1
            if self.k <= self.calls < self.k + self.count:
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        with mock.patch.object(os, self.call, failing):
            yield

    def _concerns(self, arguments: tuple[Any, ...]) -> bool:
        """Only changes, and only below the run's folder: the lease lies elsewhere."""
        first = arguments[0]
        if isinstance(first, int):
            with contextlib.suppress(OSError):
                return os.readlink(f"/proc/self/fd/{first}").startswith(str(self.root))
            return False
        if self.call == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            return False
        return str(first).startswith(str(self.root))


def train_once(paths: RunPaths) -> str:
    """One attempt, as `trainer.main` makes it without signals; the state it leaves."""
    from studio.backend import trainer
    from studio.backend.inbox import Inbox

    with mock.patch.object(Inbox, "listen"):
        trainer.main([str(paths.root)])
    return derive_state(paths, alive=False)


def losses(paths: RunPaths) -> dict[int, set[float]]:
    """All losses ever logged, by step."""
    found: dict[int, set[float]] = {}
    for record in read_records(paths.metrics).records:
        if record["kind"] == "step":
            found.setdefault(record["step"], set()).add(record["loss"])
    return found


def problems(paths: RunPaths, state: str, whole: RunPaths, weights: dict[int, str]) -> list[str]:
    """What is wrong after the fault, and after a resume on a mended disk."""
    found = []
    if state not in ("done", "paused", "interrupted", "queued"):
        found.append(f"it ended as {state}: {(read_json(paths.exit_json) or {}).get('error')}")
    if (state in ("done", "paused")) != (read_json(paths.exit_json) is not None):
        found.append(f"{state}, but exit.json is {read_json(paths.exit_json)}")
    if state == "paused":
        text = str((read_json(paths.exit_json) or {})["error"]["text"])
        found += [] if str(paths.root) in text and " free" in text else [f"the message: {text}"]
    # A refused save may be made up for at the last step, which a run without faults never saves.
    saved = {n: digest for n, digest in weights_hashes(paths).items() if n <= max(weights)}
    if other := [n for n, digest in saved.items() if weights.get(n) != digest]:
        found.append(f"the checkpoints of steps {other} hold other weights")
    if state != "done" and (again := train_once(paths)) != "done":
        return [*found, f"the resume ended as {again}: {read_json(paths.exit_json)}"]
    wanted = losses(whole)
    if any(values != wanted[step] for step, values in losses(paths).items()):
        found.append("a loss differs from that of the run without faults")
    if read_records(paths.metrics).damaged > 1:
        found.append("more than one damaged line")
    return found


def run(trials: int, *, seed: int = 0) -> Result:
    """One fault a trial; one that is not reached is drawn again."""
    from studio.backend import callbacks, checkpoints, schedule, trainer, training
    from tests.backend.tiny import RunMaker, save_model

    result = Result("I/O faults at any write of the trainer", "the run goes on or pauses, resumes "
                    "exactly, 0 false \"saved\"")  # fmt: skip
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        for module, name, value in (
            (callbacks, "PAUSE_AFTER_S", 0.3), (callbacks, "_BETWEEN_TRIES_S", 0.0),
            (schedule, "FIRST_RETRY_S", 0.0), (training, "KEEP_PATIENCE_S", 0.5),
            (training, "_RETRY_S", 0.1), (trainer, "END_PATIENCE_S", 0.5),
            (trainer, "_RETRY_S", 0.1),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(module, name, value))
        patches.enter_context(mock.patch("studio.backend.measuring.MAX_NEW_TOKENS", 2))
        make_run = RunMaker(root / "runs", save_model(root / "model"))
        # After each step: a refused save is tried again at steps where none was due.
        whole = make_run({**VALUES, "train": {**VALUES["train"], "save_steps": 1}}, rows=20)
        with mock.patch.object(checkpoints, "KEEP_VALID", 10**6):
            train_once(whole)
        weights = weights_hashes(whole)
        while result.trials < trials:
            paths = make_run(VALUES, rows=20)
            faults = Refusals(draw.choice(CALLS), draw.choice(CODES), draw.randint(1, 60),
                              draw.choice(HOW_LONG), paths.root)  # fmt: skip
            with faults.active():
                state = train_once(paths)
            if faults.calls < faults.k:
                continue
            found = problems(paths, state, whole, weights)
            if state == "done" and adapter_bytes(paths) != adapter_bytes(whole):
                kept = read_json(paths.adapter / "lora_studio.json")
                told = any("kept" in w for w in (read_json(paths.exit_json) or {})["warnings"])
                found += [] if told else [f"another adapter was kept in silence: {kept}"]
            result.trials += 1
            result.count(state)
            result.check(not found, f"seed {seed}, {faults}: {'; '.join(found)}")
    return result


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    return run_from_command_line(run, __doc__, trials=60)


if __name__ == "__main__":
    raise SystemExit(main())
