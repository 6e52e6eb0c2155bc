"""One attempt of a run, from its folder to a kept adapter.

Owns the order of things: device, model, data, trainer, resume, training, keeping. Each part lives
in a module of its own. Called by `backend.trainer`, which owns the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.backend.inbox import DISK_REFUSED, Inbox
from studio.backend.journal import Journal
from studio.backend.lease import device_lease
from studio.backend.telemetry import Telemetry
from studio.backend.token_cache import TokenCache, TokenizingCancelledError
from studio.core.config import RunConfig
from studio.core.errors import StoreError
from studio.core.runs import DONE, PAUSED, RunPaths

if TYPE_CHECKING:
    from studio.backend.callbacks import RunCallback
    from studio.backend.checkpoints import Checkpoint
    from studio.backend.data import TrainingData
    from studio.backend.sft import StudioTrainer

KEEP_PATIENCE_S = 30.0
_RETRY_S = 1.0
# The hashes whose change makes a checkpoint belong to another run, with what they stand for.
_MUST_MATCH = {
    "config_sha256": "settings",
    "dataset_fingerprint": "data set",
    "model_fingerprint": "base model",
}


@dataclass
class Attempt:
    """An attempt under way; what is None has not come about yet."""

    paths: RunPaths
    record: dict[str, Any]
    config: RunConfig
    journal: Journal
    inbox: Inbox
    telemetry: Telemetry
    data: TrainingData | None = None
    callback: RunCallback | None = None
    trainer: StudioTrainer | None = None

    @property
    def steps(self) -> int:
        """Completed optimizer steps, those of earlier attempts included."""
        return int(self.trainer.state.global_step) if self.trainer else self.journal.step


def run_attempt(attempt: Attempt) -> str:
    """Train until the end or an order to end. Returns the end state; exceptions are the edge's."""
    with attempt.journal.in_phase("loading", "Loading libraries, about 8 s"):
        _import_libraries(attempt)
    from studio.backend import estimating

    device = attempt.config.runtime.device

    def told_to_end(user: str) -> bool:
        attempt.journal.update(message=f"Waiting for the {device}: {user} uses it")
        return attempt.inbox.poll()

    with device_lease(device, f"run {attempt.paths.id}", give_up=told_to_end) as held:
        if not held or attempt.inbox.poll():
            return str(attempt.inbox.end_state)
        try:
            tokenizer, model = _load(attempt)
        except TokenizingCancelledError:
            return str(attempt.inbox.end_state)
        if attempt.inbox.poll():
            return str(attempt.inbox.end_state)
        checkpoint = _find_checkpoint(attempt)
        if checkpoint is None:
            _begin_warm(attempt, model)
        _build(attempt, tokenizer, model, checkpoint)
        estimating.predict(attempt, count=False)
        state = _train(attempt, checkpoint)
        attempt.telemetry.memory.watch.stop()
        # The adapter is kept: now there is time for what nobody waits for.
        estimating.predict(attempt, count=state == DONE)
        return state


def _import_libraries(attempt: Attempt) -> None:
    """The slow imports, all here, so that they have a name and a duration in the run's record."""
    import torch

    from studio.backend import loading

    loading.quiet_libraries()  # before bitsandbytes is imported, which has something to say
    torch.set_num_threads(int(attempt.config.runtime.num_threads))
    from studio.backend import callbacks, sft  # noqa: F401

    attempt.telemetry.torch_came()
    loading.check_device(attempt.config.runtime.device)
    if attempt.config.runtime.device.startswith("cuda"):
        attempt.telemetry.follow(f"GPU-{torch.cuda.get_device_properties(0).uuid}")


def _load(attempt: Attempt) -> tuple[Any, Any]:
    """Tokenizer and data first: a problem there is told before the model takes its time."""
    from studio.backend import adapters, data, loading
    from studio.backend.rendering import load_tokenizer
    from studio.backend.row_facts import row_facts

    path, config, journal = model_path(attempt.record), attempt.config, attempt.journal
    with journal.in_phase("data", "Reading and tokenizing the rows"):
        tokenizer = load_tokenizer(path)
        pad = loading.ensure_pad_token(tokenizer)
        if pad:
            journal.warn(f"The model has no padding token; {pad} is used, which changes no loss")
        folder = attempt.paths.root / attempt.record["dataset"]["path"]
        measured = data.eval_rows(config, int(attempt.record.get("total_steps") or 1))
        rows = data.load_rows(folder)

        def show(done: int, total: int) -> None:
            journal.update(message=f"Tokenizing: {done:,} of {total:,} rows")

        attempt.data = data.prepare(
            tokenizer, rows, config, max_eval_rows=measured, cache=_token_cache(attempt.paths),
            held_out_rows=data.load_held_out(folder), progress=show,
            cancelled=attempt.inbox.poll,
        )  # fmt: skip
        for note in attempt.data.notes:
            journal.warn(note)
        journal.update(**row_facts(attempt.data, config.train.max_length))
    with journal.in_phase("loading", "Loading the model"):
        model = loading.load_model(path, config)
        loading.check_vocabulary(model, tokenizer)
        if (used := model.config._attn_implementation) != config.model.attn_implementation:
            journal.warn(f"This architecture has no {config.model.attn_implementation}; {used} "
                         "attention is used, which takes more memory on long rows")  # fmt: skip
        if attempt.record["model"].get("kind") == "hub":
            model.config._name_or_path = model.name_or_path = attempt.record["model"]["id"]
        model = adapters.attach(model, config.lora, seed=config.train.seed)
        journal.update(now=True, **adapters.count_parameters(model))
    return tokenizer, model


def _token_cache(paths: RunPaths) -> TokenCache | None:
    """The workspace's, for a run that lies in one."""
    runs = paths.root.resolve().parent
    return TokenCache.of_workspace(runs.parent) if runs.name == "runs" else None


def model_path(record: dict[str, Any]) -> Path:
    """The folder of the base model. Raises StoreError where run.json does not say."""
    path = record.get("model", {}).get("path")
    if not path:
        raise StoreError("run.json does not say where the model is", remedy="Start the run again")
    return Path(path)


def _find_checkpoint(attempt: Attempt) -> Checkpoint | None:
    """Where to go on: the newest valid checkpoint that belongs to this run as it is."""
    from studio.backend import checkpoints

    checkpoints.clean(attempt.paths.checkpoints)
    found = checkpoints.find_newest(attempt.paths.checkpoints)
    for skipped in found.skipped:
        attempt.journal.warn(f"A checkpoint was passed over: {skipped}")
    checkpoint = found.checkpoint
    if checkpoint is None:
        if attempt.journal.attempt > 1:
            attempt.journal.step = 0
            attempt.journal.record("resume", step=0, from_step=0)
        return None
    ours = identity(attempt)
    for key, what in _MUST_MATCH.items():
        if checkpoint.manifest.get(key) != ours[key]:
            raise StoreError(
                f"The {what} changed since checkpoint step {checkpoint.step} was made, so the run "
                "cannot be resumed",
                remedy="Start a new run; it can begin with the weights of this one: "
                f"--warm-start {attempt.record.get('id')}@{checkpoint.step}",
            )
    if checkpoint.manifest.get("versions") != ours["versions"]:
        attempt.journal.warn(
            "Packages changed since the checkpoint was made: the run goes on, but not exactly as "
            "it would have without the break"
        )
    attempt.journal.step = checkpoint.step
    attempt.journal.record("resume", step=checkpoint.step, from_step=checkpoint.step)
    return checkpoint


def _begin_warm(attempt: Attempt, model: Any) -> None:
    """Give the adapter the weights that run.json names, if it names any."""
    start = attempt.record.get("warm_start")
    if not start:
        return
    from studio.backend import adapters
    from studio.backend.loading import model_fingerprint

    origin = f"run {start.get('run')} step {start.get('step')}"
    notes = adapters.begin_with(model, attempt.paths.warm_start, origin)
    base = start.get("model_fingerprint")
    if base is not None and base != model_fingerprint(model_path(attempt.record)):
        notes.append(f"The weights of {origin} were trained on another base model than this run's")
    for note in notes:
        attempt.journal.warn(note)


def identity(attempt: Attempt) -> dict[str, Any]:
    """What a checkpoint of this run belongs to."""
    from importlib.metadata import version

    from studio.backend.checkpoints import hash_values
    from studio.backend.loading import model_fingerprint

    packages = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
    return {
        "run": attempt.record.get("id"),
        "config_sha256": hash_values(attempt.record["resolved"]),
        "dataset_fingerprint": attempt.record["dataset"].get("fingerprint"),
        "model_fingerprint": model_fingerprint(model_path(attempt.record)),
        "versions": {name: version(name) for name in packages},
    }


def _build(attempt: Attempt, tokenizer: Any, model: Any, checkpoint: Checkpoint | None) -> None:
    from studio.backend import callbacks, keeping, sft
    from studio.backend.data import to_dataset
    from studio.core.runs import read_json

    config, given = attempt.config, attempt.record.get("config", {}).get("train", {})
    assert attempt.data is not None
    belongs_to = identity(attempt)
    keeper = keeping.Keeper(
        attempt.paths.adapter, config.train.keep,
        note={"model_fingerprint": belongs_to["model_fingerprint"]},
        begun_as=keeping.WARM if attempt.record.get("warm_start") else keeping.BASE,
    )  # fmt: skip
    attempt.callback = callbacks.RunCallback(callbacks.Run(
        paths=attempt.paths, config=config, journal=attempt.journal, inbox=attempt.inbox,
        data=attempt.data, keeper=keeper, tokenizer=tokenizer, identity=belongs_to,
        eval_is_auto=given.get("eval_steps", "auto") == "auto",
        save_is_auto=given.get("save_steps", "auto") == "auto",
        resumed_from=checkpoint.step if checkpoint else None,
    ))  # fmt: skip
    if checkpoint is not None:
        saved = read_json(checkpoint.path / callbacks.STATE_FILE) or {}
        attempt.callback.progress = callbacks.Progress(**saved.get("progress", {}))
        attempt.callback.eval_owed = bool(saved.get("eval_owed"))
        keeper.resume(saved.get("evaluations", {}))
    with attempt.journal.in_phase("data", "Preparing the batches"):
        pack_to = config.train.max_length if config.train.packing else None
        dataset = to_dataset(attempt.data.train, pack_to=pack_to)
    attempt.trainer = sft.build_trainer(
        model, tokenizer, dataset, config,
        output_dir=attempt.paths.checkpoints, callback=attempt.callback,
    )  # fmt: skip
    attempt.trainer.hooks = attempt.callback
    attempt.callback.trainer = attempt.trainer


def _train(attempt: Attempt, checkpoint: Checkpoint | None) -> str:
    assert attempt.trainer is not None and attempt.callback is not None
    with attempt.callback.first_phase:  # closed by the first step, or by what broke it
        attempt.trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    state = attempt.inbox.end_state or DONE
    steps = attempt.steps
    if state != DONE and steps >= attempt.trainer.state.max_steps:
        state = DONE  # asked to end after the last step
    with attempt.journal.in_phase("saving", "Keeping the adapter"):
        refused = _keep_adapter(attempt, patience_s=KEEP_PATIENCE_S if state == DONE else 0.0)
    if refused is None:
        return state
    attempt.journal.warn(f"The adapter of step {steps} could not be kept. {refused}")
    attempt.inbox.end(PAUSED, DISK_REFUSED, refused)  # never done without its adapter
    attempt.inbox.refusal = attempt.inbox.refusal or refused
    return str(attempt.inbox.end_state)


def _keep_adapter(attempt: Attempt, *, patience_s: float) -> StoreError | None:
    """Write the adapter; what the disk says if it refuses for that long or an order to end came."""
    assert attempt.trainer is not None and attempt.callback is not None
    until = time.monotonic() + patience_s
    while True:
        try:
            attempt.callback.run.keeper.finish(attempt.trainer.model, attempt.steps)
            return None
        except StoreError as error:
            if time.monotonic() >= until or attempt.inbox.is_end_asked():
                return error
            attempt.journal.update(message=f"Waiting for the disk. {error.what}")
        time.sleep(_RETRY_S)
