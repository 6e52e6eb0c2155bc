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
_MAX_TEMPLATE_BYTES = 64 << 10  # as in backend.templates
_MAX_OTHER_BYTES = 256 << 20  # tokenizer.json and the like, which are read whole
_LOADED = (".json", ".jinja", ".txt", ".model")
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_ADAPTER = "adapter_config.json"
# The largest sizes a config may ask for, far above any model; what is beyond is an accident or
# would fill the memory before a single weight is compared.
_SIZES = {
    "num_hidden_layers": (1, 1000), "n_layer": (1, 1000), "num_layers": (1, 1000),
    "hidden_size": (1, 1 << 20), "n_embd": (1, 1 << 20), "intermediate_size": (0, 1 << 24),
    "vocab_size": (1, 1 << 24), "num_attention_heads": (0, 1 << 16), "n_head": (0, 1 << 16),
    "num_key_value_heads": (0, 1 << 16), "head_dim": (1, 1 << 16),
    "max_position_embeddings": (1, 1 << 30), "n_positions": (1, 1 << 30),
    "num_experts": (0, 1 << 14), "num_local_experts": (0, 1 << 14),
    "n_routed_experts": (0, 1 << 14),
}  # fmt: skip
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens")
_KERNEL_KEYS = ("attn_implementation", "experts_implementation", "use_kernels")
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
    _check_files(folder)
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
    check_sizes(config)
    tensors = sum(len(read_header(file)) for file in weight_files(folder))
    _check_layers(config, tensors)
    generation = folder / "generation_config.json"
    check_generation(read_config(generation) if generation.exists() else {})
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "The model folder has no tokenizer.json", value=str(folder),
            remedy="Save the model's fast tokenizer into it",
        )  # fmt: skip
    return folder.absolute()


def _check_files(folder: Path) -> None:
    """Refuse what would be waited for, read for ever, or taken for the model instead of it."""
    if (folder / _ADAPTER).exists():
        # transformers would load the base that it names, and the adapter on top of it.
        raise ModelError(
            "The folder holds an adapter, not a base model alone", value=str(folder),
            remedy=f"Choose the base model, or remove {_ADAPTER} from the folder",
        )  # fmt: skip
    for file in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        if file.is_dir() or file.suffix not in (*_LOADED, ".safetensors"):
            continue
        if not file.is_file():
            raise ModelError(
                "A part of the model is no ordinary file", value=file.name[:100],
                remedy="Fetch the model again",
            )  # fmt: skip
        limit = _MAX_TEMPLATE_BYTES if file.suffix == ".jinja" else _MAX_OTHER_BYTES
        if file.suffix in _LOADED and file.stat().st_size > limit:
            raise ModelError(
                f"The model's {file.name[:100]} is too large",
                value=f"{file.stat().st_size / 1e6:.1f} MB", allowed=f"{limit / 1e6:.1f} MB",
                remedy="Fetch the model again, or choose another one",
            )  # fmt: skip


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where a config, at any depth, asks for code that comes with the model."""
    for key, value in _walk(config):
        # A name with a slash is a kernel of the hub: compiled code that transformers would fetch.
        is_kernel = key.endswith(_KERNEL_KEYS) and "/" in str(value)
        if is_kernel or (key in _REMOTE_CODE_KEYS and value):
            raise ModelError(
                f"The model wants to run code of its own ({key} in {name}), which is never done",
                remedy="Choose a model that transformers supports itself",
            )


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise ModelError where a size of the architecture is no number or beyond all reason."""
    for key, value in _walk(config):
        if key not in _SIZES or value is None:
            continue
        least, most = _SIZES[key]
        values = value if isinstance(value, list) else [value]  # some have a size for each layer
        if len(values) > 1000 or not all(type(n) is int and least <= n <= most for n in values):
            raise ModelError(
                f"config.json gives an impossible {key}", value=str(value)[:100],
                allowed=f"{least} to {most}", remedy="Fetch the model again",
            )  # fmt: skip


def _check_layers(config: Mapping[str, Any], tensors: int) -> None:
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > tensors:
            raise ModelError(
                f"config.json speaks of {layers} layers, and the weights hold {tensors} tensors",
                remedy="Fetch the model again",
            )


def check_generation(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a generation_config.json that would fail in the middle of an answer."""
    for key in _TOKEN_KEYS:
        value = config.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and -1 <= token < 1 << 31 for token in values):
            raise ModelError(
                f"generation_config.json gives an impossible {key}", value=str(value)[:100],
                allowed="numbers of tokens", remedy="Correct the file",
            )  # fmt: skip
    for key, least in (("repetition_penalty", 1e-3), ("no_repeat_ngram_size", 0)):
        value = config.get(key)
        if value is not None and not (type(value) in (int, float) and least <= value <= 1e4):
            raise ModelError(
                f"generation_config.json gives an impossible {key}", value=str(value)[:100],
                allowed=f"{least:g} to 10000", remedy="Correct the file",
            )  # fmt: skip


def _walk(config: Any) -> Iterator[tuple[str, Any]]:
    """Each key with its value, at any depth."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            yield from ((str(key), inner) for key, inner in value.items())
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of the model folder. Raises ModelError."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no ordinary file")
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
