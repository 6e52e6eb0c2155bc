"""Turning a configuration with `auto` values into the one that a run follows, with reasons.

Pure: what the machine can do, how large the model is and how many rows there are is handed in.
The result has no `auto` left, and a sentence for every value that was chosen here. It knows
nothing of files, of torch, or of who asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.core.config import RunConfig
from studio.core.errors import ConfigError, DatasetError, DeviceError

# Up to this size float32 is as fast as bfloat16 on a CPU with bfloat16 units and twice as fast in
# generation (6 M parameters, 1 thread: 198 against 157 ms a step of 480 tokens, 6.4 against
# 11 ms a sampled token); above it bfloat16 wins and halves the memory.
SMALL_MODEL_PARAMS = 50_000_000
MAX_EVALUATIONS = 12
_PACKED_TOKENS_A_ROW = 200  # a guess for the estimate until the rows are tokenized


@dataclass(frozen=True)
class Resolved:
    """A plan: the configuration to follow and why.

    `total_steps` and `steps_per_epoch` are exact, unless `estimated` (packing: how many rows fit
    into one sequence is known only after tokenizing).
    """

    config: RunConfig
    reasons: dict[str, str]
    total_steps: int
    steps_per_epoch: int
    estimated: bool = False
    warnings: list[str] = field(default_factory=list)


def resolve(
    config: RunConfig,
    machine: Mapping[str, Any],
    n_train_rows: int,
    n_heldout_rows: int,
    model: Mapping[str, Any],
) -> Resolved:
    """Choose every `auto` value.

    Args:
        machine: `cuda`, `mps`, `bnb`, `bf16` (of the device that auto would pick), `cores`,
            `reasons` (capability: sentence), `gpus` (list with used_bytes, total_bytes), and
            optionally `cpu_bf16`, `threads` (count) and `threads_reason`.
        model: `params` and, where known, `context_length` and `mean_tokens` (of the data's rows).

    Raises:
        DeviceError: the machine cannot do what was asked.
        DatasetError: there is no row to train on.
    """
    if n_train_rows < 1:
        raise DatasetError(
            "There is no row to train on", value=n_train_rows, allowed="1 row or more",
            remedy="Choose a file with usable rows or lower data.val_frac",
        )  # fmt: skip
    chosen: dict[str, tuple[Any, str]] = {}
    device = _device(config, machine, chosen)
    _precision(config, machine, model, device, chosen)
    _memory(config, device, chosen)
    _threads(config, machine, model, chosen)
    _max_length(config, model, chosen)
    values = config.model_dump()
    _put(values, chosen)
    per_epoch, total, estimated = count_steps(RunConfig.model_validate(values), n_train_rows, model)
    _schedule(config, total, n_heldout_rows, chosen)
    _put(values, chosen)
    return Resolved(
        config=RunConfig.model_validate(values),
        reasons={path: reason for path, (_, reason) in chosen.items()},
        total_steps=total,
        steps_per_epoch=per_epoch,
        estimated=estimated,
        warnings=_warnings(config, total, n_train_rows, n_heldout_rows),
    )


def _put(values: dict[str, Any], chosen: Mapping[str, tuple[Any, str]]) -> None:
    for path, (value, _) in chosen.items():
        section, _, key = path.partition(".")
        values[section][key] = value


def count_steps(config: RunConfig, n_rows: int, model: Mapping[str, Any]) -> tuple[int, int, bool]:
    """(steps per epoch, steps in all, whether estimated), as transformers' Trainer counts them."""
    train = config.train
    estimated = train.packing
    rows = n_rows
    if estimated:
        mean = min(float(model.get("mean_tokens") or _PACKED_TOKENS_A_ROW), train.max_length)
        rows = max(1, math.ceil(n_rows * mean / train.max_length))
    batches = math.ceil(rows / train.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    if train.max_steps > 0:
        return per_epoch, train.max_steps, estimated
    return per_epoch, max(1, math.ceil(train.num_train_epochs * per_epoch)), estimated


def evaluation_interval(total_steps: int, evaluations: int = MAX_EVALUATIONS) -> int:
    """Steps between evaluations so that step 0, the multiples and the last step are at most so
    many."""
    return max(1, math.ceil(total_steps / max(1, evaluations - 2)))


def _device(
    config: RunConfig, machine: Mapping[str, Any], chosen: dict[str, tuple[Any, str]]
) -> str:
    """cpu, mps or cuda:N."""
    asked = config.runtime.device
    reasons = machine.get("reasons") or {}
    if asked == "auto":
        device, why = _best_device(machine, reasons)
        chosen["runtime.device"] = (device, why)
    else:
        kind = asked.partition(":")[0]
        if kind != "cpu" and not machine.get(kind):
            raise DeviceError(
                f"runtime.device {asked} is not available here", value=asked,
                allowed=", ".join(["auto", "cpu", *(k for k in ("cuda", "mps") if machine.get(k))]),
                remedy=reasons.get(kind) or "Choose auto",
            )  # fmt: skip
        device = "cuda:0" if asked == "cuda" else asked
        if device != asked:
            chosen["runtime.device"] = (device, "the first GPU")
    if config.train.optim.startswith("paged_") and not device.startswith("cuda"):
        raise ConfigError(
            "Paged optimizers need CUDA", value=config.train.optim, allowed="adamw_torch_fused",
            issues={"train.optim": "paged optimizers need CUDA"},
        )  # fmt: skip
    if config.quantization.load_in_4bit and (device == "mps" or machine.get("bnb") is False):
        raise DeviceError(
            "4-bit training is not available here", value=device, allowed="cpu or cuda",
            remedy=reasons.get("bnb") or "Set quantization.load_in_4bit to false or choose cpu",
        )  # fmt: skip
    return device


def _best_device(machine: Mapping[str, Any], reasons: Mapping[str, str]) -> tuple[str, str]:
    if machine.get("cuda"):
        gpus = machine.get("gpus") or []
        free = [(g.get("total_bytes") or 0) - (g.get("used_bytes") or 0) for g in gpus] or [0]
        index = free.index(max(free))
        name = gpus[index].get("name", "GPU") if gpus else "GPU"
        more = " with the most free memory" if len(gpus) > 1 else ""
        return f"cuda:{index}", f"{name}: the GPU{more}"
    if machine.get("mps"):
        return "mps", "the GPU of this Apple computer"
    return "cpu", reasons.get("cuda") or "no GPU was found"


def _precision(
    config: RunConfig,
    machine: Mapping[str, Any],
    model: Mapping[str, Any],
    device: str,
    chosen: dict[str, tuple[Any, str]],
) -> None:
    dtype = config.model.dtype
    has_bf16 = bool(machine.get("cpu_bf16", machine.get("bf16")) if device == "cpu"
                    else machine.get("bf16"))  # fmt: skip
    if dtype == "auto":
        dtype, why = _dtype(device, has_bf16, int(model.get("params") or 0))
        chosen["model.dtype"] = (dtype, why)
    elif dtype == "bfloat16" and device.startswith("cuda") and not has_bf16:
        raise DeviceError(
            "This GPU has no bfloat16", value=dtype, allowed="auto, float16, float32",
            remedy=(machine.get("reasons") or {}).get("bf16") or "Set model.dtype to auto",
        )  # fmt: skip
    elif dtype == "float16" and device == "cpu":
        raise DeviceError(
            "float16 training needs a GPU", value=dtype, allowed="auto, bfloat16, float32",
            remedy="Set model.dtype to auto",
        )  # fmt: skip
    if config.quantization.bnb_4bit_compute_dtype == "auto":
        chosen["quantization.bnb_4bit_compute_dtype"] = (dtype, f"as the weights: {dtype}")


def _dtype(device: str, has_bf16: bool, params: int) -> tuple[str, str]:
    if device.startswith("cuda"):
        if has_bf16:
            return "bfloat16", "this GPU computes in bfloat16: half the memory, no loss scaling"
        return "float16", "this GPU has no bfloat16"
    if device == "mps":
        return "float32", "the format that every Apple GPU computes exactly"
    if params <= SMALL_MODEL_PARAMS:
        return "float32", "exact, and on a CPU as fast as bfloat16 for a model of this size"
    if has_bf16:
        return "bfloat16", "this CPU has bfloat16 units: half the memory and faster"
    return "float32", "this CPU has no bfloat16 units"


def _memory(config: RunConfig, device: str, chosen: dict[str, tuple[Any, str]]) -> None:
    gpu = device.startswith("cuda")
    if config.train.activation_checkpointing == "auto":
        why = (
            "saves most of the activations' memory on the GPU" if gpu
            else "a CPU has room for the activations, and recomputing them takes a third longer"
        )  # fmt: skip
        chosen["train.activation_checkpointing"] = (gpu, why)
    if config.train.optim == "auto":
        # Not an 8-bit one, also for QLoRA: an adapter's state is small, exactness is worth more.
        fused = device != "mps"
        chosen["train.optim"] = (
            ("adamw_torch_fused", "the fastest exact AdamW") if fused
            else ("adamw_torch", "the fused AdamW needs CUDA or a CPU")
        )  # fmt: skip
    if config.model.attn_implementation == "auto":
        chosen["model.attn_implementation"] = ("sdpa", "torch's fused attention, on every device")


def _threads(
    config: RunConfig,
    machine: Mapping[str, Any],
    model: Mapping[str, Any],
    chosen: dict[str, tuple[Any, str]],
) -> None:
    if config.runtime.num_threads != "auto":
        return
    if machine.get("threads"):
        why = str(machine.get("threads_reason") or "chosen by model size and load")
        chosen["runtime.num_threads"] = (int(machine["threads"]), why)
        return
    small = int(model.get("params") or 0) <= SMALL_MODEL_PARAMS
    count = 1 if small else max(1, int(machine.get("cores") or 1))
    why = "a small model gains nothing from more" if small else "one a core"
    chosen["runtime.num_threads"] = (count, why)


def _max_length(
    config: RunConfig, model: Mapping[str, Any], chosen: dict[str, tuple[Any, str]]
) -> None:
    context = model.get("context_length")
    if context and config.train.max_length > int(context):
        chosen["train.max_length"] = (
            int(context),
            f"the model reads at most {context} tokens ({config.train.max_length} was asked)",
        )


def _schedule(
    config: RunConfig, total: int, n_heldout_rows: int, chosen: dict[str, tuple[Any, str]]
) -> None:
    every = config.train.eval_steps
    if every == "auto":
        every = evaluation_interval(total)
        why = f"at most {MAX_EVALUATIONS} evaluations in {total} steps, fewer if they take long"
        if not n_heldout_rows:
            every, why = total, "no row is held out: nothing to evaluate on"
        chosen["train.eval_steps"] = (every, why)
    if config.train.save_steps == "auto":
        save = every if n_heldout_rows else evaluation_interval(total)
        chosen["train.save_steps"] = (save, "with the evaluations, and every 10 minutes")


def _warnings(config: RunConfig, total: int, n_train_rows: int, n_heldout_rows: int) -> list[str]:
    found = []
    if not n_heldout_rows:
        found.append(
            "No row is held out, so overfitting cannot be seen; the last adapter is kept. "
            "Set data.val_frac above 0 and use at least 5 rows"
        )
    rows_a_step = (
        config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    )
    epochs = total * rows_a_step / n_train_rows
    if config.train.max_steps > 0 and not config.train.packing and epochs > 20:
        found.append(
            f"{total} steps are {epochs:.0f} passes over {n_train_rows} rows: the model will learn "
            "them by heart. Lower train.max_steps or add rows"
        )
    warmup = config.train.warmup_steps
    if warmup >= 1 and warmup >= total:
        found.append(
            f"Warm-up ({warmup:.0f} steps) is as long as the run ({total} steps): the learning "
            "rate never reaches its value. Lower train.warmup_steps"
        )
    return found
