"""Very small models and tokenizers for tests: random weights, real file layout, no network.

The tokenizer is a byte-level BPE of a few hundred entries, so characters outside ASCII take
several tokens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Can I change my order? Yes, until it has been sent.",
    "Grüße aus Köln, 你好, здравствуйте, 🙂🚀",
    "assistant user system question answer model adapter train",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def make_tokenizer(*, chat: bool = True, vocab_size: int = 320) -> Any:
    """A byte-level BPE tokenizer with ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|endoftext|>"],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def make_config(kind: str = "llama", **changes: Any) -> Any:
    """A config of the given architecture with tiny sizes that divide into 4-bit blocks."""
    from transformers import AutoConfig

    values: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "eos_token_id": 2, "pad_token_id": 3, "bos_token_id": None,
    }  # fmt: skip
    if kind == "gpt2":
        values = {
            "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
            "eos_token_id": 2, "pad_token_id": 3, "bos_token_id": None,
        }  # fmt: skip
    return AutoConfig.for_model(kind, **{**values, **changes})


def make_model_folder(
    folder: Path,
    kind: str = "llama",
    *,
    chat: bool = True,
    seed: int = 0,
    scale: float = 6.0,
    **changes: Any,
) -> Path:
    """Save a random model with its tokenizer. `scale` widens the weights, so that greedy answers
    depend on the prompt instead of repeating one token."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    make_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, model_path: Path, *, seed: int = 1, **lora: Any) -> Path:
    """Save a LoRA adapter with random, effective weights for the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
        **lora,
    }  # fmt: skip
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def make_run(
    runs: Path,
    model_path: Path,
    *,
    number: int = 1,
    state: str = "done",
    adapter: bool = True,
    resolved: dict[str, Any] | None = None,
    seed: int = 1,
) -> Path:
    """A run folder as the studio leaves it behind, with an adapter that was never trained."""
    from studio.core.config_io import build_config, dump_config, merge

    fixed = {
        "model": {"id": str(model_path), "dtype": "float32", "attn_implementation": "sdpa"},
        "runtime": {"device": "cpu", "num_threads": 1},
        "quantization": {"bnb_4bit_compute_dtype": "float32"},
    }
    run = runs / f"20260102-000000-{number:04x}"
    run.mkdir(parents=True)
    config = (model_path / "config.json").read_bytes()
    values = dump_config(build_config(merge(fixed, resolved or {})))
    record = {
        "schema": 1, "id": run.name, "created": "2026-01-02T00:00:00.000000+00:00",
        "config": values, "resolved": values, "auto": {}, "total_steps": 1,
        "dataset": {"id": "none", "name": "none", "path": "../../datasets/none"},
        "model": {"id": model_path.name, "kind": "folder", "path": str(model_path),
                  "config_sha256": hashlib.sha256(config).hexdigest()},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    (run / "process.json").write_text("{}")
    (run / "exit.json").write_text(json.dumps({"state": state, "attempt": 1, "steps": 1}))
    if adapter:
        make_adapter(run / "adapter", model_path, seed=seed)
    return run


def write_config_only(folder: Path, config: dict[str, Any]) -> Path:
    """A folder that holds nothing but config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
