"""Putting a LoRA adapter on a model, and keeping its numbers in fp32.

Owns the peft configuration. Which layers `target_modules` means is `backend.shapes`' rule, the one
the page shows too. Knows nothing of data and training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from studio.backend.adapter_check import WEIGHTS, check_adapter
from studio.backend.shapes import linear_layers, match_layers
from studio.core.config import LoraSection
from studio.core.errors import ModelError, TargetModulesError


def lora_config(model: Any, lora: LoraSection) -> LoraConfig:
    """peft's configuration. Raises TargetModulesError where a name matches nothing: peft itself
    is content if one of several does."""
    matched = match_layers(linear_layers(model), lora.target_modules)
    targets: str | list[str]
    if lora.target_modules == "all-linear":
        targets = "all-linear"
    elif lora.target_modules == "attention":
        targets = sorted({layer.suffix for layer in matched})
    else:
        targets = list(lora.target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias="none",
        # GPT-2 keeps its matrices transposed.
        fan_in_fan_out=any(isinstance(model.get_submodule(x.name), Conv1D) for x in matched),
    )


def attach(model: Any, lora: LoraSection, *, seed: int) -> PeftModel:
    """The model with a fresh adapter, initialised from the seed; the base is frozen."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora_config(model, lora))
    if not trainable_parameters(adapted):
        raise TargetModulesError(
            "The adapter has no trainable parameters", value=str(lora.target_modules),
            remedy="Choose other target modules",
        )  # fmt: skip
    adapters_in_fp32(adapted)
    return adapted


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapters_in_fp32(model: torch.nn.Module) -> None:
    """Bring trained parameters to fp32. To be called again once SFTTrainer is built.

    TRL 1.16 casts the adapters of a 4-bit model to bfloat16: updates smaller than 1/256 of a weight
    would be lost, and a resumed run (peft loads fp32) would not be the same run.
    """
    for parameter in trainable_parameters(model):
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def count_parameters(model: Any) -> dict[str, int]:
    """Trainable and all parameters, and the bytes of the adapter's numbers.

    A 4-bit matrix stores two numbers a byte; its quantization state knows the real shape.
    """
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {
        "trainable_params": trainable,
        "total_params": total,
        "adapter_bytes": 4 * trainable,
    }


def begin_with(model: Any, folder: Path, origin: str) -> list[str]:
    """Give the fresh adapter the numbers of another one. Returns notes on what is not the same.

    Args:
        model: of `attach`.
        folder: adapter_config.json and adapter_model.safetensors; nothing of it is trusted.
        origin: for messages, for example "run X step 12".

    Raises:
        ModelError: it is no plain, finite LoRA, or does not fit: what differs.
    """
    theirs = check_adapter(folder)
    tensors, own = load_file(folder / WEIGHTS), get_peft_model_state_dict(model)
    ours = model.peft_config["default"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes != wanted:
        raise ModelError(
            f"The weights of {origin} do not fit this run: {_difference(theirs, ours)}",
            value=_first_difference(shapes, wanted),
            remedy="Use the settings and the base model of that run, or start without a warm start",
        )
    set_peft_model_state_dict(model, {name: tensor.float() for name, tensor in tensors.items()})
    adapters_in_fp32(model)
    notes = []
    for key in ("lora_alpha", "use_rslora"):
        if theirs.get(key) not in (None, getattr(ours, key)):
            notes.append(
                f"lora.{key} is {getattr(ours, key)} here and was {theirs[key]} in {origin}: its "
                "weights do not count for as much as they did there"
            )
    return notes


def _difference(theirs: dict[str, Any], ours: LoraConfig) -> str:
    """Which of r, DoRA, target modules and base is not the same, in a clause."""
    if theirs.get("r") != ours.r:
        return f"r is {theirs.get('r')} there and {ours.r} here"
    if bool(theirs.get("use_dora")) != ours.use_dora:
        return f"use_dora is {bool(theirs.get('use_dora'))} there and {ours.use_dora} here"
    there, here = (
        {str(name).rpartition(".")[2] for name in names}
        for names in (theirs["target_modules"], ours.target_modules or ())
    )
    if there != here:
        return (
            f"target_modules are {', '.join(sorted(there))} there and {', '.join(sorted(here))} "
            "here"
        )
    return "its base model has layers of other shapes"


def _first_difference(
    shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> str:
    name = next(n for n in sorted({*shapes, *wanted}) if shapes.get(n) != wanted.get(n))
    return f"{name}: {shapes.get(name, 'not there')} instead of {wanted.get(name, 'nothing')}"
