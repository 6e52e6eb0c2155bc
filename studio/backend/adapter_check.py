"""Looking at an adapter folder before anything of it is loaded.

An adapter may come from a zip that somebody sent. Only plain LoRA in safetensors is let through;
keys of adapter_config.json that make peft import code or rebuild the model are refused. Knows
nothing of the base model's weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.backend.checkpoints import MANIFEST
from studio.backend.keeping import NOTE
from studio.backend.loading import model_fingerprint
from studio.core.errors import ModelError
from studio.core.runs import RunPaths, read_json
from studio.core.safetensors_header import read_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_TARGETS = 10_000
_MAX_RANK = 4096
# Each makes peft import a module by name or change the base model; the studio writes none.
_REFUSED = (
    "auto_mapping", "megatron_config", "layer_replication", "corda_config", "eva_config",
    "loftq_config", "trainable_token_indices", "target_parameters", "modules_to_save",
    "alora_invocation_tokens", "arrow_config", "lora_ga_config",
    # Regular expressions from elsewhere may never come to an end.
    "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern",
)  # fmt: skip


def check_adapter(folder: Path) -> dict[str, Any]:
    """The adapter's config if the folder holds a plain LoRA adapter in safetensors.

    Raises:
        ModelError: what is wrong with it.
    """
    config = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        other = next((p.name for p in folder.glob("adapter_model.*")), None)
        raise ModelError(
            f"The adapter folder has no {WEIGHTS}", value=other or str(folder),
            remedy="Only safetensors are loaded, because other formats can run code",
        )  # fmt: skip
    if str(config.get("peft_type")).upper() != "LORA":
        raise _refusal("peft_type", config.get("peft_type"), "LORA")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise _refusal("task_type", config.get("task_type"), "CAUSAL_LM")
    for key in _REFUSED:
        if config.get(key):
            raise _refusal(key, config[key], "nothing here")
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise _refusal("r", rank, f"1 to {_MAX_RANK}")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not 0 < len(targets) <= _MAX_TARGETS:
        # A string is a regular expression to peft; one from elsewhere may never come to an end.
        raise _refusal("target_modules", targets, "a list of module names")
    if not all(isinstance(name, str) for name in targets):
        raise _refusal("target_modules", targets, "a list of module names")
    _check_names(read_header(folder / WEIGHTS))
    return config


def check_base(
    model_path: Path, wanted_sha256: str | None, wanted_fingerprint: str | None = None
) -> None:
    """Refuse a base that is not the one the adapter was trained on.

    An adapter fits any base of equal shapes without complaint, and answers nonsense on it.

    Args:
        wanted_sha256: of config.json, from run.json.
        wanted_fingerprint: of `loading.model_fingerprint`, where the run recorded it.
    """
    try:
        found = hashlib.sha256((model_path / "config.json").read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(
            "The base model of this run is not where it was", value=str(model_path),
            remedy="Put it back, or download it again",
        ) from error  # fmt: skip
    if wanted_sha256 and found != wanted_sha256:
        raise ModelError(
            "The adapter was trained on another base model than the one found now",
            value=str(model_path), remedy="Restore the base model the run was made with",
        )  # fmt: skip
    if wanted_fingerprint and model_fingerprint(model_path) != wanted_fingerprint:
        raise ModelError(
            "The base model's files were changed since this adapter was trained on them",
            value=str(model_path), remedy="Restore them, or train again",
        )  # fmt: skip


def trained_fingerprint(paths: RunPaths) -> str | None:
    """Fingerprint of the base that the run's trainer noted, or None: an early or foreign run."""
    notes = [paths.adapter / NOTE, *sorted(paths.checkpoints.glob(f"*/{MANIFEST}"))]
    for note in notes:
        found = (read_json(note) or {}).get("model_fingerprint")
        if isinstance(found, str):
            return found
    return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The adapter's {CONFIG} is missing or damaged", value=str(error)[:200],
            remedy="Choose another run, or train this one again",
        ) from error  # fmt: skip


def _check_names(tensors: Mapping[str, Any]) -> None:
    wrong = [name for name in tensors if ".lora_" not in name]
    if wrong or not tensors:
        raise ModelError(
            f"{WEIGHTS} holds something else than LoRA matrices", value=(wrong or ["nothing"])[0]
        )


def _refusal(key: str, value: Any, allowed: str) -> ModelError:
    return ModelError(
        f"The adapter cannot be loaded: {key} in {CONFIG} is not supported",
        value=str(value)[:120], allowed=allowed,
    )  # fmt: skip
