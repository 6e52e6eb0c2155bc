"""Beginning a new run with the weights of an earlier one, where that one cannot be resumed.

Owns finding the weights ("RUN" or "RUN@STEP"), checking them against their manifest, and copying
them into the new run's folder, so that it stays whole when the earlier run is deleted. Where they
come from goes into run.json as `warm_start`; it is no setting: the same config without it is a
different beginning, not a different training. The trainer checks every shape before it uses them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.core.config import RunConfig
from studio.core.errors import ConfigError, ModelError, StoreError
from studio.core.runs import LIVE_STATES, RunPaths, read_json
from studio.core.safetensors_header import read_header
from studio.hardware.platforms import make_folder, store_error, sync_folder, write_bytes
from studio.services.store import RunStore

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MANIFEST, _NOTE = "MANIFEST.json", "lora_studio.json"
_STEP = re.compile(r"step-(\d{1,12})")
_REMEDY = "Name another run or step, or start without a warm start"


@dataclass(frozen=True)
class WarmStart:
    """Weights to begin with. `record` is what run.json says of them."""

    folder: Path
    record: dict[str, Any]


def find(runs: RunStore, wanted: str) -> WarmStart:
    """The weights that "RUN" (its kept adapter, else its newest whole checkpoint) or "RUN@STEP"
    names.

    Raises:
        ConfigError: it is not of that form.
        StoreError: there is no such run, step, or nothing whole.
    """
    run_id, at, step = wanted.strip().partition("@")
    if at and not (step.isdecimal() and len(step) <= 12):
        raise ConfigError(
            "The warm start has no whole number behind @", value=wanted, allowed="RUN or RUN@STEP"
        )
    run = runs.get(run_id)
    if run.state in LIVE_STATES:
        raise StoreError(
            f"Run {run_id} is {run.state}: its weights may change", remedy="Wait or stop it first"
        )
    paths = runs.paths(run_id)
    number = int(step) if at else None
    problems: list[str] = []
    for folder in _candidates(paths, number):
        found = _examine(folder, run_id, problems)
        if found is not None and number in (None, found.record["step"]):
            return found
    where = f"step {number} of run {run_id}" if at else f"run {run_id}"
    reason = f" ({'; '.join(problems)})" if problems else ""
    raise StoreError(f"There are no whole weights of {where}{reason}", remedy=_REMEDY)


def newest_step(paths: RunPaths) -> int | None:
    """Step of the newest checkpoint whose weights are whole; None without one."""
    found = (_examine(folder, paths.id, []) for folder in _checkpoints(paths))
    return next((int(start.record["step"]) for start in found if start is not None), None)


def _candidates(paths: RunPaths, step: int | None) -> list[Path]:
    """Folders that may hold the weights, the most wanted first."""
    newest_first = _checkpoints(paths, step)
    return [paths.adapter, *newest_first] if step is None else [*newest_first, paths.adapter]


def _checkpoints(paths: RunPaths, step: int | None = None) -> list[Path]:
    """Folders of checkpoints, of one step or all of them, the newest first."""
    named = [
        (int(match.group(1)), folder) for folder in paths.checkpoints.glob("step-*")
        if (match := _STEP.fullmatch(folder.name))
    ]  # fmt: skip
    return [folder for at, folder in sorted(named, reverse=True) if step in (None, at)]


def _examine(folder: Path, run_id: str, problems: list[str]) -> WarmStart | None:
    """The folder's weights if they are whole; else None and the reason among the problems."""
    try:
        data = {name: (folder / name).read_bytes() for name in (WEIGHTS, ADAPTER_CONFIG)}
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{folder.name} cannot be read: {error.strerror}")
        return None
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    manifest, note = read_json(folder / _MANIFEST), read_json(folder / _NOTE) or {}
    told = manifest if manifest is not None else note
    step = told.get("step")
    if not isinstance(step, int):
        problems.append(f"{folder.name} does not say of which step it is")
        return None
    manifest_sha256 = None
    if manifest is not None:
        listed = manifest.get("files")
        entries = listed if isinstance(listed, dict) else {}
        for name, digest in sums.items():
            entry = entries.get(name)
            if not isinstance(entry, dict) or entry.get("sha256") != digest:
                problems.append(f"{name} of {folder.name} is not as its manifest says")
                return None
        manifest_sha256 = hashlib.sha256((folder / _MANIFEST).read_bytes()).hexdigest()
    elif _STEP.fullmatch(folder.name):
        problems.append(f"{folder.name} has no manifest")
        return None
    read_header(folder / WEIGHTS)
    return WarmStart(folder, {
        "run": run_id, "step": step, "manifest_sha256": manifest_sha256,
        "weights_sha256": sums[WEIGHTS], "model_fingerprint": told.get("model_fingerprint"),
    })  # fmt: skip


def check_settings(start: WarmStart, config: RunConfig) -> None:
    """Raise ModelError where the settings alone tell that the weights cannot fit."""
    lora = read_json(start.folder / ADAPTER_CONFIG) or {}
    origin = f"run {start.record['run']} step {start.record['step']}"
    for name, here in (("r", config.lora.r), ("use_dora", config.lora.use_dora)):
        there = lora.get(name)
        if there is not None and there != here:
            raise ModelError(
                f"The weights of {origin} do not fit: lora.{name} is {there} there and {here} here",
                remedy=f"Set lora.{name}={str(there).lower()}, or start without a warm start",
            )


def copy(start: WarmStart, target: Path) -> None:
    """Put the weights into the new run's folder, durably; what was checked is what is written."""
    make_folder(target)
    for name in (WEIGHTS, ADAPTER_CONFIG):
        try:
            data = (start.folder / name).read_bytes()
        except OSError as error:
            raise store_error(start.folder / name, error) from error
        if name == WEIGHTS and hashlib.sha256(data).hexdigest() != start.record["weights_sha256"]:
            raise StoreError("The weights changed while they were copied", remedy="Try again")
        write_bytes(target / name, data)
    sync_folder(target)
