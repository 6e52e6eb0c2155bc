"""SIGKILL of the real trainer at random instants; each resume must equal the unbroken run.

    python -m tests.faults.kill_trainer --trials 300

The starter model on generated rows, a checkpoint after each step. One run without breaks gives the
loss of each step and the weights of each checkpoint; then a trainer is started again and again and
killed: a third in a save, a third after an append, a third anywhere from its start on. Every tenth
is a fresh `python -m studio.backend.trainer`; the others are forked from this process, which has
imported the libraries but runs no torch operator and no thread and holds no lock.
A trial that runs into its time limit counts as a failure.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.events import current, read_records
from studio.core.runs import RunPaths, derive_state, read_json
from studio.core.split import split
from studio.hardware.platforms import is_locked
from studio.services.launcher import trainer_environment
from tests.faults.result import Result, run_from_command_line

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "presets" / "starter"
TRIAL_LIMIT_S = 180.0
STEPS = 24
FRESH_EVERY = 10
EXACT_RESUMES = 50  # at least so many must have been compared, loss by loss and weight by weight
_AIMS = ("save", "append", "any")
_WORDS = ["harbor", "north", "tide", "rope", "lamp", "storm", "quay", "yes", "no", "early"]


def import_libraries() -> None:
    """All that a trainer imports, in the process that forks them."""
    from studio.backend import callbacks, loading, sft, trainer  # noqa: F401


def make_run(root: Path, number: int, *, measured: bool = False) -> RunPaths:
    """A run folder as services/runs.py makes it; every one of the same run.

    Args:
        measured: hold rows back and evaluate after each second step.
    """
    from studio.core.config_io import build_config, dump_config
    from studio.core.plan import resolve

    draw = random.Random(7)
    rows = [
        {"i": i, "line": i, "messages": [
            {"role": "user", "content": " ".join(draw.choices(_WORDS, k=draw.randint(2, 12)))},
            {"role": "assistant", "content": " ".join(draw.choices(_WORDS, k=4))},
        ]}
        for i in range(1, 31)
    ]  # fmt: skip
    dataset = root / "data"
    dataset.mkdir(exist_ok=True)
    (dataset / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config({
        "data": {"val_frac": 0.2 if measured else 0.0},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "train": {"max_steps": STEPS, "save_steps": 1, "per_device_train_batch_size": 1,
                  "gradient_accumulation_steps": 2, "max_length": 64, "learning_rate": 1e-3,
                  **({"eval_steps": 2} if measured else {})},
        "runtime": {"device": "cpu", "num_threads": 1},
    })  # fmt: skip
    cpu = {"cuda": False, "mps": False, "bnb": True, "bf16": True, "cores": 1, "threads": 1}
    info = {"params": 5_000_000, "context_length": 512}
    kept, held_out = split(len(rows), config.data.val_frac, config.train.seed)
    plan = resolve(config, cpu, len(kept), len(held_out), info)
    paths = RunPaths(root / f"20260101-000000-{number:04x}")
    paths.commands.mkdir(parents=True)
    paths.run_json.write_text(json.dumps({
        "schema": 1, "id": paths.id, "created": "2026-01-01T00:00:00Z",
        "config": dump_config(config), "resolved": dump_config(plan.config), "auto": {},
        "total_steps": plan.total_steps,
        "dataset": {"id": "data", "path": "../data", "fingerprint": "f" * 64, "name": "data"},
        "model": {"id": "starter", "kind": "starter", "path": str(STARTER), "params": 5_000_000},
        "versions": {}, "seed": config.train.seed, "machine": {},
    }))  # fmt: skip
    return paths


@dataclass
class Trainer:
    """A real trainer process."""

    pid: int
    process: subprocess.Popen[bytes] | None = None
    began: float = field(default_factory=time.monotonic)
    status: int | None = None

    @classmethod
    def start(cls, paths: RunPaths, *, fresh: bool, keep_all: bool = False) -> Trainer:
        if fresh:
            with paths.log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "studio.backend.trainer", str(paths.root)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                    env=trainer_environment(paths), start_new_session=True,
                )  # fmt: skip
            return cls(process.pid, process)
        pid = os.fork()
        if pid:
            return cls(pid)
        code = 70
        try:
            os.setsid()
            log_descriptor = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log_descriptor, 1)
            os.dup2(log_descriptor, 2)
            from studio.backend import checkpoints, trainer

            if keep_all:
                checkpoints.KEEP_VALID = 10**6
            code = trainer.main([str(paths.root)])
        finally:
            os._exit(code)

    def has_ended(self) -> bool:
        """Whether it is gone; reaps it."""
        if self.status is None:
            if self.process is not None:
                self.status = self.process.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def is_late(self) -> bool:
        return time.monotonic() - self.began > TRIAL_LIMIT_S

    def kill(self) -> None:
        """SIGKILL, and wait until it is reaped."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            while not self.has_ended():
                time.sleep(0.001)


def wait_for_instant(trainer: Trainer, paths: RunPaths, aim: str, draw: random.Random) -> None:
    """Return at the instant of the kill, or when the trainer ended or is late."""
    before = count_steps(paths)
    moment = trainer.began + draw.uniform(0.0, 6.0)
    wanted, seen, was_staging = draw.randint(1, 4), 0, False
    while not trainer.has_ended() and not trainer.is_late():
        if aim == "any" and time.monotonic() >= moment:
            return
        if aim == "save":
            staging = any(paths.checkpoints.glob(".staging-*"))
            seen += staging and not was_staging
            was_staging = staging
        elif aim == "append":
            seen = count_steps(paths) - before
        if seen >= wanted:
            time.sleep(draw.uniform(0.0, 0.03 if aim == "save" else 0.002))
            return
        time.sleep(0.0005)


def count_steps(paths: RunPaths) -> int:
    """Step records so far, those of earlier attempts included."""
    data = paths.metrics.read_bytes() if paths.metrics.exists() else b""
    return data.count(b'"kind": "step"')


@dataclass
class Reference:
    """What the run without breaks logged and saved."""

    losses: dict[int, float]
    weights: dict[int, str]
    adapter: bytes


def weights_hashes(paths: RunPaths) -> dict[int, str]:
    """SHA-256 of the weights of each valid checkpoint, by step."""
    from studio.backend import checkpoints

    found = {}
    for folder in paths.checkpoints.glob("step-*"):
        if checkpoints.verify(folder) is None:
            manifest = read_json(folder / checkpoints.MANIFEST) or {}
            found[int(manifest["step"])] = manifest["files"][checkpoints.WEIGHTS]["sha256"]
    return found


def adapter_bytes(paths: RunPaths) -> bytes:
    return (paths.adapter / "adapter_model.safetensors").read_bytes()


def train_reference(root: Path, *, measured: bool = False) -> Reference:
    """The run without breaks."""
    paths = make_run(root, 0, measured=measured)
    trainer = Trainer.start(paths, fresh=False, keep_all=True)
    while not trainer.has_ended():
        if trainer.is_late():
            trainer.kill()
        time.sleep(0.05)
    if trainer.status != 0:
        raise RuntimeError(f"The run without breaks failed: {paths.log.read_text()[-2000:]}")
    records = read_records(paths.metrics).records
    losses = {r["step"]: r["loss"] for r in records if r["kind"] == "step"}
    return Reference(losses, weights_hashes(paths), adapter_bytes(paths))


def acknowledged(records: list[dict[str, Any]]) -> int:
    """The newest step whose save was over before the kill."""
    over = ("phase", "saving", "end")
    ends = [r["step"] for r in records if (r["kind"], r.get("name"), r.get("status")) == over]
    return max((step for step in ends if step < STEPS), default=0)


def problems(paths: RunPaths, before: bytes, kills: int, reference: Reference) -> list[str]:
    """What is wrong with the run folder after a kill."""
    found = []
    data = paths.metrics.read_bytes() if paths.metrics.exists() else b""
    if not data.startswith(before):
        found.append("metrics that were there before this attempt are gone or changed")
    batch = read_records(paths.metrics)
    if batch.damaged > kills:
        found.append(f"{batch.damaged} damaged lines after {kills} kills")
    steps = [(r["attempt"], r["step"]) for r in batch.records if r["kind"] == "step"]
    if len(set(steps)) != len(steps):
        found.append("a metric is there twice")
    shown = [r["step"] for r in current(batch.records) if r["kind"] == "step"]
    if shown != list(range(1, len(shown) + 1)):
        found.append(f"the curve has gaps or repeats: {shown}")
    for record in batch.records:
        if record["kind"] == "step" and record["loss"] != reference.losses[record["step"]]:
            found.append(f"attempt {record['attempt']} step {record['step']}: another loss")
            break
    weights, saved = weights_hashes(paths), acknowledged(batch.records)
    if max(weights, default=0) < saved:
        found.append(f"checkpoint {saved} was saved, newest valid is {max(weights, default=0)}")
    if len(shown) < max(weights, default=0):
        found.append(f"checkpoint {max(weights)} has only {len(shown)} metrics before it")
    if any(digest != reference.weights.get(step) for step, digest in weights.items()):
        found.append("a checkpoint's weights differ from those of the unbroken run")
    state = derive_state(paths, alive=is_locked(paths.lock))
    if state not in ("interrupted", "done", "queued"):
        found.append(f"the killed run is shown as {state}")
    return found


def exact_resumes(paths: RunPaths) -> int:
    """Attempts that went on from a checkpoint and logged a step or more; each was compared."""
    records = read_records(paths.metrics).records
    went_on = {r["attempt"] for r in records if r["kind"] == "resume" and r["from_step"]}
    return len(went_on & {r["attempt"] for r in records if r["kind"] == "step"})


def run(trials: int, *, seed: int = 0, fresh_every: int = FRESH_EVERY) -> Result:
    """Kill `trials` trainers; a trainer that reaches its end is compared and begins anew."""
    result = Result("kill -9 of the real trainer", "0 committed metrics lost or twice, resumable "
                    "from the last acknowledged checkpoint, every resume bit-exact")  # fmt: skip
    draw = random.Random(seed)
    import_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "runs")  # the folder above it is the workspace
        root.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")  # the device lease
        reference = train_reference(root)
        paths, number, kills = make_run(root, 1), 1, 0
        while result.trials < trials:
            before = paths.metrics.read_bytes() if paths.metrics.exists() else b""
            aim = _AIMS[result.trials % 3]
            fresh = result.trials % fresh_every == fresh_every - 1
            trainer = Trainer.start(paths, fresh=fresh)
            wait_for_instant(trainer, paths, aim, draw)
            late, ended = trainer.is_late(), trainer.has_ended()
            trainer.kill()
            found = problems(paths, before, kills + 1, reference)
            if late:
                found.append(f"nothing to kill within {TRIAL_LIMIT_S:g} s")
            if ended and trainer.status != 0:
                found.append(
                    f"it ended by itself with {trainer.status}: {paths.log.read_text()[-300:]}"
                )
            where = f"seed {seed}, trial {result.trials}, {aim}"
            result.check(not found, f"{where}: {'; '.join(found)}")
            if not ended:
                kills += 1
                result.trials += 1
            elif not found:
                same = adapter_bytes(paths) == reference.adapter
                result.check(same, f"{where}: the finished adapter differs")
                result.count("runs compared at their end")
            if ended or found:
                result.count("exact resumes", exact_resumes(paths))
                number, kills = number + 1, 0
                result.trials += bool(ended and found)
                paths = make_run(root, number)
        result.count("exact resumes", exact_resumes(paths))
        compared = result.facts["exact resumes"]
        wanted = min(EXACT_RESUMES, trials // 6) if trials >= 60 else 0  # else it is luck
        result.check(compared >= wanted, f"only {compared} of {wanted} resumes were compared")
    return result


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    return run_from_command_line(run, __doc__, trials=300)


if __name__ == "__main__":
    raise SystemExit(main())
