"""Published measurements of LoRA and QLoRA on one card, against the estimate.

The collection lies beside the checkout, where there is one; a few of its rows stand here with their
source, so that the comparison never depends on it. None of these runs evaluates or samples, and all
were made before TRL's fused head: the estimate is asked for that.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.core.config_io import build_config
from studio.core.memory import Demand, estimate, variant_of
from studio.core.model_profile import ModelProfile, adapted_matrices
from studio.core.step_costs import Variant, VariantCosts

COLLECTION = Path(__file__).resolve().parents[3] / "shared" / "data" / "vram_published.csv"
QWEN = "https://github.com/QwenLM/Qwen/blob/main/README.md#profiling-of-memory-and-speed"
FACTORY = "https://github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison"


@dataclass(frozen=True)
class Row:
    """One measurement; `note` explains a known difference of the run from ours."""

    model: str
    method: str
    batch: int
    tokens: int
    peak_gb: float
    source: str
    note: str = ""

    @property
    def r(self) -> int:
        return 64 if self.model == "Qwen-1.8B" else 8


# The twin: quoted from the two pages.
QUOTED = (
    Row("Qwen-1.8B", "LoRA", 1, 512, 7.4, QWEN),
    Row("Qwen-1.8B", "LoRA", 1, 2048, 11.0, QWEN),
    Row("Qwen-1.8B", "LoRA", 1, 4096, 16.2, QWEN),
    Row("LLaMA2-7B", "QLoRA r8 all (FA2)", 1, 1024, 6, FACTORY),
    Row("LLaMA2-7B", "QLoRA r8 all (FA2)", 1, 8192, 12, FACTORY),
    Row("LLaMA2-7B", "QLoRA r8 all (FA2)", 1, 32768, 32, FACTORY),
)
_GPTQ = ("GPTQ's int4 in fp16, where the loss keeps fewer fp32 copies of the scores, beside about "
         "1.5 GB of DeepSpeed's buffers: low at short rows, high at long ones")  # fmt: skip
_DEEPSPEED = "about 1 GB of DeepSpeed's buffers is not in the estimate"
_LONG = "the slope of this series halves above 4,096 tokens, for a reason its page does not give"
_ORDER = ("the page does not say which batch belongs to which table; with batch 2 and without "
          "checkpointing the estimate would be 29.7 GB")  # fmt: skip


def rows() -> list[Row]:
    """Single-card rows of methods the studio has, from the collection or the twin."""
    if not COLLECTION.is_file():
        return list(QUOTED)
    with COLLECTION.open(encoding="utf-8", newline="") as stream:
        return [row for record in csv.DictReader(stream) if (row := _row(record)) is not None]


def _row(record: dict[str, str]) -> Row | None:
    """None for what is not comparable: other methods, several cards, unknown length, kernels that
    replace transformers' layers."""
    model, method = record["model"], record["method"]
    if not record["seq_len"].isdigit() or not record["gpu"].startswith("1x"):
        return None
    tokens, peak = int(record["seq_len"]), float(record["peak_gb"])
    batch, note = 1, ""
    if model == "Qwen-1.8B" and method == "LoRA":
        note = _LONG if tokens > 4096 else _DEEPSPEED
    elif model == "Qwen-1.8B" and method == "QLoRA":
        note = _GPTQ
    elif model == "LLaMA2-7B" and method == "LoRA r8 all (HF)":
        batch = 2
    elif model == "LLaMA2-7B" and method == "LoRA r8 all (HF+FA2)":
        batch, note = 4, _ORDER
    elif model != "LLaMA2-7B" or method != "QLoRA r8 all (FA2)":
        return None
    return Row(model, method, batch, tokens, peak, record["source_url"], note)


@cache
def _config(model: str) -> Any:
    from transformers import AutoConfig

    if model == "LLaMA2-7B":
        return AutoConfig.for_model(
            "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
        )  # fmt: skip
    # Qwen-1.8B: the same shapes as Qwen2's code builds them.
    return AutoConfig.for_model(
        "qwen2", hidden_size=2048, intermediate_size=5504, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=16, vocab_size=151936,
        tie_word_embeddings=False,
    )  # fmt: skip


@cache
def _profile(model: str) -> ModelProfile:
    from studio.backend.profile import read_profile

    return read_profile(_config(model))


@cache
def _costs(model: str, variant: Variant) -> VariantCosts:
    from studio.backend.profile import measure_costs

    return measure_costs(_config(model), variant)


def predicted_gb(row: Row) -> float:
    """The estimate for a row, in 10^9 bytes as published; with checkpointing, no padding, plain
    AdamW, bf16 and all linear layers."""
    config = build_config({
        "model": {"dtype": "bfloat16", "attn_implementation": "sdpa"},
        "lora": {"r": row.r},
        "quantization": {"load_in_4bit": row.method.startswith("QLoRA"),
                         "bnb_4bit_compute_dtype": "bfloat16"},
        "train": {"per_device_train_batch_size": row.batch, "max_length": row.tokens,
                  "activation_checkpointing": True, "optim": "adamw_torch_fused"},
        "runtime": {"device": "cuda:0"},
    })  # fmt: skip
    profile = _profile(row.model)
    variant = dataclasses.replace(variant_of(config), padded=False)
    found = estimate(Demand(
        config=config, profile=profile, adapted=adapted_matrices(profile, config.lora),
        costs=_costs(row.model, variant), rows_tokens=row.tokens, full_head=True, samples=False,
        evaluates=False,
    ))  # fmt: skip
    return found.expected / 1e9
