"""Countable terms against real tensors: weights by kind, adapter, gradients, optimizer states."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.core import memory_terms as terms
from studio.core.config import LoraSection
from studio.core.memory_methods import Method, base_weights, trained_shapes
from studio.core.model_profile import ModelProfile, adapted_matrices
from tests.memory.models import model_class, small_config

WEIGHTS = (
    Method("fp32", "fp32", dtype="float32"),
    Method("bf16", "bf16"),
    Method("int8", "8-bit", packing="int8"),
    Method("nf4", "NF4", packing="4bit"),
    Method("nf4_double", "NF4 + double quantization", packing="4bit_double"),
    Method("nf4_fp32", "NF4, fp32 rest", dtype="float32", packing="4bit_double"),
)
TRAINED = (
    (Method("lora", "LoRA"), LoraSection(r=8)),
    (Method("lora_large", "LoRA, r = 48"), LoraSection(r=48)),
    (Method("dora", "DoRA"), LoraSection(r=4, use_dora=True)),
    (Method("full_fp32", "Full, fp32", dtype="float32", trains="all"), LoraSection()),
    (Method("full_bf16", "Full, bf16", trains="all"), LoraSection()),
    (Method("last_layer", "Last layer", dtype="float32", trains="layers", last_layers=1),
     LoraSection()),
)  # fmt: skip
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit",
              "paged_adamw_32bit", "adafactor", "sgd")  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One countable number in bytes, said and real."""

    kind: str
    what: str
    said: int
    real: int

    @property
    def is_exact(self) -> bool:
        return self.said == self.real


@cache
def profile(kind: str) -> ModelProfile:
    from studio.backend.profile import read_profile

    return read_profile(small_config(kind))


def compare_weights(kind: str) -> Iterator[Compared]:
    """Base weights of a saved model, loaded as each method keeps them."""
    from transformers import BitsAndBytesConfig

    from studio.backend.loading import compute_dtype

    build = model_class(kind)
    with tempfile.TemporaryDirectory() as folder:
        build.from_config(small_config(kind)).save_pretrained(folder)
        for method in WEIGHTS:
            dtype = compute_dtype(method.dtype)
            options: dict[str, Any] = {}
            if method.packing == "int8":
                options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
            elif method.packing != "none":
                options["quantization_config"] = BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=method.packing == "4bit_double",
                )  # fmt: skip
            model = build.from_pretrained(Path(folder), dtype=dtype, **options)
            said = sum(base_weights(profile(kind), method))
            yield Compared(kind, f"weights {method.title}", said, _storages(model))


def _storages(model: Any) -> int:
    """Bytes of all parameters, buffers and quantization states, shared ones once."""
    import torch

    found: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage._cdata] = storage.nbytes()

    for tensor in (*model.parameters(), *model.buffers()):
        add(tensor.data)
        for name in ("CB", "SCB"):
            add(getattr(tensor, name, None))
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            for part in (state.absmax, state.code, state.offset):
                add(part)
            if state.state2 is not None:
                add(state.state2.absmax)
                add(state.state2.code)
    return sum(found.values())


def compare_trained(kind: str, optimizers: tuple[str, ...] = OPTIMIZERS) -> Iterator[Compared]:
    """Trained numbers, their gradients and the optimizer's states after a step."""
    import torch

    for method, lora in TRAINED:
        model = _with_trained(kind, method, lora)
        trained = [p for p in model.parameters() if p.requires_grad]
        adapted = adapted_matrices(profile(kind), lora)
        shapes = trained_shapes(profile(kind), method, adapted, lora)
        said = method.trained_bytes * terms.total_numel(shapes)
        yield Compared(kind, f"{method.title}, trained", said, _bytes(trained))
        for parameter in trained:
            parameter.grad = torch.randn_like(parameter)
        yield Compared(kind, f"{method.title}, gradients", said, _bytes(p.grad for p in trained))
        for optim in optimizers:
            if optim.startswith("adamw_torch_f") and method.dtype == "bfloat16" and (
                method.trains != "adapter"
            ):  # fmt: skip
                continue  # the fused CPU kernel is the same as on fp32, and slow here
            real = _states(optim, trained)
            said_states = terms.optimizer_states(shapes, optim, method.trained_bytes)
            yield Compared(kind, f"{method.title}, {optim}", said_states, real)


def _with_trained(kind: str, method: Method, lora: LoraSection) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    from studio.backend.loading import compute_dtype

    model = model_class(kind).from_config(small_config(kind), dtype=compute_dtype(method.dtype))
    if method.trains == "all":
        return model
    model.requires_grad_(False)
    if method.trains == "layers":
        stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
        outer = [s for s in stacks if not any(s is not o and s in list(o.modules())
                                              for o in stacks)]  # fmt: skip
        outer[-1][-1].requires_grad_(True)
        return model
    task = {"t5": "SEQ_2_SEQ_LM", "bert": None}.get(kind, "CAUSAL_LM")
    names = sorted({m.name for m in adapted_matrices(profile(kind), lora)})
    model = get_peft_model(model, LoraConfig(
        r=lora.r, lora_alpha=8, use_dora=lora.use_dora, task_type=task, target_modules=names,
        fan_in_fan_out=kind == "gpt2",
    ))  # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _states(optim: str, parameters: list[Any]) -> int:
    """Bytes of all state tensors after one step, shared ones once."""
    import torch

    optimizer = _optimizer(optim, parameters)
    optimizer.step()
    found: dict[int, int] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                found[value.data_ptr()] = value.numel() * value.element_size()
    return sum(found.values())


def _optimizer(optim: str, parameters: list[Any]) -> Any:
    import torch
    from bitsandbytes import optim as bnb
    from transformers.optimization import Adafactor

    if optim.startswith("adamw_torch"):
        return torch.optim.AdamW(parameters, lr=1e-4, fused=optim.endswith("fused") or None)
    if optim == "adafactor":
        return Adafactor(parameters, lr=1e-4, scale_parameter=False, relative_step=False)
    if optim == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4)
    classes = {"adamw_8bit": bnb.AdamW8bit, "paged_adamw_8bit": bnb.PagedAdamW8bit,
               "paged_adamw_32bit": bnb.PagedAdamW32bit}  # fmt: skip
    return classes[optim](parameters, lr=1e-4)
