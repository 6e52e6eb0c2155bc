"""Loading a base model as the plan says: dtype, attention, 4 bits, device. Local files only.

Owns the traps of loading (bitsandbytes on a CPU, padding tokens, noise on stderr). Never runs code
that comes with a model. Knows nothing of adapters or training.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from studio.backend.given_back import drop_read_pages, large_blocks_apart
from studio.core.config import RunConfig
from studio.core.errors import DeviceError, ModelError

_LOAD_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError,
    AssertionError, RecursionError,
)  # fmt: skip
_EDGE_BYTES = 1 << 16

# Harmless lines that every run would print; each names the reason. Nothing else is silenced.
_HARMLESS_WARNINGS = (
    # TRL 1.16 still passes the old name of activation_checkpointing.
    r"`gradient_checkpointing(_kwargs)?` is deprecated",
    # peft 0.21 asks the model for the old name of is_activation_checkpointing.
    r"`is_gradient_checkpointing` is deprecated",
    # bitsandbytes says so for each paged optimizer that runs without CUDA; the plan refuses those.
    r"Paged optimizers are not supported on CPU",
    # torch.utils.data on a machine without a GPU.
    r"'pin_memory' argument is set as true but no accelerator is found",
)


class _NoKernelNotice(logging.Filter):
    """Drops one notice of bitsandbytes: its optional faster CPU kernel is not installed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "gemm_4bit_forward from kernels-community" not in record.getMessage()


def quiet_libraries() -> None:
    """Silence known harmless lines and progress bars; log.txt is for what matters."""
    for pattern in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes"):
        logging.getLogger(name).addFilter(_NoKernelNotice())
    hf_logging.disable_progress_bar()


def check_device(device: str) -> None:
    """Raise DeviceError where this process cannot use the device that the plan chose."""
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "This process sees no CUDA device", value=device, allowed="cpu",
            remedy="Check the driver with `python -m studio doctor`, or set runtime.device=cpu",
        )  # fmt: skip
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "This process sees no Apple GPU", value=device, remedy="Set runtime.device=cpu"
        )


def compute_dtype(name: str) -> torch.dtype:
    """torch.float32 of "float32"."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def quantization_config(config: RunConfig) -> BitsAndBytesConfig | None:
    """The 4-bit format of the base, None for an unquantized one."""
    quantization = config.quantization
    if not quantization.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype(quantization.bnb_4bit_compute_dtype),
    )


def load_model(path: Path, config: RunConfig) -> Any:
    """The base model on its device, in eval mode. `config` is a resolved one.

    Raises:
        ModelError: no config, no safetensors, damaged weights, an unknown architecture.
    """
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            "The model folder holds no safetensors weights", value=str(path),
            remedy="Choose a folder with config.json, a tokenizer and *.safetensors files",
        )  # fmt: skip
    options: dict[str, Any] = {}
    quantization = quantization_config(config)
    if quantization is not None:
        options["quantization_config"] = quantization
        # 4-bit weights are packed on the device they are loaded to and cannot be moved.
        options["device_map"] = {"": 0 if config.runtime.device.startswith("cuda") else "cpu"}
    try:
        with large_blocks_apart():
            model = _from_pretrained(path, config, options)
    except _LOAD_ERRORS as error:
        raise ModelError(
            "The model cannot be loaded", value=str(path),
            remedy=f"Check its files or choose another one ({str(error)[:300]})",
        ) from error  # fmt: skip
    if quantization is not None:
        keep_4bit_differentiable(model)
        drop_read_pages(path)
    return model.eval()


def _from_pretrained(path: Path, config: RunConfig, options: dict[str, Any]) -> Any:
    """Some architectures (Gemma 2) have eager attention only: they get it, and the caller sees it
    in `model.config._attn_implementation`."""
    attention = config.model.attn_implementation
    for implementation in dict.fromkeys((attention, "eager")):
        try:
            return AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=compute_dtype(config.model.dtype),
                attn_implementation=implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
        except ValueError as error:
            if implementation == "eager" or "scaled_dot_product_attention" not in str(error):
                raise
    raise AssertionError("the loop returns or raises")


def keep_4bit_differentiable(model: torch.nn.Module) -> None:
    """Forbid bitsandbytes the repacking of 4-bit weights on CPUs with AVX512-BF16.

    bitsandbytes 0.50.2 (nn/modules.py, Linear4bit.forward) repacks the weights at the first
    forward in eval mode, for a kernel that has no backward: from then on gradients are about 250
    times too small, in silence. Must run before the first evaluation. To be removed once upstream
    keeps the packed weights apart.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def ensure_pad_token(tokenizer: Any) -> str | None:
    """Give the tokenizer a padding token from its own vocabulary. Returns what was chosen.

    Padding is masked by position, not by token, so end-of-text can serve without its being left
    out of the loss. No token is added: the embedding keeps its size.
    """
    if tokenizer.pad_token_id is not None:
        return None
    for token in (tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens):
        if token:
            tokenizer.pad_token = token
            return str(token)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return str(tokenizer.pad_token)


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise ModelError where the tokenizer can make tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            "The tokenizer has more tokens than the model has embeddings",
            value=f"{len(tokenizer)} tokens, {rows} embeddings",
            remedy="Use the tokenizer that belongs to this model",
        )


def model_fingerprint(path: Path) -> str:
    """Identity of a model folder: its configs, and name, size and both ends of each weights file.

    The whole of a large model would take minutes to hash at each start.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        file = path / name
        digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{size}".encode() + stream.read(_EDGE_BYTES))
            stream.seek(max(0, size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    return digest.hexdigest()
