"""A trainer without torch: takes the lock, writes the files, obeys commands. For supervisor tests.

    python tests/fakes/trainer.py RUN_DIR

FAKE_STEPS steps of FAKE_STEP_S seconds; FAKE_MODE: "" | "crash" (before the lock) | "deaf" (obeys
no command and no SIGTERM) | "hang" (before the lock) | "die" (killed after the third step).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from studio.core.runs import RunPaths, pending_commands, read_json
from studio.hardware.platforms import (
    ProcessIdentity,
    create_exclusive,
    held_lock,
    make_folder,
    write_json,
)

STEPS = int(os.environ.get("FAKE_STEPS", "5"))
STEP_S = float(os.environ.get("FAKE_STEP_S", "0.01"))
MODE = os.environ.get("FAKE_MODE", "")
ENDS = {"stop": "stopped", "stop_now": "stopped", "pause": "paused"}


class FakeTrainer:
    """One attempt."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.began = time.monotonic()
        previous = read_json(paths.process_json) or {}
        self.attempt = int(previous.get("attempt", 0)) + 1
        self.terminated = False
        if MODE == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self.terminated = True

    def begin(self) -> int:
        """Write what the attempt starts with; the step it starts from."""
        before = read_json(self.paths.exit_json)
        if before:
            earlier = before.get("attempt", self.attempt - 1)
            os.replace(self.paths.exit_json, self.paths.root / f"exit-{earlier}.json")
        identity = ProcessIdentity.of(os.getpid())
        write_json(self.paths.process_json, {"attempt": self.attempt, **vars(identity)})
        self.state("starting", 0)
        self.paths.resume_json.unlink(missing_ok=True)
        first = int((before or {}).get("steps", 0))
        if self.attempt > 1:
            self.append("resume", first, from_step=first)
        return first

    def append(self, kind: str, step: int, **values: object) -> None:
        record = {"kind": kind, "attempt": self.attempt, "step": step, **values}
        record["time"] = datetime.now(UTC).isoformat()
        record["t_s"] = round(time.monotonic() - self.began, 3)
        with self.paths.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def state(self, state: str, step: int) -> None:
        write_json(
            self.paths.state_json,
            {
                "state": state, "phase": "training", "step": step, "total_steps": STEPS,
                "attempt": self.attempt, "time": datetime.now(UTC).isoformat(), "eta_s": 1.0,
            },
        )  # fmt: skip

    def obey(self) -> str | None:
        """End state if a command asks to end."""
        if MODE == "deaf":
            return None
        if self.terminated:
            return "stopped"
        for file, verb in pending_commands(self.paths):
            create_exclusive(file.with_suffix(".ack"), b"{}")
            if verb in ENDS:
                return ENDS[verb]
        return None

    def run(self) -> None:
        step, end = self.begin(), None
        self.append("eval", step, eval_loss=3.0)
        while step < STEPS and end is None:
            time.sleep(STEP_S)
            step += 1
            self.append("step", step, loss=3.0 / step, learning_rate=1e-4, grad_norm=1.0,
                        tokens_total=step * 10, tokens_per_s=100.0)  # fmt: skip
            self.state("running", step)
            if MODE == "die" and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            end = self.obey()
        self.append("eval", step, eval_loss=1.0)
        make_folder(self.paths.adapter)
        (self.paths.adapter / "adapter_config.json").write_text("{}")
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        weights = len(header).to_bytes(8, "little") + header + bytes(4)
        (self.paths.adapter / "adapter_model.safetensors").write_bytes(weights)
        write_json(
            self.paths.exit_json,
            {
                "state": end or "done", "attempt": self.attempt, "steps": step, "cause": None,
                "error": None, "total_steps": STEPS, "train_loss": 3.0 / step, "eval_loss": 1.0,
                "eval_loss_first": 3.0, "verdict": "fake", "tokens_per_s": 100.0,
                "peak_vram_bytes": None, "peak_rss_bytes": 1000, "time_to_first_step_s": 0.1,
                "run_s": 1.0, "best_step": step, "adapter_dir": "adapter",
            },
        )  # fmt: skip


def main() -> int:
    paths = RunPaths(Path(sys.argv[1]))
    if MODE == "crash":
        print("no such module: torch", file=sys.stderr)
        return 3
    if MODE == "hang":
        time.sleep(600)
    with held_lock(paths.lock, timeout_s=5) as got:
        if not got:
            return 1
        FakeTrainer(paths).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
