"""Looking at an adapter folder before anything of it is loaded.

An adapter may come from a zip that somebody sent. Only plain LoRA in safetensors is let through:
each key of adapter_config.json has its list of harmless values, each tensor a name, a type and a
shape that belong to a LoRA matrix of the config's rank and of the base, and each number is finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.backend.checkpoints import MANIFEST
from studio.backend.keeping import NOTE
from studio.backend.loading import model_fingerprint
from studio.core.errors import ModelError
from studio.core.runs import RunPaths, read_json
from studio.core.safetensors_header import TensorInfo, read_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_TARGETS, _MAX_NAME_CHARS = 10_000, 300
_MAX_RANK, _MAX_ALPHA = 1024, 1e6
_FLOATS = ("F32", "F16", "BF16")
_DORA = "lora_magnitude_vector"
_NAME = re.compile(
    r"base_model\.model\.(?P<module>[\w.-]{1,400})\."
    r"(?:(?P<part>lora_[AB]|lora_magnitude_vector|lora_embedding_[AB])(?:\.weight)?)"
)
_BOOLS = (True, False, None)
# What each key of a plain LoRA adapter may hold. peft knows more keys; each of those makes it
# import a module by name, change the base model or read another file, and has to be empty.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "task_type": ("CAUSAL_LM", None), "bias": ("none", None),
    "inference_mode": _BOOLS, "fan_in_fan_out": _BOOLS, "use_rslora": _BOOLS, "use_dora": _BOOLS,
    "init_lora_weights": (True, False, None, "gaussian"), "megatron_core": ("megatron.core", None),
}  # fmt: skip
_CHECKED_BELOW = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path",
    "layers_to_transform",
)  # fmt: skip
_WITHOUT_EFFECT = ("peft_version", "revision", "qalora_group_size")
# Keys of other peft versions. All have to be empty.
_OTHER_VERSIONS = frozenset({"corda_config", "eva_config", "loftq_config", "auto_mapping"})


def check_adapter(folder: Path, base: Path | None = None) -> dict[str, Any]:
    """The adapter's config if the folder holds a plain LoRA adapter in safetensors.

    Args:
        base: the base model's folder; with it the adapter's shapes are held against the base's.

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
    _check_config(config)
    tensors = read_header(folder / WEIGHTS)
    check_tensors(tensors, config, _base_tensors(base))
    _check_finite(folder / WEIGHTS)
    return config


def _check_config(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _ALLOWED:
            # A list or an object is in no tuple of words, and 1 is not True.
            if not any(value is word or (value == word and type(value) is type(word))
                       for word in _ALLOWED[key]):  # fmt: skip
                raise _refusal(key, value, " or ".join(str(word) for word in _ALLOWED[key]))
        elif key in _CHECKED_BELOW or key in _WITHOUT_EFFECT:
            continue
        elif key not in _peft_keys():
            raise _refusal(key[:80], value, "the keys of a LoRA adapter")
        elif value:
            raise _refusal(key, value, "nothing here")
    if "peft_type" not in config:
        raise _refusal("peft_type", None, "LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise _refusal("r", rank, f"1 to {_MAX_RANK}")
    if not _is_number(alpha) or not 0 < alpha <= _MAX_ALPHA:
        raise _refusal("lora_alpha", alpha, f"a number up to {_MAX_ALPHA:g}")
    dropout = config.get("lora_dropout", 0.0)
    if not _is_number(dropout) or not 0 <= dropout <= 1:
        raise _refusal("lora_dropout", dropout, "0 to 1")
    _check_targets(config)
    base = config.get("base_model_name_or_path")
    if not (base is None or isinstance(base, str)) or "://" in (base or ""):
        raise _refusal("base_model_name_or_path", base, "the name of a model")


def _check_targets(config: Mapping[str, Any]) -> None:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not 0 < len(targets) <= _MAX_TARGETS:
        # A string is a regular expression to peft; one from elsewhere may never come to an end.
        raise _refusal("target_modules", targets, "a list of module names")
    if not all(isinstance(name, str) and 0 < len(name) <= _MAX_NAME_CHARS for name in targets):
        raise _refusal("target_modules", targets, "a list of module names")
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if len(numbers) > _MAX_TARGETS or not all(type(n) is int and n >= 0 for n in numbers):
        raise _refusal("layers_to_transform", layers, "numbers of layers")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _peft_keys() -> frozenset[str]:
    from peft import LoraConfig  # late: this module is also used where no model is loaded

    return frozenset(LoraConfig.__dataclass_fields__) | _OTHER_VERSIONS


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
        if not path.is_file():
            raise ValueError("it is missing")
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        config = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_no_twins,
            parse_constant=_no_constant,
        )  # fmt: skip
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The adapter's {CONFIG} is missing or damaged", value=str(error)[:200],
            remedy="Choose another run, or train this one again",
        ) from error  # fmt: skip


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def check_tensors(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], base: Mapping[str, TensorInfo]
) -> None:
    """Raise ModelError unless these are the matrices of a LoRA adapter of the config's rank.

    Args:
        base: the base's tensors; a module that is not in it is left to peft to find.
    """
    if not tensors:
        raise _misfit("nothing is in it")
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise _misfit(f"{name[:120]!r} is no LoRA matrix")
        if tensor.dtype not in _FLOATS:
            raise _misfit(f"{name[:120]!r} has numbers of type {tensor.dtype}")
        modules.setdefault(found["module"], {})[found["part"]] = tensor
    for module, parts in modules.items():
        _check_module(module, parts, config, base)


def _check_module(
    module: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any],
    base: Mapping[str, TensorInfo],
) -> None:  # fmt: skip
    kind = "lora_embedding_" if "lora_embedding_A" in parts else "lora_"
    wanted = {f"{kind}A", f"{kind}B"} | ({_DORA} if config.get("use_dora") else set())
    if set(parts) != wanted:
        odd = sorted(wanted ^ set(parts))[0]
        raise _misfit(f"{module[:120]!r} has {'no' if odd in wanted else 'a superfluous'} {odd}")
    targets = config["target_modules"]
    if not any(module == name or module.endswith(f".{name}") for name in targets):
        raise _misfit(f"{module[:120]!r} is none of the target_modules")
    down, up = parts[f"{kind}A"].shape, parts[f"{kind}B"].shape
    if len(down) != 2 or len(up) != 2 or down[0] != config["r"] or up[1] != config["r"]:
        raise _misfit(f"{module[:120]!r} has shapes {down} and {up}, which is not r={config['r']}")
    weight = base.get(f"{module}.weight")
    if weight is None:
        return
    fits = weight.shape in ((up[0], down[1]), (down[1], up[0]))
    if not fits or (_DORA in parts and parts[_DORA].numel != up[0]):
        raise ModelError(
            f"The adapter does not fit the base model: {module[:120]!r} has the shape "
            f"{tuple(weight.shape)} there, and the adapter is made for {(up[0], down[1])}",
            remedy="Restore the base model the run was made with",
        )


def _base_tensors(base: Path | None) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(base.glob("*.safetensors")) if base is not None else ():
        tensors.update(read_header(file))
    return tensors


def _check_finite(path: Path) -> None:
    """Raise ModelError where a weight is NaN or infinite: each answer would be noise."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if not bool(torch.isfinite(file.get_tensor(name)).all()):
                    raise ModelError(
                        "The adapter holds numbers that are not finite", value=name[:120],
                        remedy="Choose an earlier checkpoint or another run",
                    )  # fmt: skip
    except (SafetensorError, OSError) as error:
        raise ModelError(f"Cannot read {WEIGHTS}", value=str(error)[:200]) from error


def _misfit(reason: str) -> ModelError:
    return ModelError(
        f"{WEIGHTS} holds something else than LoRA matrices: {reason}",
        remedy="Choose another run, or train this one again",
    )


def _refusal(key: str, value: Any, allowed: str) -> ModelError:
    return ModelError(
        f"The adapter cannot be loaded: {key} in {CONFIG} is not supported",
        value=str(value)[:120], allowed=allowed,
    )  # fmt: skip
