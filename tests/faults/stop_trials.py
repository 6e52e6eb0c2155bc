"""Stop at random instants: the trainer ends within its grace, with the last completed step saved.

    python -m tests.faults.stop_trials --trials 100

The starter model on generated rows, with evaluations and sampled answers, in trainers forked as in
`kill_trainer`. A stop, a pause, a "stop now" with SIGTERM, or SIGTERM alone comes at any instant
from the fork to the end: while loading, in a step, an evaluation, an answer, a save. The grace is
that of core.endings, from what the trainer itself noted. Its checkpoint must be that of the last
completed step, with the weights of a run without breaks. Nothing is killed: a trainer that is late
is a failure.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from studio.core.endings import LEAST_GRACE_S, stop_grace_s
from studio.core.runs import PAUSED, STOPPED, RunPaths, read_json
from studio.hardware.platforms import is_locked
from studio.services.commands import write_command
from tests.faults.kill_trainer import (
    STEPS,
    Reference,
    Trainer,
    import_libraries,
    make_run,
    train_reference,
    weights_hashes,
)
from tests.faults.result import Result, run_from_command_line

ORDERS = {"stop": STOPPED, "pause": PAUSED, "stop_now": STOPPED, "signal": STOPPED}
_LATEST_S = 4.0
_BEGIN_LIMIT_S = 60.0


def wait_until_begun(trainer: Trainer, paths: RunPaths) -> bool:
    """Wait until it can be told anything: before, only the supervisor's own ladder ends it."""
    before = read_json(paths.process_json)
    until = time.monotonic() + _BEGIN_LIMIT_S

    def is_new() -> bool:
        return read_json(paths.process_json) not in (None, before)

    while not (is_new() and is_locked(paths.lock)):
        if trainer.has_ended():
            return is_new()  # one with a step to go may end between two looks
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def give(order: str, trainer: Trainer, paths: RunPaths) -> None:
    """The order, as the supervisor gives it."""
    if order != "signal":
        write_command(paths, order)
    if order in ("signal", "stop_now"):
        os.kill(trainer.pid, signal.SIGTERM)


def end_within(trainer: Trainer, paths: RunPaths, order: str) -> tuple[float, float]:
    """Give the order and wait for the end. (seconds it took, grace in seconds)."""
    state = read_json(paths.state_json) or {}
    began = time.monotonic()
    give(order, trainer, paths)
    while not trainer.has_ended():
        if time.monotonic() - began > 4 * LEAST_GRACE_S:
            trainer.kill()
        time.sleep(0.005)
    took_s = time.monotonic() - began
    return took_s, stop_grace_s(state.get("micro_batch_s"), state.get("last_save_s"))


def problems(paths: RunPaths, status: int | None, wanted: str, reference: Reference) -> list[str]:
    """What is wrong with a run that was told to end."""
    found = []
    end = read_json(paths.exit_json)
    if status != 0 or end is None:
        return [f"exit code {status}, exit.json {end}: {paths.log.read_text()[-300:]}"]
    if end["state"] not in (wanted, "done"):
        found.append(f"it ended as {end['state']}, wanted {wanted}: {end['error']}")
    weights = weights_hashes(paths)
    # The last step of all is kept as the adapter and needs no checkpoint.
    if end["state"] != "done" and max(weights, default=0) != end["steps"]:
        found.append(f"{end['steps']} steps were completed, checkpoint {max(weights, default=0)}")
    # An order within the last step has it saved, too; a run without breaks saves it never, so there
    # is nothing to hold it against.
    other = [n for n, digest in weights.items() if n < STEPS and digest != reference.weights[n]]
    if other:
        found.append(f"the weights of steps {other} differ from those of the unbroken run")
    if left := [p.name for p in (*paths.root.glob(".*"), *paths.checkpoints.glob(".*"))]:
        found.append(f"left behind: {left}")
    return found


def run(trials: int, *, seed: int = 0) -> Result:
    """Stop `trials` trainers; a run goes on from where it was stopped until it is done."""
    wanted = (
        "every end within max(15 s, 3 micro-batches + 2 saves), with a checkpoint of the last "
        "completed step"
    )
    result = Result("Stop and pause at random instants", wanted)
    draw = random.Random(seed)
    import_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "runs")  # the folder above it is the workspace
        root.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")  # the device lease
        reference = train_reference(root, measured=True)
        paths, number, slowest_s = make_run(root, 1, measured=True), 1, 0.0
        while result.trials < trials:
            order = draw.choice(list(ORDERS))
            trainer = Trainer.start(paths, fresh=False)
            begun = wait_until_begun(trainer, paths)
            moment = time.monotonic() + draw.uniform(0.0, _LATEST_S)
            while time.monotonic() < moment and not trainer.has_ended():
                time.sleep(0.005)
            if begun and trainer.has_ended() and trainer.status == 0:
                number += 1  # it was done before the order came: no trial
                paths = make_run(root, number, measured=True)
                continue
            phase = (read_json(paths.state_json) or {}).get("phase")
            took_s, grace_s = end_within(trainer, paths, order)
            found = problems(paths, trainer.status, ORDERS[order], reference)
            if took_s > grace_s:
                found.append(f"it took {took_s:.1f} s of {grace_s:.1f} s")
            if not begun:
                found.append(f"it did not begin within {_BEGIN_LIMIT_S:g} s")
            slowest_s = max(slowest_s, took_s)
            result.trials += 1
            result.count(f"in {phase}")
            result.check(not found, f"seed {seed}, trial {result.trials}, {order} in {phase}: "
                         f"{'; '.join(found)}")  # fmt: skip
            if found or (read_json(paths.exit_json) or {}).get("state") == "done":
                number += 1
                paths = make_run(root, number, measured=True)
        result.count("ms for the slowest end", round(1000 * slowest_s))
    return result


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    return run_from_command_line(run, __doc__, trials=100)


if __name__ == "__main__":
    raise SystemExit(main())
