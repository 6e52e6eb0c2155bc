"""Terms of the memory of a training, each from numbers that are known before it starts.

Every function gives bytes and says where its formula comes from and how far it is off. Countable
terms (weights, 4-bit state, adapter, gradients, optimizer states) equal the tensors to the byte;
tests hold them against real ones. Pure arithmetic: knows nothing of models, cards or files.
"""

from __future__ import annotations

from collections.abc import Iterable

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TILE_TOKENS, TILE_VOCAB = 4096, 32768  # trl.kernels.chunked_logprob, trl.trainer.utils
_BLOCK_4BIT, _BLOCK_NESTED = 64, 256  # bitsandbytes.functional.quantize_4bit, its defaults
_CODE_4BIT, _CODE_NESTED = 16 * 4, 256 * 4  # tables of levels in fp32, one a matrix
_MIN_8BIT, _BLOCK_8BIT = 4096, 256  # bitsandbytes.optim: smaller tensors keep fp32 states
_QMAPS_8BIT = 2 * 256 * 4  # tables of the 8-bit levels, signed and unsigned, once an optimizer

Shape = tuple[int, ...]
# (shape, how many tensors have it)
Shapes = Iterable[tuple[Shape, int]]


def _ceil(value: int, block: int) -> int:
    return -(-value // block)


def numel(shape: Shape) -> int:
    """Numbers in a tensor of this shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def total_numel(shapes: Shapes) -> int:
    """Numbers in all tensors."""
    return sum(count * numel(shape) for shape, count in shapes)


def weights_4bit(weights: int, *, double_quant: bool) -> int:
    """One matrix in nf4 or fp4 with its quantization state. Exact.

    Two numbers a byte and one fp32 scale for 64 weights: 4.5 bits a weight. With double
    quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3) the scales are 8-bit, in blocks
    of 256 with an fp32 scale each: 4.127 bits, and a table of 256 levels a matrix.
    """
    blocks = _ceil(weights, _BLOCK_4BIT)
    packed = _ceil(weights, 2) + _CODE_4BIT
    if not double_quant:
        return packed + 4 * blocks
    return packed + blocks + 4 * _ceil(blocks, _BLOCK_NESTED) + _CODE_NESTED + 4  # and their mean


def weights_8bit(rows: int, columns: int) -> int:
    """One matrix in LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): a byte a weight and an
    fp32 scale a row. Exact."""
    return rows * columns + 4 * rows


def lora_shapes(r: int, in_features: int, out_features: int, *, dora: bool) -> list[Shape]:
    """Trained tensors of one adapted matrix: A is r x in, B is out x r (Hu et al. 2021,
    arXiv:2106.09685, section 4.1); DoRA adds a magnitude per output (arXiv:2402.09353). Exact."""
    shapes: list[Shape] = [(r, in_features), (out_features, r)]
    return [*shapes, (out_features,)] if dora else shapes


def optimizer_states(shapes: Shapes, optim: str, item_bytes: int = 4) -> int:
    """States of the optimizer after its first step. Exact.

    Args:
        shapes: of what is trained.
        optim: transformers' name.
        item_bytes: of the trained tensors; torch keeps AdamW's moments in their dtype, bitsandbytes
            in fp32 or 8 bits.

    AdamW keeps two numbers a weight (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2),
    8-bit AdamW two bytes and two fp32 scales for 256 weights, but fp32 below 4,096 weights
    (Dettmers et al. 2022, arXiv:2110.02861, section 2.1); Adafactor one number a row and a column
    (Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4); SGD without momentum none.
    """
    sizes = [(shape, count) for shape, count in shapes if count]
    states = sum(count * _state_bytes(shape, optim, item_bytes) for shape, count in sizes)
    is_8bit = optim in ("adamw_8bit", "paged_adamw_8bit")
    if is_8bit and any(numel(shape) >= _MIN_8BIT for shape, _ in sizes):
        states += _QMAPS_8BIT
    return states


def _state_bytes(shape: Shape, optim: str, item_bytes: int) -> int:
    count = numel(shape)
    if optim in ("adamw_torch", "adamw_torch_fused"):
        return 2 * item_bytes * count + 4  # and the step as an fp32 number
    if optim in ("adamw_8bit", "paged_adamw_8bit"):
        if count < _MIN_8BIT:
            return 8 * count
        return 2 * count + 2 * 4 * _ceil(count, _BLOCK_8BIT)
    if optim == "paged_adamw_32bit":
        return 8 * count
    if optim == "adafactor":  # in fp32, and the root mean square as an fp32 number
        if len(shape) < 2:
            return 4 * count + 4
        return 4 * (numel(shape[:-1]) + numel((*shape[:-2], shape[-1]))) + 4
    return 0


def update_copies(shapes: Shapes, optim: str, item_bytes: int = 4) -> int:
    """What the optimizer makes while it updates, beside its states.

    torch's unfused AdamW takes the roots of all second moments at once (torch.optim.adamw,
    _multi_tensor_adamw); Adafactor works on one tensor at a time with two copies in fp32; the fused
    and the 8-bit ones work in place. Deviation: 1 more copy where a scale is applied.
    """
    if optim == "adamw_torch":
        return item_bytes * total_numel(shapes)
    if optim == "adafactor":
        return 2 * 4 * max((numel(shape) for shape, count in shapes if count), default=0)
    return 0


def is_paged(optim: str) -> bool:
    """Whether the states may move to host memory when the card is full (CUDA unified memory)."""
    return optim.startswith("paged_")


def full_logits(
    tokens: int, vocab_size: int, *, item_bytes: int, backward: bool = True
) -> int:  # fmt: skip
    """The output head without fusing: the scores, which stay (they are an output), and three times
    fp32: their log-softmax, kept for the backward pass, and the gradients of the loss and of the
    log-softmax. Counted with torch 2.13's cross entropy: 14 bytes a score in bf16, 16 in fp32.

    Deviation: 2 B a score more with transformers before 4.45, which handed out fp32 scores.
    """
    return tokens * vocab_size * (item_bytes + (3 if backward else 2) * 4)


def fused_logits(
    tokens: int,
    hidden_size: int,
    vocab_size: int,
    *,
    item_bytes: int,
    in_place: bool,
    backward: bool = True,
) -> int:
    """TRL's fused head (trl.kernels.chunked_logprob): one tile of at most 4,096 tokens x 32,768
    scores at a time, whatever the vocabulary, and the gradient of the hidden states in fp32.

    Args:
        tokens: positions that are scored: the learned ones with Triton (CUDA), all without.
        in_place: Triton works in the tile; plain torch (CPU) makes copies of it: 7 in fp32 and a
            mask live at one time in the backward pass, 3 and a mask in the forward pass.

    Deviation: below 1 % of the counted operators.
    """
    rows = min(tokens, TILE_TOKENS)
    total = tokens * hidden_size * item_bytes  # the rows that are scored, picked out
    total += rows * TILE_VOCAB * item_bytes
    if backward:
        total += tokens * hidden_size * (4 + item_bytes)
    if not in_place:
        total += rows * min(vocab_size, TILE_VOCAB) * (7 * 4 + 1 if backward else 3 * 4 + 1)
    return total


def dequantized_weight(largest_weights: int, *, item_bytes: int) -> int:
    """A 4-bit matrix unpacked for the one product that needs it: the largest decides."""
    return largest_weights * item_bytes


def kv_cache(tokens: int, layers: int, kv_width: int, *, item_bytes: int) -> int:
    """Keys and values of a generation: 2 x layers x tokens x (key-value heads x head size)
    (Shazeer 2019, arXiv:1911.02150, section 2.4.1). Sliding windows keep less."""
    return 2 * layers * tokens * kv_width * item_bytes


def full_finetuning(params: int) -> int:
    """16 bytes a weight: fp32 weight, gradient and two moments (Rajbhandari et al. 2020, ZeRO,
    arXiv:1910.02054, section 3.1, counts the same 16 with mixed precision). No activations."""
    return 16 * params
