"""Peak resident memory of real runs on the CPU, against the estimate.

Models of 5 M, 135 M and 0.5 B parameters with random weights are written to a temporary folder and
trained for two steps through the command line, each in processes of its own. The CPU's constants
were fitted on half of the runs; the others are held out.

    python -m benchmarks.memory_rss --list
    python -m benchmarks.memory_rss --one 3     one run; prints one JSON line
    python -m benchmarks.memory_rss --fit       the CPU's constants by the recorded results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.backend.loading import quiet_libraries
from studio.core.memory import CPU, Constants
from tests.tiny_models import make_tokenizer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
LIMIT_S = 900
# name: type, hidden, inner, layers, heads, key-value heads, vocabulary
SHAPES = {
    "5M": ("llama", 256, 688, 6, 8, 4, 4096),  # the starter
    "135M": ("llama", 576, 1536, 30, 9, 3, 49152),  # SmolLM2-135M
    "0.5B": ("qwen2", 896, 4864, 24, 14, 2, 151936),  # Qwen2.5-0.5B
}
TRAINING_ROWS, HELD_OUT_ROWS = 24, 16


@dataclass(frozen=True)
class Run:
    """One training: the model's shape and the knobs that decide its memory.

    Attributes:
        fitted: the CPU's constants were fitted on it; else it is held out.
    """

    shape: str
    dtype: str
    rows: int
    tokens: int
    four_bit: bool = False
    checkpointing: bool = False
    r: int = 16
    fitted: bool = False

    def __str__(self) -> str:
        words = [f"{self.shape} {self.dtype}", f"{self.rows} x {self.tokens}"]
        words += ["4-bit"] if self.four_bit else []
        words += ["checkpointing"] if self.checkpointing else []
        return ", ".join(words + ([f"r = {self.r}"] if self.r != 16 else []))

    def config(self, folder: Path) -> dict[str, Any]:
        """What is trained; the model and the rows lie in `folder`."""
        return {
            "model": {"id": str(folder / "model"), "dtype": self.dtype},
            "data": {"path": str(folder / "rows.jsonl"), "format": "text",
                     "val_frac": HELD_OUT_ROWS / (TRAINING_ROWS + HELD_OUT_ROWS)},
            "lora": {"r": self.r},
            "quantization": {"load_in_4bit": self.four_bit},
            "train": {"max_steps": 2, "per_device_train_batch_size": self.rows,
                      "max_length": self.tokens, "gradient_accumulation_steps": 1,
                      "eval_steps": 2, "eval_max_rows": min(2 * self.rows, HELD_OUT_ROWS),
                      "activation_checkpointing": self.checkpointing},
            "runtime": {"device": "cpu", "num_threads": 1},
        }  # fmt: skip


_F32, _BF16 = "float32", "bfloat16"
RUNS = (
    Run("5M", _F32, 4, 256, fitted=True),
    Run("5M", _F32, 8, 1024),
    Run("5M", _F32, 4, 512, four_bit=True, fitted=True),
    Run("5M", _BF16, 16, 256, checkpointing=True),
    Run("5M", _F32, 2, 512, r=64),
    Run("5M", _F32, 1, 2048, fitted=True),
    Run("5M", _BF16, 8, 512, fitted=True),
    Run("5M", _BF16, 8, 512, four_bit=True, checkpointing=True),
    Run("135M", _BF16, 1, 256, fitted=True),
    Run("135M", _F32, 2, 256),
    Run("135M", _F32, 4, 256, checkpointing=True, fitted=True),
    Run("135M", _BF16, 2, 256, four_bit=True),
    Run("135M", _BF16, 4, 512, r=64),
    Run("135M", _F32, 1, 512, r=4, fitted=True),
    Run("135M", _BF16, 2, 1024, checkpointing=True),
    Run("135M", _F32, 1, 512, four_bit=True, checkpointing=True, fitted=True),
    Run("0.5B", _BF16, 1, 256),
    Run("0.5B", _F32, 1, 128, fitted=True),
    Run("0.5B", _BF16, 2, 512, checkpointing=True, fitted=True),
    Run("0.5B", _BF16, 1, 256, four_bit=True, fitted=True),
    Run("0.5B", _F32, 1, 256, four_bit=True, checkpointing=True),
    Run("0.5B", _BF16, 4, 256, r=64),
    Run("0.5B", _F32, 2, 256, checkpointing=True),
    Run("0.5B", _BF16, 1, 512),
)


def make_model(folder: Path, shape: str, *, weights: bool = True) -> None:
    """A model of this shape with random weights in bf16 and a small tokenizer.

    Args:
        weights: False writes the smallest file that passes for weights; enough for an estimate.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, hidden, inner, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        vocab_size=vocab, num_attention_heads=heads, num_key_value_heads=kv_heads,
        tie_word_embeddings=True, max_position_embeddings=4096, pad_token_id=3, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    if weights:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        tensors = {f"t{n}": torch.zeros(1) for n in range(layers)}
        save_file(tensors, folder / "model.safetensors")
    make_tokenizer().save_pretrained(folder)


def make_rows(path: Path, tokens: int) -> None:
    """Rows of plain text longer than `tokens`, so that every one is cut to it."""
    words = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(TRAINING_ROWS + HELD_OUT_ROWS):
            text = "".join(words.choice("abcdefghij ") for _ in range(3 * tokens))
            stream.write(json.dumps({"text": text}) + "\n")


@contextmanager
def laid_out(run: Run, *, weights: bool = True) -> Iterator[Path]:
    """A temporary folder with the run's model, rows and config.yaml."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        make_model(folder / "model", run.shape, weights=weights)
        make_rows(folder / "rows.jsonl", run.tokens)
        (folder / "config.yaml").write_text(json.dumps(run.config(folder)))
        yield folder


def measure(run: Run) -> dict[str, Any]:
    """Train for two steps. The high-water mark of the largest process, as the kernel keeps it.

    Raises RuntimeError with the last words of a run that failed.
    """
    with laid_out(run) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "studio", "train", str(folder / "config.yaml"),
             "--workspace", str(folder / "workspace"), "--json"],
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
            capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=ROOT,
        )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{run}: {done.stderr[-600:]}")
    # The trainer reads the kernel's mark and sets it back at each phase: it tells the whole.
    told = json.loads(done.stdout)["peak_rss_bytes"]
    peak = max(told, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {"what": str(run), "measured": peak, "fitted": run.fitted}


def in_its_own_process(number: int) -> dict[str, Any]:
    """`measure` in a process that waited for no other run, for its high-water mark."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_rss", "--one", str(number)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-800:])
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def predict(runs: tuple[Run, ...] = RUNS) -> dict[str, dict[str, Any]]:
    """By the run's words: what the estimate says with the constants as they are now, in bytes."""
    from studio.core.config_io import load_config
    from studio.hardware.probe import MachineProbe
    from studio.services.memory import MemoryService
    from studio.services.models import ModelStore

    found = {}
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        models = ModelStore(workspace, ROOT / "presets")
        service = MemoryService(workspace, models, MachineProbe(workspace))
        try:
            for run in runs:
                with laid_out(run, weights=False) as folder:
                    config = load_config(folder / "config.yaml", [])
                    answer = service.estimate(config.model.id, config)
                said = answer.estimate
                items = {item.name: item.bytes for item in said.items}
                found[str(run)] = {
                    "predicted": said.expected, "low": said.low, "high": said.high,
                    "items": items, "phases": said.phases, "loading_constant": CPU.loading,
                }  # fmt: skip
        finally:
            service.close()
    return found


def fit(rows: list[dict[str, Any]]) -> Constants:
    """The constants with the least sum of squared relative errors over `rows` of the results, by
    trying: libraries in steps of 10 MiB, gaps of 1 %, weights file of 0.25 bytes a parameter."""
    parts = [_parts(row) for row in rows]

    def error(context: int, gaps: float, loading: float) -> float:
        return sum(
            ((rest + context + gaps * passing + loading * params) / measured - 1) ** 2
            for rest, passing, params, measured in parts
        )

    tried = (
        (context << 20, gaps / 100, loading / 4)
        for context in range(300, 710, 10) for gaps in range(0, 81) for loading in range(0, 13)
    )  # fmt: skip
    context, gaps, loading = min(tried, key=lambda found: error(*found))
    return replace(CPU, context_bytes=context, fragmentation=gaps, loading=loading)


def _parts(row: dict[str, Any]) -> tuple[int, int, float, int]:
    """(what is counted, what comes and goes, parameters, measured) of a row of the results."""
    items = row["items"]
    around = sum(items.get(name, 0) for name in ("context", "fragmentation", "loading"))
    params = items["loading"] / row["loading_constant"]
    return row["predicted"] - around, max(row["phases"].values()), params, row["measured"]


def this_machine() -> str:
    """For example "AMD EPYC 9B14, 2 cores, 24 GiB; torch 2.13.0+cpu, glibc 2.36"."""
    from importlib.metadata import version

    import psutil

    words = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo")
             if line.startswith("model name")]  # fmt: skip
    memory = psutil.virtual_memory().total / 2**30
    cpu = words[0] if words else platform.processor() or platform.machine()
    return (f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; torch {version('torch')}, "
            f"transformers {version('transformers')}, {' '.join(platform.libc_ver())}")  # fmt: skip


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def main() -> None:
    """One run, or the list of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, choices=range(len(RUNS)))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    if options.one is not None:
        print(json.dumps(measure(RUNS[options.one])))
    elif options.fit:
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rss"]
        print(fit([row for row in rows if row["fitted"]]))
    else:
        print("\n".join(f"{number:3} {run}" for number, run in enumerate(RUNS)))


if __name__ == "__main__":
    main()
