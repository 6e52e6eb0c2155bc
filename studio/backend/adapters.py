"""Putting a LoRA adapter on a model, and keeping its numbers in fp32.

Owns the peft configuration. Which layers `target_modules` means is `backend.shapes`' rule, the one
the page shows too. Knows nothing of data, training or files.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from studio.backend.shapes import linear_layers, match_layers
from studio.core.config import LoraSection
from studio.core.errors import TargetModulesError


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
