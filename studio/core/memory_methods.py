"""Ways to fine-tune, as far as memory tells them apart, and the table of cards and methods.

Owns `Method`: how the frozen and the trained numbers are kept. Pure arithmetic over a
`ModelProfile`; knows nothing of steps, files or cards' names. All numbers are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from studio.core import memory_terms as terms
from studio.core.config import LoraSection, RunConfig
from studio.core.model_profile import Matrices, ModelProfile

Packing = Literal["none", "int8", "4bit", "4bit_double"]
Trains = Literal["adapter", "all", "layers"]


@dataclass(frozen=True)
class Method:
    """How numbers are kept.

    Attributes:
        dtype: of what is not packed.
        packing: of the frozen matrices.
        trains: an adapter, all weights, or those of the last `last_layers`.
    """

    key: str
    title: str
    dtype: str = "bfloat16"
    packing: Packing = "none"
    trains: Trains = "adapter"
    last_layers: int = 0

    @property
    def trained_bytes(self) -> int:
        """Of one trained number: adapters are fp32, whole weights are trained as they are."""
        return 4 if self.trains == "adapter" else terms.ITEM_BYTES[self.dtype]


METHODS = (
    Method("full_fp32", "Full, fp32", dtype="float32", trains="all"),
    Method("full_bf16", "Full, bf16", trains="all"),
    Method("lora_bf16", "LoRA, bf16"),
    Method("lora_int8", "LoRA, 8-bit", packing="int8"),
    Method("qlora_nf4", "QLoRA, NF4", packing="4bit"),
    Method("qlora_nf4_double", "QLoRA, NF4 + double quantization", packing="4bit_double"),
)
CARD_GIB = (8, 12, 16, 24, 48)


def method_of(config: RunConfig) -> Method:
    """The one that a resolved configuration asks for."""
    quantization = config.quantization
    if not quantization.load_in_4bit:
        return Method("lora", "LoRA", dtype=config.model.dtype)
    packing: Packing = "4bit_double" if quantization.bnb_4bit_use_double_quant else "4bit"
    return Method("qlora", "QLoRA", dtype=config.model.dtype, packing=packing)


def base_weights(profile: ModelProfile, method: Method) -> tuple[int, int]:
    """(packed, plain) bytes of the base model, buffers among the plain ones. Exact."""
    wide = terms.ITEM_BYTES[method.dtype]
    packed = plain = 0
    for m in profile.matrices:
        if method.packing == "none" or not m.quantized:
            plain += m.count * m.weights * wide
        elif method.packing == "int8":
            packed += m.count * terms.weights_8bit(m.out_features, m.in_features)
        else:
            double = method.packing == "4bit_double"
            packed += m.count * terms.weights_4bit(m.weights, double_quant=double)
    plain += profile.other_params * wide + (4 - wide) * profile.fp32_params
    return packed, plain + profile.buffer_bytes.get(method.dtype, 0)


def trained_shapes(
    profile: ModelProfile, method: Method, adapted: Sequence[Matrices], lora: LoraSection
) -> list[tuple[terms.Shape, int]]:
    """(shape, count) of the trained tensors."""
    if method.trains == "all":
        return profile.shapes()
    if method.trains == "layers":
        return profile.shapes(last_layers=max(1, method.last_layers))
    return [
        (shape, m.count)
        for m in adapted
        for shape in terms.lora_shapes(lora.r, m.in_features, m.out_features, dora=lora.use_dora)
    ]


def resident_bytes(profile: ModelProfile, method: Method, lora: LoraSection) -> int:
    """Weights, trained numbers, gradients and AdamW's states: all that stays during a training.
    Adapters on all linear layers."""
    adapted = [m for m in profile.matrices if not m.head]
    shapes = trained_shapes(profile, method, adapted, lora)
    wide, count = method.trained_bytes, terms.total_numel(shapes)
    weights = sum(base_weights(profile, method))
    own = wide * count if method.trains == "adapter" else 0  # else they are among the weights
    states = terms.optimizer_states(shapes, "adamw_torch", wide)
    return weights + own + wide * count + states


def rank_in_numbers(in_features: int, out_features: int, r: int) -> tuple[int, int]:
    """(frozen, trained) numbers of one matrix: 4096 x 4096 at r = 8 are 16,777,216 and 65,536."""
    return in_features * out_features, r * (in_features + out_features)


# Shapes of the LLaMA family (Touvron et al. 2023, arXiv:2302.13971, table 2; 7 and 13 B as in
# Llama 2), vocabulary 32,000, head and embedding apart: the sizes that tables of methods are
# usually given for.
_FAMILY = {
    "7 B": (4096, 11008, 32), "13 B": (5120, 13824, 40), "33 B": (6656, 17920, 60),
    "65 B": (8192, 22016, 80),
}  # fmt: skip


def family() -> dict[str, ModelProfile]:
    """Profiles of the sizes of LLaMA: 7, 13, 33 and 65 B."""
    return {name: _llama(*sizes) for name, sizes in _FAMILY.items()}


def _llama(hidden: int, inner: int, layers: int, vocab: int = 32000) -> ModelProfile:
    square, up, down = (hidden, hidden), (inner, hidden), (hidden, inner)
    names = (("q_proj", square), ("k_proj", square), ("v_proj", square), ("o_proj", square),
             ("gate_proj", up), ("up_proj", up), ("down_proj", down))  # fmt: skip
    matrices = [Matrices(name, shape[1], shape[0], layers) for name, shape in names]
    head = Matrices("lm_head", hidden, vocab, 1, quantized=False, head=True)
    inside = (*(shape for _, shape in names), (hidden,), (hidden,))
    return ModelProfile(
        architecture="LlamaForCausalLM", layers=layers, hidden_size=hidden, vocab_size=vocab,
        matrices=(*matrices, head), kinds=(inside,), order=(0,) * layers,
        outside=((vocab, hidden), (hidden,), (vocab, hidden)), kv_width=hidden, context_tokens=4096,
    )  # fmt: skip
