"""Whether a folder on this machine holds a base model that can be used, and what it says of itself.

Reads configs and the headers of the weights; loads nothing. Refuses what would run code: remote
code in any config, weights that are not safetensors. Knows nothing of the hub or of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio.core.errors import ModelError
from studio.core.safetensors_header import TensorInfo, read_header

_MAX_CONFIG_BYTES = 4 << 20
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_REMOTE_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")


def check_model_folder(folder: Path) -> Path:
    """The folder as an absolute path, if it holds a usable base model.

    Raises:
        ModelError: what is missing, damaged or refused, and what to do.
    """
    if not folder.is_dir():
        raise ModelError(
            "The model folder does not exist", value=str(folder),
            remedy="Check the path, or choose starter",
        )  # fmt: skip
    for name in _CONFIGS:
        if name == "config.json" or (folder / name).exists():
            check_config(read_config(folder / name), name)
    config = read_config(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            "config.json names no model_type", value=str(folder),
            remedy="Choose a folder in transformers format",
        )  # fmt: skip
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            "The model's weights are quantized already", value=method,
            remedy="Choose the unquantized model; load_in_4bit makes 4 bits of it while loading",
        )  # fmt: skip
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError("This is an adapter, not a base model", value=str(folder))
    for file in weight_files(folder):
        read_header(file)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "The model folder has no tokenizer.json", value=str(folder),
            remedy="Save the model's fast tokenizer into it",
        )  # fmt: skip
    return folder.absolute()


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where a config, at any depth, asks for code that comes with the model."""
    for key, value in _walk(config):
        if key in _REMOTE_CODE_KEYS and value:
            raise ModelError(
                f"The model wants to run code of its own ({key} in {name}), which is never done",
                remedy="Choose a model that transformers supports itself",
            )


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > 50:
        return  # nobody nests so deep; json itself refuses more than some hundreds
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            yield from _walk(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, depth + 1)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of the model folder. Raises ModelError."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 4 MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value
    except FileNotFoundError as error:
        raise ModelError(
            f"The model folder has no {path.name}", value=str(path.parent),
            remedy="Choose a folder that holds config.json, tokenizer.json and safetensors weights",
        ) from error  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The model's {path.name} cannot be read ({str(error)[:120]})", value=str(path.parent),
            remedy="Fetch the model again",
        ) from error  # fmt: skip


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make the model. Raises ModelError where one is missing."""
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    if (folder / _INDEX).is_file():
        index = read_config(folder / _INDEX).get("weight_map")
        names = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
        if not names or any("/" in name or "\\" in name or name.startswith(".") for name in names):
            raise ModelError(f"{_INDEX} names no usable files", value=str(folder))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                "A part of the weights is missing", value=f"{missing[0]} ({len(missing)} in all)",
                remedy="Fetch the model again",
            )  # fmt: skip
        return [folder / name for name in names]
    other = next((file.name for kind in _OTHER_WEIGHTS for file in folder.glob(kind)), None)
    raise ModelError(
        "The model folder has no safetensors weights", value=other or str(folder),
        allowed="model.safetensors, or its parts with model.safetensors.index.json",
        remedy="Other formats can run code: convert them with save_pretrained" if other else None,
    )  # fmt: skip


def count_params(folder: Path) -> int:
    """Parameters in the weights' headers; a tied output head that was saved too counts once."""
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        tensors.update(read_header(file))
    total = sum(tensor.numel for tensor in tensors.values())
    head = tensors.get("lm_head.weight")
    if head is not None and read_config(folder / "config.json").get("tie_word_embeddings"):
        total -= head.numel
    return total


def context_tokens(folder: Path) -> int | None:
    """How many tokens the model reads, where config.json says so."""
    config = read_config(folder / "config.json")
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(values.get(key), int):
                return int(values[key])
    return None
