"""What went wrong in a trainer, as one error that a user can act on.

Owns the translation of foreign exceptions at the trainer's edge. Knows nothing of how to end.
"""

from __future__ import annotations

import sys
from typing import Any

from studio.core.config import RunConfig
from studio.core.errors import DeviceError, OutOfMemoryError, StudioError
from studio.hardware.platforms import store_error

_PHASES = {
    "loading": "while loading the model",
    "data": "while preparing the data",
    "first_step": "in the first step",
    "training": "in training",
    "eval": "in an evaluation",
    "sampling": "while answering sample prompts",
    "saving": "while saving",
}


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, the host's, and the plain RuntimeError that torch's CPU allocator raises."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def out_of_memory(error: BaseException, phase: str, config: RunConfig | None) -> OutOfMemoryError:
    """Names the phase and three knobs that this very run still has room to turn."""
    where = _PHASES.get(phase, "")
    on_gpu = config is not None and config.runtime.device.startswith("cuda")
    holder = "The GPU" if on_gpu else "The computer"
    return OutOfMemoryError(
        f"{holder} ran out of memory {where}".rstrip(),
        value=str(error).partition("\n")[0][:160] or None,
        remedy="Try one of these: " + "; ".join(remedies(config)[:3]),
    )


def remedies(config: RunConfig | None) -> list[str]:
    """Knobs that lower the memory of this run, the most effective first."""
    if config is None:
        return ["choose a smaller model", "close other programs", "use another device"]
    train, found = config.train, []
    if train.per_device_train_batch_size > 1:
        half = max(1, train.per_device_train_batch_size // 2)
        more = train.gradient_accumulation_steps * train.per_device_train_batch_size // half
        found.append(
            f"train.per_device_train_batch_size={half} with "
            f"train.gradient_accumulation_steps={more} (same result)"
        )
    if train.activation_checkpointing is not True:
        found.append("train.activation_checkpointing=true")
    if not config.quantization.load_in_4bit:
        found.append("quantization.load_in_4bit=true")
    if train.max_length > 256:
        found.append(f"train.max_length={train.max_length // 2}")
    if config.lora.r > 8:
        found.append(f"lora.r={config.lora.r // 2}")
    return [*found, "choose a smaller model", "close other programs", "use another device"]


def translate(error: BaseException, phase: str, config: RunConfig | None) -> StudioError:
    """Any exception as a StudioError; ours stay as they are."""
    if isinstance(error, StudioError):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error, phase, config)
    if isinstance(error, OSError) and error.filename:
        from pathlib import Path

        return store_error(Path(str(error.filename)), error)
    first_line = str(error).strip().partition("\n")[0][:300]
    if "CUDA error" in first_line or "device-side assert" in first_line:
        return DeviceError(
            f"The GPU reported an error {_PHASES.get(phase, '')}".rstrip(), value=first_line,
            remedy="Resume the run; restart the computer if it comes again",
        )  # fmt: skip
    return StudioError(
        f"The training failed unexpectedly {_PHASES.get(phase, '')}".rstrip(),
        value=f"{type(error).__name__}: {first_line}",
        remedy="The log of the run holds the details",
    )


def error_record(error: StudioError, phase: str) -> dict[str, Any]:
    """What exit.json says of an error."""
    return {**error.to_dict(), "phase": phase}
