"""Small architectures with random weights: sizes large enough for blocks of 64 and 4,096."""

from __future__ import annotations

from typing import Any

CAUSAL = ("llama", "qwen3", "mistral", "gemma", "phi", "gpt2")
ALL = (*CAUSAL, "t5", "bert")


def small_config(kind: str, layers: int = 2, hidden: int = 128, vocab: int = 320) -> Any:
    """transformers' configuration of the given architecture."""
    from transformers import AutoConfig

    if kind == "gpt2":
        sizes: dict[str, Any] = {
            "n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 1024,
            "vocab_size": vocab, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "bos_token_id": 0, "eos_token_id": 0,
        }  # fmt: skip
    elif kind == "t5":
        sizes = {"d_model": hidden, "d_kv": 32, "d_ff": 2 * hidden, "num_layers": layers,
                 "num_heads": 4, "vocab_size": vocab}  # fmt: skip
    elif kind == "bert":
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "vocab_size": vocab,
                 "num_hidden_layers": layers, "num_attention_heads": 4}  # fmt: skip
    else:
        sizes = {
            "hidden_size": hidden, "intermediate_size": 344 * hidden // 128, "vocab_size": vocab,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        }  # fmt: skip
        if kind in ("qwen3", "gemma"):
            sizes["head_dim"] = 32
        if kind == "phi":
            del sizes["num_key_value_heads"]
    return AutoConfig.for_model(kind, **sizes)


def model_class(kind: str) -> Any:
    """The class that builds it."""
    import transformers

    names = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForMaskedLM"}
    return getattr(transformers, names.get(kind, "AutoModelForCausalLM"))
