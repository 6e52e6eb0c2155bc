"""Making a run: everything that can be known is checked first, then one folder appears at once.

The page and the command line use this one function. A run made twice for the same request is one
run. Writes `run.json` once; knows nothing of how a trainer is started.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from studio.core.config import DataSection, ModelSection, RunConfig
from studio.core.config_io import dump_config
from studio.core.errors import BusyError, ConfigError, DatasetError, StoreError
from studio.core.plan import Resolved, resolve
from studio.core.runs import SCHEMA_VERSION, RunPaths, new_run_id
from studio.hardware.platforms import (
    ProcessIdentity,
    free_bytes,
    held_lock,
    make_folder,
    store_error,
    sync_folder,
    write_bytes,
    write_json,
)
from studio.hardware.threads import choose_threads, cpu_count, load_average
from studio.services import warm_start as warm
from studio.services.edits import Edits
from studio.services.model_folder import context_tokens, count_params, read_config
from studio.services.store import MAX_NAME_CHARS, RunStore

if TYPE_CHECKING:
    from studio.hardware.probe import MachineProbe
    from studio.services.datasets import DatasetInfo, DatasetStore
    from studio.services.models import ModelStore

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")
MIN_FREE_BYTES = 64 << 20
_CREATE_TIMEOUT_S = 60.0
_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md")


@dataclass(frozen=True)
class RunParts:
    """What is needed to make a run."""

    workspace: Path
    runs: RunStore
    datasets: DatasetStore
    models: ModelStore
    machine: MachineProbe


@dataclass(frozen=True)
class Prepared:
    """A config that can work here: its data set, model, and every `auto` decided."""

    config: RunConfig
    dataset: DatasetInfo
    model: dict[str, Any]
    resolved: Resolved
    rows_train: int
    rows_held_out: int


def create_run(
    parts: RunParts,
    config: RunConfig,
    *,
    name: str | None = None,
    request_id: str | None = None,
    foreground: bool = False,
    warm_start: str | None = None,
) -> RunPaths:
    """Make the run's folder, queued.

    Args:
        request_id: the same one again returns the run that exists.
        foreground: this process starts the trainer itself; no supervisor shall.
        warm_start: "RUN" or "RUN@STEP" whose weights the run begins with (services.warm_start).

    Raises:
        StudioError: the config cannot work here; nothing was written.
    """
    request_id = request_id or secrets.token_hex(8)
    if existing := parts.runs.find_request(request_id):
        return parts.runs.paths(existing)
    prepared = prepare(parts, config)
    start = warm.find(parts.runs, warm_start) if warm_start else None
    if start is not None:
        warm.check_settings(start, prepared.resolved.config)
    record = _record(parts, prepared, request_id, foreground)
    if start is not None:
        record["warm_start"] = start.record
    with held_lock(parts.workspace / "create.lock", timeout_s=_CREATE_TIMEOUT_S) as got:
        if not got:
            raise BusyError("Another run is being made", remedy="Try again")
        if existing := parts.runs.find_request(request_id):
            return parts.runs.paths(existing)
        return _write(parts, record, prepared, name, start)


def prepare(parts: RunParts, config: RunConfig) -> Prepared:
    """Check a config against data, model, machine and disk without making a run."""
    if not config.data.path:
        raise ConfigError(
            "data.path is missing", allowed="a file, a data set of the workspace or sample:NAME",
            issues={"data.path": "Choose a training file"},
        )  # fmt: skip
    dataset = find_dataset(parts, config.data)
    if dataset.used < 1:
        raise DatasetError("The data set has no usable rows", value=dataset.name)
    held_out = dataset.num_held_out(config.data.val_frac)
    train = dataset.used - held_out
    model = describe_model(parts.models, config.model)
    machine = dict(parts.machine.capabilities())
    count, reason = choose_threads(model["params"], cpu_count(), load_average())
    machine.update(threads=count, threads_reason=reason)
    resolved = resolve(config, machine, train, held_out, model)
    _check_disk(parts.workspace, resolved.config, model)
    return Prepared(config, dataset, model, resolved, train, held_out)


def find_dataset(parts: RunParts, data: DataSection) -> DatasetInfo:
    """The rows that a config means; with a held-out file the set that has its rows at the end.

    That set is derived like any other change to a data set, so its fingerprint covers both files:
    a run is resumed only with the same two.
    """
    how = {"split": data.split, "text_unit": data.text_unit, "encoding": data.encoding}
    dataset = parts.datasets.resolve(
        str(data.path), format=data.format, mapping=dict(data.mapping) or None, options=how
    )
    if not data.held_out_path:
        return dataset
    # Its columns and splits are its own: what was chosen for the first file says nothing of it.
    other = parts.datasets.resolve(data.held_out_path, options={"text_unit": data.text_unit})
    if (dataset.held_out or {}).get("fingerprint") == other.fingerprint:
        return dataset
    step = {"step": "held_out_file", "dataset": other.id}
    return Edits(parts.datasets, parts.workspace).apply(dataset.id, step)


def describe_model(models: ModelStore, config: ModelSection) -> dict[str, Any]:
    """What run.json says of the model. Raises ModelError or HubError if it is not here."""
    path = models.resolve(config.id, config.revision)
    raw = (path / "config.json").read_bytes()
    return {
        "id": config.id,
        "kind": models.info(config.id).kind,
        "path": str(path),
        "config_sha256": hashlib.sha256(raw).hexdigest(),
        "params": count_params(path),
        "context_length": context_tokens(path),
    }


def _check_disk(workspace: Path, config: RunConfig, model: dict[str, Any]) -> None:
    needed = MIN_FREE_BYTES + run_bytes(config, read_config(Path(model["path"]) / "config.json"))
    free = free_bytes(workspace)
    if free is not None and free < needed:
        raise StoreError(
            f"Not enough space on the disk that holds {workspace}: this run needs about "
            f"{needed / 2**20:.0f} MiB",
            value=f"{free / 2**20:.0f} MiB free",
            remedy="Free some space or choose another --workspace",
        )


def run_bytes(config: RunConfig, model_config: dict[str, Any]) -> int:
    """What a run's files may take: the adapter, and three checkpoints of it with optimizer state.

    Adapter of one n x m matrix: r (n + m) fp32 numbers. A block has about 4 matrices h x h and 3
    h x i; grouped keys are smaller, so this is an upper estimate (about 1.5 times at most).
    """
    inside = model_config.get("text_config")
    sizes = inside if isinstance(inside, dict) else model_config
    hidden = _whole(sizes, "hidden_size", "n_embd")
    inner = _whole(sizes, "intermediate_size", "n_inner") or 4 * hidden
    layers = _whole(sizes, "num_hidden_layers", "n_layer")
    adapter = 4 * config.lora.r * layers * (8 * hidden + 3 * (hidden + inner))
    return adapter * (1 + 3 * 3)  # kept + staged and two kept checkpoints of weights and moments


def _whole(values: dict[str, Any], *names: str) -> int:
    return next((v for name in names if isinstance(v := values.get(name), int)), 0)


def _record(
    parts: RunParts, prepared: Prepared, request_id: str, foreground: bool
) -> dict[str, Any]:
    dataset, resolved = prepared.dataset, prepared.resolved
    capabilities = parts.machine.capabilities()
    final = dump_config(resolved.config)
    final["data"].update(format=dataset.format, mapping=dict(dataset.mapping))
    record = {
        "schema": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "request_id": request_id,
        "config": dump_config(prepared.config),
        "resolved": final,
        "auto": dict(resolved.reasons),
        "warnings": list(resolved.warnings),
        "total_steps": resolved.total_steps,
        "dataset": {
            "id": dataset.id, "name": dataset.name, "fingerprint": dataset.fingerprint,
            # Relative to the run's folder, so that a workspace can be moved as a whole.
            "path": f"../../datasets/{dataset.id}",
            "rows_train": prepared.rows_train, "rows_held_out": prepared.rows_held_out,
            "rows_left_out": dataset.left_out,
        },
        "model": prepared.model,
        "versions": package_versions(),
        "seed": prepared.config.train.seed,
        "machine": {k: capabilities.get(k) for k in ("summary", "platform", "torch", "driver")},
    }  # fmt: skip
    if foreground and (identity := ProcessIdentity.of(os.getpid())):
        record["foreground"] = dataclasses.asdict(identity)
    return record


def package_versions() -> dict[str, str | None]:
    """Versions of the torch stack, without importing it."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _write(
    parts: RunParts,
    record: dict[str, Any],
    prepared: Prepared,
    name: str | None,
    start: warm.WarmStart | None,
) -> RunPaths:
    run_id = new_run_id()
    while (parts.runs.root / run_id).exists():
        run_id = new_run_id()
    staged = RunPaths(make_folder(parts.workspace / "tmp" / f"new-{run_id}"))
    title = " ".join((name or default_name(prepared)).split())[:MAX_NAME_CHARS]
    try:
        make_folder(staged.commands)
        if start is not None:
            warm.copy(start, staged.warm_start)
        write_json(staged.run_json, {"id": run_id, **record})
        write_json(staged.meta_json, {"name": title, "notes": ""})
        text = yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True)
        write_bytes(staged.root / "config.yaml", text.encode())
        os.rename(staged.root, parts.runs.root / run_id)
        sync_folder(parts.runs.root)
        sync_folder(staged.root.parent)
    except OSError as error:
        raise store_error(staged.root, error) from error
    finally:
        shutil.rmtree(staged.root, ignore_errors=True)
    return parts.runs.paths(run_id)


def default_name(prepared: Prepared) -> str:
    """For example "harbor-style on starter"."""
    data = Path(prepared.dataset.name)
    name = data.stem if data.suffix.lower() in _DATA_SUFFIXES else data.name
    return f"{name} on {Path(prepared.model['id']).name}"
