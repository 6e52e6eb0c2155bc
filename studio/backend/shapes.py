"""A model's shape from its config.json alone: module names, parameter counts, adapter sizes.

The model is built on the meta device, so nothing is allocated and no weights are read. Owns the
rule which linear layers `target_modules` means, as peft 0.21 applies it, and the size of the
adapter file. Knows nothing of weights or training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from studio.core.config import ATTENTION_SUFFIXES, LoraSection
from studio.core.errors import ModelError, TargetModulesError

ADAPTER_ITEM_BYTES = 4  # adapters are trained and saved in fp32, over a 4-bit base too
# What transformers raises for a config it cannot read or build: it promises no class of its own.
BUILD_ERRORS = (
    StrictDataclassError, OSError, ValueError, KeyError, TypeError, AttributeError, ImportError,
    RuntimeError, ArithmeticError,
)  # fmt: skip
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class LinearLayer:
    """One matrix an adapter can be put on: y = W x, W is out x in."""

    name: str
    in_features: int
    out_features: int
    weights: int

    @property
    def suffix(self) -> str:
        """The name's last part, which is what `target_modules` usually lists."""
        return self.name.rpartition(".")[2]

    def lora_params(self, r: int, *, dora: bool) -> int:
        """A is r x in, B is out x r; DoRA adds one magnitude per output (arXiv:2402.09353)."""
        return r * (self.in_features + self.out_features) + (self.out_features if dora else 0)


@dataclass(frozen=True)
class ModelShape:
    """What config.json says of a causal language model."""

    architecture: str
    total_params: int
    context_tokens: int | None
    vocab_size: int | None
    linear: tuple[LinearLayer, ...]


def read_shape(model_path: Path) -> ModelShape:
    """Build the model of `model_path/config.json` on the meta device and list its linear layers.

    Raises:
        ModelError: no config.json, or an architecture that transformers does not know.
    """
    config = read_config(model_path)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except BUILD_ERRORS as error:
        raise ModelError(
            f"transformers cannot build a causal language model of type {config.model_type!r}",
            value=str(model_path), remedy="Choose a text-generation model",
        ) from error  # fmt: skip
    text_config = config.get_text_config(decoder=True)
    lengths = (getattr(text_config, key, None) for key in CONTEXT_KEYS)
    context = next((value for value in lengths if isinstance(value, int)), None)
    return ModelShape(
        architecture=type(model).__name__,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        context_tokens=context,
        vocab_size=getattr(text_config, "vocab_size", None),
        linear=linear_layers(model),
    )


def read_config(model_path: Path) -> Any:
    """transformers' configuration of a model folder. Raises ModelError."""
    if not (model_path / "config.json").is_file():
        raise ModelError(
            "There is no config.json in the model folder", value=str(model_path),
            remedy="Choose a folder that holds config.json and safetensors weights",
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(
            str(model_path), trust_remote_code=False, local_files_only=True
        )
    except BUILD_ERRORS as error:
        raise ModelError(
            "The architecture in config.json is unknown to transformers, or needs code of its own",
            value=_model_type(model_path), remedy="Choose another model",
        ) from error  # fmt: skip


def _model_type(model_path: Path) -> str:
    try:
        record = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
        return str(record.get("model_type"))
    except (OSError, ValueError, AttributeError):
        return "an unreadable config.json"


def linear_layers(model: nn.Module) -> tuple[LinearLayer, ...]:
    """All linear layers but the output head, in model order: what "all-linear" means to peft."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            found.append(LinearLayer(name, module.in_features, module.out_features,
                                     module.in_features * module.out_features))  # fmt: skip
        elif isinstance(module, Conv1D):  # GPT-2 keeps its matrices transposed
            rows, columns = module.weight.shape
            found.append(LinearLayer(name, rows, columns, rows * columns))
    return tuple(found)


def match_layers(
    layers: Sequence[LinearLayer], target_modules: str | Sequence[str]
) -> list[LinearLayer]:
    """The layers that `target_modules` picks.

    A listed name matches a layer of that full name or one that ends in ".name" (peft's rule).

    Raises:
        TargetModulesError: nothing matches, or a listed name matches nothing.
    """
    if target_modules == "all-linear":
        return list(layers)
    known = ", ".join(dict.fromkeys(layer.suffix for layer in layers)) or "none"
    if target_modules == "attention":
        names: list[str] = [n for n in ATTENTION_SUFFIXES if any(x.suffix == n for x in layers)]
        if not names:
            raise TargetModulesError(
                "This model has no attention layers of a known name", value="attention",
                allowed=f"all-linear, or names from: {known}",
            )  # fmt: skip
    else:
        names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    missing = [n for n in names if not any(_is_named(layer, n) for layer in layers)]
    if missing:
        raise TargetModulesError(
            "No linear layer of the model has this name", value=", ".join(missing),
            allowed=f"all-linear, attention, or names from: {known}",
            remedy="Choose the target modules from the list",
        )  # fmt: skip
    return [layer for layer in layers if any(_is_named(layer, name) for name in names)]


def _is_named(layer: LinearLayer, name: str) -> bool:
    return layer.name == name or layer.name.endswith(f".{name}")


def describe_modules(shape: ModelShape) -> list[dict[str, Any]]:
    """Linear layers grouped by the last part of their name; one row for each shape it has."""
    groups = Counter((x.suffix, x.in_features, x.out_features) for x in shape.linear)
    return [
        {"name": name, "count": count, "in": rows, "out": columns,
         "params": count * rows * columns}
        for (name, rows, columns), count in groups.items()
    ]  # fmt: skip


def describe_adapter(shape: ModelShape, lora: LoraSection) -> dict[str, Any]:
    """Trainable numbers, share and file size of an adapter. Raises TargetModulesError."""
    matched = match_layers(shape.linear, lora.target_modules)
    trainable = sum(layer.lora_params(lora.r, dora=lora.use_dora) for layer in matched)
    groups = Counter((x.suffix, x.in_features, x.out_features) for x in matched)
    rows = [
        {"name": name, "count": count, "in": wide, "out": high,
         "params": count * LinearLayer(name, wide, high, 0).lora_params(lora.r, dora=lora.use_dora)}
        for (name, wide, high), count in groups.items()
    ]  # fmt: skip
    return {
        "trainable_params": trainable,
        "total_params": shape.total_params + trainable,
        "share": trainable / (shape.total_params + trainable),
        "adapter_bytes": adapter_file_bytes(matched, lora),
        "scaling": lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r),
        "matched": rows,
    }


def adapter_file_bytes(layers: Sequence[LinearLayer], lora: LoraSection) -> int:
    """Size of adapter_model.safetensors: 8 bytes, a JSON header padded to 8, and the numbers.

    Exact but for the order of names, which changes the digits of the offsets by a few bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for layer in sorted(layers, key=lambda x: x.name):
        shapes = {"lora_A.weight": [lora.r, layer.in_features],
                  "lora_B.weight": [layer.out_features, lora.r]}  # fmt: skip
        if lora.use_dora:
            shapes["lora_magnitude_vector"] = [layer.out_features]
        for part, dimensions in shapes.items():
            size = ADAPTER_ITEM_BYTES * dimensions[0] * (dimensions[1] if dimensions[1:] else 1)
            header[f"base_model.model.{layer.name}.{part}"] = {
                "dtype": "F32", "shape": dimensions, "data_offsets": [offset, offset + size],
            }  # fmt: skip
            offset += size
    text = json.dumps(header, separators=(",", ":"))
    return 8 + (len(text) + 7) // 8 * 8 + offset
