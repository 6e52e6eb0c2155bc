"""Peak resident memory of real runs on the CPU, against the estimate.

Models of 5 M and 135 M parameters with random weights are written to a temporary folder and trained
for two steps through the command line, each in processes of its own. Prints one JSON line a run.

    python -m benchmarks.memory_rss [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny_models import make_tokenizer

# name, hidden, inner, layers, heads, key-value heads, vocabulary
SHAPES = {
    "5M": (256, 688, 6, 8, 4, 4096),
    "135M": (576, 1536, 30, 9, 3, 49152),  # SmolLM2-135M
    "0.5B": (896, 4864, 24, 14, 2, 151936),  # Qwen2.5-0.5B
}
# shape, dtype, 4-bit, rows, tokens, checkpointing
RUNS = (
    ("5M", "float32", False, 4, 256, False),
    ("5M", "float32", False, 8, 1024, False),
    ("5M", "float32", True, 4, 512, False),
    ("135M", "bfloat16", False, 1, 256, False),
    ("135M", "float32", False, 2, 256, False),
    ("135M", "float32", False, 4, 256, True),
    ("135M", "bfloat16", True, 2, 256, False),
    ("5M", "bfloat16", False, 16, 256, True),
)  # fmt: skip
QUICK = (0, 3)


def describe(run: tuple[Any, ...]) -> str:
    """For example "135M float32, 2 x 256"."""
    shape, dtype, four, rows, tokens, checkpointing = run
    words = f"{shape} {dtype}{', 4-bit' if four else ''}, {rows} x {tokens}"
    return words + (", checkpointing" if checkpointing else "")


def make_model(folder: Path, shape: str) -> None:
    """A Llama of this shape with random weights and a small tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, vocab_size=vocab,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True,
        max_position_embeddings=4096, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_rows(path: Path, tokens: int) -> None:
    """Rows of plain text longer than `tokens`, so that every one is cut to it."""
    words = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(40):
            text = "".join(words.choice("abcdefghij ") for _ in range(3 * tokens))
            stream.write(json.dumps({"text": text}) + "\n")


def run_once(run: tuple[Any, ...]) -> dict[str, Any]:
    """Train for two steps; peaks in bytes and what the estimate says."""
    shape, dtype, four, rows, tokens, checkpointing = run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", shape)
        make_rows(folder / "rows.jsonl", tokens)
        config = folder / "config.yaml"
        config.write_text(json.dumps({
            "model": {"id": str(folder / "model"), "dtype": dtype},
            "data": {"path": str(folder / "rows.jsonl"), "format": "text", "val_frac": 0.1},
            "quantization": {"load_in_4bit": four},
            "train": {"max_steps": 2, "per_device_train_batch_size": rows, "max_length": tokens,
                      "gradient_accumulation_steps": 1, "eval_max_rows": 2,
                      "activation_checkpointing": checkpointing},
            "runtime": {"device": "cpu", "num_threads": 1},
        }))  # fmt: skip
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        command = [sys.executable, "-m", "studio"]
        place = ["--workspace", str(folder / "workspace"), "--json"]
        plan = subprocess.run([*command, "plan", str(config), *place], env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip
        done = subprocess.run([*command, "train", str(config), *place], env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode != 0:
            return {"run": run, "error": done.stderr[-400:]}
        measured = json.loads(done.stdout)["peak_rss_bytes"]
        high_water = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        said = json.loads(plan.stdout) if plan.returncode == 0 else {"error": plan.stderr[-300:]}
        return {"run": run, "measured_bytes": measured, "high_water_bytes": high_water,
                "said": said}  # fmt: skip


def main() -> None:
    """One line a run; each in a process of its own, for its high-water mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", type=int)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(run_once(RUNS[options.one])))
        return
    for number in QUICK if options.quick else range(len(RUNS)):
        subprocess.run([sys.executable, "-m", "benchmarks.memory_rss", "--one", str(number)],
                       check=True)  # fmt: skip


if __name__ == "__main__":
    main()
