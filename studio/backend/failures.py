"""What went wrong in a trainer, as one error that a user can act on.

Owns the translation of foreign exceptions at the trainer's edge. Knows nothing of how to end.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

from studio.backend.memory_fault import memory_fault
from studio.core.config import RunConfig
from studio.core.endings import PHASE_WORDS
from studio.core.errors import DeviceError, OutOfMemoryError, StoreError, StudioError
from studio.core.out_of_memory import GPU, HOST, asked_and_free, others_text
from studio.hardware.platforms import is_disk_refusal, store_error

_MAX_LINKS = 10  # of an exception's chain
_GPU_WORDS = (
    "cuda out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed",
    "cuda error: out of memory", "hip out of memory", "mps backend out of memory",
)  # fmt: skip
_HOST_WORDS = ("can't allocate memory", "cannot allocate memory", "unable to allocate",
               "defaultcpuallocator", "std::bad_alloc")  # fmt: skip


def memory_holder(error: BaseException) -> str | None:
    """ "gpu" or "host" where an error, or one that led to it, says that memory ran out there; else
    None. On a GPU run the host can run out too, and needs other remedies."""
    return next(filter(None, map(_holder, _chain(error))), None)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what led to it, newest first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < _MAX_LINKS:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _holder(error: BaseException) -> str | None:
    text = str(error).lower()
    if isinstance(error, MemoryError):  # numpy's and Python's own: host memory always
        return "host"
    if isinstance(error, OSError):
        return "host" if error.errno == errno.ENOMEM else None
    torch = sys.modules.get("torch")
    is_torch = torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ()))
    if not (is_torch or isinstance(error, RuntimeError)):
        return None
    if any(word in text for word in _HOST_WORDS):
        return "host"
    if is_torch or any(word in text for word in _GPU_WORDS):
        return "gpu"
    return "host" if "out of memory" in text else None


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, the host's, and the plain RuntimeError that torch's CPU allocator raises."""
    return memory_holder(error) is not None


def out_of_memory(
    error: BaseException, phase: str, config: RunConfig | None, *, step: int = 0,
    untouched_bytes: int | None = None,
) -> OutOfMemoryError:  # fmt: skip
    """Names whose memory, the phase, what was asked and what was free, and three knobs that this
    very run still has room to turn."""
    holder = memory_holder(error)
    on_gpu = config is not None and config.runtime.device.startswith("cuda")
    fault = memory_fault(
        _chain(error), holder or HOST, phase, step=step, on_gpu=on_gpu,
        untouched_bytes=untouched_bytes,
    )  # fmt: skip
    name = "The GPU" if holder == GPU else "The computer"
    kind = "GPU memory" if holder == GPU else "main memory (RAM)"
    figures = asked_and_free(fault)
    belonged = others_text(fault)
    told = ". ".join(filter(None, [figures, belonged]))
    return OutOfMemoryError(
        f"{name} ran out of {kind} {PHASE_WORDS.get(phase, '')}".rstrip() + (told and f": {told}"),
        value=None if figures else str(error).partition("\n")[0][:160] or None,
        remedy="Try one of these: " + "; ".join(remedies(config, holder)[:3]),
        memory=fault.to_dict(),
    )


def remedies(config: RunConfig | None, holder: str | None = None) -> list[str]:
    """Knobs that lower the memory of this run, the most effective first."""
    on_gpu = config is not None and config.runtime.device.startswith("cuda")
    if config is None or (on_gpu and holder == "host"):
        # The model passes through main memory on its way; the batch does not lie there.
        if on_gpu:
            return ["close other programs", "choose a smaller model", "add swap space"]
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


def translate(
    error: BaseException, phase: str, config: RunConfig | None, folder: Path | None = None,
    *, step: int = 0, untouched_bytes: int | None = None,
) -> StudioError:  # fmt: skip
    """Any exception as a StudioError; ours stay as they are.

    Args:
        folder: the run's; named where a refused write does not say which file it was for.
        step: completed steps.
        untouched_bytes: main memory that the libraries ask for and leave alone, if measured.
    """
    if isinstance(error, StudioError):
        return error
    if is_disk_refusal(error) and not isinstance(error, OSError):
        error = next(link for link in _chain(error) if isinstance(link, OSError))
    if is_out_of_memory(error):
        return out_of_memory(error, phase, config, step=step, untouched_bytes=untouched_bytes)
    if isinstance(error, OSError) and (error.filename or is_disk_refusal(error)):
        refused = store_error(Path(str(error.filename or folder or Path.cwd())), error)
        refused.__cause__ = error
        return refused
    first_line = str(error).strip().partition("\n")[0][:300]
    if "CUDA error" in first_line or "device-side assert" in first_line:
        return DeviceError(
            f"The GPU reported an error {PHASE_WORDS.get(phase, '')}".rstrip(), value=first_line,
            remedy="Resume the run; restart the computer if it comes again",
        )  # fmt: skip
    return StudioError(
        f"The training failed unexpectedly {PHASE_WORDS.get(phase, '')}".rstrip(),
        value=f"{type(error).__name__}: {first_line}",
        remedy="The log of the run holds the details",
    )


def paused_by(error: StudioError, last_saved: int | None) -> StoreError:
    """What is told of a run that paused itself because the disk refused.

    Args:
        last_saved: step of the newest checkpoint; 0: there is none; None: not looked at yet.
    """
    remedy = f"{str(error.remedy or 'Look at the log').rstrip('.')}. Then resume the run"
    if last_saved is not None:
        begin = f"step {last_saved}" if last_saved else "its beginning"
        remedy += f": it goes on from {begin}"
    paused = StoreError(f"The run was paused. {error.what}", value=error.value, remedy=remedy)
    paused.__cause__ = error
    return paused


def error_record(error: StudioError, phase: str) -> dict[str, Any]:
    """What exit.json says of an error."""
    memory = error.memory if isinstance(error, OutOfMemoryError) else None
    return {**error.to_dict(), "phase": phase} | ({"memory": memory} if memory else {})
