"""What one training step allocates, for any architecture, from its config.json alone.

A model of a few layers is built without storage (torch's FakeTensorMode: every tensor has shape,
dtype and device, none has bytes) and runs a real forward and backward pass, with the adapter, the
autocast and the checkpointing of a run. A dispatch mode counts what lives. From a few such passes
follow the coefficients of `core.step_costs`. Owns the counting; knows nothing of cards, of
estimates or of weights on disk.

What stands in for a kernel: scaled dot-product attention keeps query, key, value, output and one
fp32 number a head and token, as FlashAttention does (Dao et al. 2022, arXiv:2205.14135, section 3),
and a mask in the dtype of the query where rows are padded or packed.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import masking_utils

from studio.backend.loading import compute_dtype
from studio.core.config import LoraSection
from studio.core.step_costs import Variant

_FORCE_GQA = "TRANSFORMERS_SDPA_FORCE_GQA"


@dataclass(frozen=True)
class Counted:
    """Bytes of one pass over the layers, beside parameters and their gradients.

    Attributes:
        saved: what autograd keeps for the backward pass (0 with checkpointing).
        held: what lives between forward and backward, the output included.
        peak: the most that lived at one time in both passes.
        forward: the most of a pass without gradients.
    """

    saved: int
    held: int
    peak: int
    forward: int


@dataclass
class LiveBytes(TorchDispatchMode):
    """Counts the bytes of living storages that operators made; `known` ones do not count."""

    known: set[int]
    now: int = 0
    peak: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes or key in self.known:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """The storage is gone, or is counted elsewhere from now on."""
        self.now -= self._sizes.pop(key, 0)


class _FlashAttention(torch.autograd.Function):
    """Shapes and saved tensors of a fused attention kernel, without its arithmetic."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        output = torch.empty_like(query)
        logsumexp = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        if mask is not None:
            mask = mask.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, logsumexp, mask)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **_: Any) -> Any:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _FlashAttention.apply(query, key, value, attn_mask)


@contextlib.contextmanager
def _kernels(masked: bool) -> Iterator[None]:
    """Fused attention in place of torch's. Without padding transformers makes no mask and does not
    repeat keys for grouped queries; shape propagation cannot see that no row is padded or packed.
    Rows longer than a sliding window get a mask all the same: they are counted as masked ones.
    """
    functional, gqa = torch.nn.functional, os.environ.get(_FORCE_GQA)
    attention = functional.scaled_dot_product_attention
    find_packed = masking_utils.find_packed_sequence_indices
    skips_mask = masking_utils._ignore_causal_mask_sdpa
    functional.scaled_dot_product_attention = _attention
    if not masked:
        os.environ[_FORCE_GQA] = "1"
        masking_utils.find_packed_sequence_indices = lambda *_, **__: None
        masking_utils._ignore_causal_mask_sdpa = lambda *_, **__: True
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attention
        masking_utils.find_packed_sequence_indices = find_packed
        masking_utils._ignore_causal_mask_sdpa = skips_mask
        os.environ.pop(_FORCE_GQA, None)
        if gqa is not None:
            os.environ[_FORCE_GQA] = gqa


def count_steps(
    config: Any, variant: Variant, *, r: int, layers: int, sizes: Sequence[tuple[int, int]]
) -> list[Counted]:
    """Count a pass over the model's trunk (no head) for each (rows, tokens) of `sizes`.

    Args:
        config: transformers' configuration of the whole model.
        layers: how many layers to build; the rest is the caller's arithmetic.
        r: rank of the adapter; unused where the variant trains all weights.
    """
    model = build_on_meta(config, variant, r, layers)
    found = []
    with FakeTensorMode():
        make_fake(model)
        for batch, length in sizes:
            forward = _count_forward(model, variant, batch, length)
            found.append(_count_training(model, variant, batch, length, forward))
            model.zero_grad(set_to_none=True)
    return found


def _count_forward(model: Any, variant: Variant, batch: int, length: int) -> int:
    live = LiveBytes(_storages(model))
    with _kernels(variant.padded or variant.packed), live, torch.no_grad(), _autocast(variant):
        _trunk(model)(**_inputs(variant, batch, length), use_cache=False)
    return live.peak


def _count_training(
    model: Any, variant: Variant, batch: int, length: int, forward: int
) -> Counted:  # fmt: skip
    known = _storages(model)
    live = LiveBytes(known)
    saved: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved.setdefault(storage._cdata, (storage.nbytes(), storage))
        return tensor

    def is_gradient(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        live.forget(parameter.grad.untyped_storage()._cdata)

    trained = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(is_gradient) for p in trained]
    watched = (
        contextlib.nullcontext()
        if variant.checkpointing  # it keeps tensors through the same hooks
        else torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    )
    with _kernels(variant.padded or variant.packed), live, watched:
        with _autocast(variant):
            output = _trunk(model)(**_inputs(variant, batch, length), use_cache=False)
        hidden = output.last_hidden_state
        total = sum(size for size, _ in saved.values())
        saved.clear()
        del output
        held = live.now
        hidden.backward(torch.empty_like(hidden))
    for hook in hooks:
        hook.remove()
    return Counted(saved=total, held=held, peak=live.peak, forward=forward)


def _autocast(variant: Variant) -> Any:
    dtype = compute_dtype(variant.dtype)
    return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)


def _inputs(variant: Variant, batch: int, length: int) -> dict[str, Any]:
    ids = torch.zeros((batch, length), dtype=torch.long)
    if variant.packed:  # what transformers makes of the rows' positions
        mask = torch.ones((batch, 1, length, length), dtype=torch.bool)
        return {"input_ids": ids, "position_ids": torch.zeros_like(ids), "attention_mask": mask}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if variant.padded else None}


def _trunk(model: Any) -> Any:
    """The model without its head."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model().base_model
    return model.base_model


def _storages(model: torch.nn.Module) -> set[int]:
    return {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}


def build_on_meta(config: Any, variant: Variant, r: int, layers: int) -> Any:
    """The model on the meta device with `layers` layers, its adapter on, ready to train."""
    from transformers import AutoModelForCausalLM

    from studio.backend.adapters import attach

    shortened = with_layers(config, layers)
    dtype = compute_dtype(variant.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shortened, dtype=dtype, attn_implementation=variant.attention, trust_remote_code=False
        )
        if not variant.full:
            model.requires_grad_(False)
            targets = variant.target_modules
            lora = LoraSection(
                r=r, lora_dropout=0.1 if variant.dropout else 0.0, use_dora=variant.dora,
                target_modules=targets if isinstance(targets, str) else list(targets),
            )  # fmt: skip
            model = attach(model, lora, seed=0)
    if not variant.adapter_cast:
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    if variant.checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    return model.train()


def with_layers(config: Any, layers: int) -> Any:
    """A copy of the configuration with so many layers."""
    copy = type(config)(**config.to_dict())
    text = copy.get_text_config(decoder=True)
    text.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, name, None)
        if isinstance(kinds, list):
            setattr(text, name, kinds[:layers])
    return copy


def make_fake(model: torch.nn.Module) -> None:
    """Give every parameter and buffer a shape-only tensor that claims to be on the CPU: autocast
    and kernels choose by device, and the meta device has neither."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                made[id(parameter)] = torch.nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
