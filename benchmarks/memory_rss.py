"""Peak resident memory of real runs on the CPU, against the estimate.

Models of 5 M, 135 M and 0.5 B parameters with random weights are written to a folder and
trained for two steps through the command line, each in processes of its own. The CPU's constants
were fitted on seven of the runs; the others are held out.

    python -m benchmarks.memory_rss --list
    python -m benchmarks.memory_rss --one 3 DIR one run; prints one JSON line
    python -m benchmarks.memory_rss --fit       the CPU's constants by the recorded results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.core.memory import CPU, LOADING, Constants
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
_RESIDENT = ("weights", "weights_quantized", "weights_other", "adapter", "gradients", "optimizer")
TRAINING_ROWS, HELD_OUT_ROWS = 24, 16


@dataclass(frozen=True)
class Run:
    """One training: the model's shape and the knobs that decide its memory.

    Attributes:
        fitted: the CPU's constants were fitted on it; else it is held out.
        evaluated: it is evaluated and answers prompts, too, which takes most of the time; the
            training makes the peak either way.
    """

    shape: str
    dtype: str
    rows: int
    tokens: int
    four_bit: bool = False
    checkpointing: bool = False
    r: int = 16
    fitted: bool = False
    evaluated: bool = False

    def __str__(self) -> str:
        words = [f"{self.shape} {self.dtype}", f"{self.rows} x {self.tokens}"]
        words += ["4-bit"] if self.four_bit else []
        words += ["checkpointing"] if self.checkpointing else []
        return ", ".join(words + ([f"r = {self.r}"] if self.r != 16 else []))

    def config(self, model: Path, rows: Path) -> dict[str, Any]:
        """The settings, for a model's folder and a file of rows."""
        held_out = HELD_OUT_ROWS if self.evaluated else 0
        return {
            "model": {"id": str(model), "dtype": self.dtype},
            "data": {"path": str(rows), "format": "text",
                     "val_frac": held_out / (TRAINING_ROWS + HELD_OUT_ROWS)},
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
    Run("0.5B", _BF16, 1, 128),
    Run("0.5B", _F32, 1, 64),
    Run("0.5B", _BF16, 1, 256, checkpointing=True),
    Run("0.5B", _BF16, 1, 128, four_bit=True),
    Run("135M", _BF16, 2, 512, checkpointing=True),
    Run("0.5B", _F32, 1, 128, checkpointing=True),
    Run("5M", _F32, 2, 512, r=64),
    Run("135M", _F32, 1, 512, r=4),
    Run("5M", _BF16, 8, 512),
    Run("0.5B", _BF16, 1, 256),
    Run("135M", _F32, 1, 256, four_bit=True, checkpointing=True),
    Run("5M", _F32, 1, 2048),
    Run("0.5B", _F32, 1, 64, four_bit=True, checkpointing=True),
    Run("135M", _BF16, 4, 256, r=64),
    Run("0.5B", _BF16, 2, 128, r=64),
    Run("5M", _BF16, 8, 512, four_bit=True, checkpointing=True),
    Run("5M", _F32, 4, 256, fitted=True, evaluated=True),
    Run("5M", _F32, 8, 1024, fitted=True, evaluated=True),
    Run("5M", _F32, 4, 512, four_bit=True, fitted=True, evaluated=True),
    Run("5M", _BF16, 16, 256, checkpointing=True, evaluated=True),
    Run("135M", _BF16, 1, 256, fitted=True, evaluated=True),
    Run("135M", _F32, 2, 256, fitted=True, evaluated=True),
    Run("135M", _F32, 4, 256, checkpointing=True, fitted=True, evaluated=True),
    Run("135M", _BF16, 2, 256, four_bit=True, fitted=True, evaluated=True),
)


def make_model(folder: Path, shape: str) -> None:
    """A model of this shape with random weights in bf16 and a small tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from studio.backend.loading import quiet_libraries

    kind, hidden, inner, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        vocab_size=vocab, num_attention_heads=heads, num_key_value_heads=kv_heads,
        tie_word_embeddings=True, max_position_embeddings=4096, pad_token_id=3, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    quiet_libraries()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_rows(path: Path, tokens: int) -> None:
    """Rows of plain text longer than `tokens`, so that every one is cut to it."""
    words = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(TRAINING_ROWS + HELD_OUT_ROWS):
            text = "".join(words.choice("abcdefghij ") for _ in range(3 * tokens))
            stream.write(json.dumps({"text": text}) + "\n")


def lay_out(run: Run, folder: Path) -> Path:
    """The run's config.yaml below `folder`, with its rows and its model, made once a shape."""
    model, own = folder / run.shape, folder / "".join(c for c in str(run) if c.isalnum())
    if not model.is_dir():
        make_model(model, run.shape)
    own.mkdir(exist_ok=True)
    make_rows(own / "rows.jsonl", run.tokens)
    file = own / "config.yaml"
    file.write_text(json.dumps(run.config(model, own / "rows.jsonl")))
    return file


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """Train for two steps. The largest resident set: the kernel's high-water mark, phase by phase.

    Raises RuntimeError with the last words of a run that failed.
    """
    config = lay_out(run, folder)
    done = subprocess.run(
        [sys.executable, "-m", "studio", "train", str(config),
         "--workspace", str(folder / "workspace"), "--json"],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{run}: {done.stderr[-600:]}")
    # The trainer sets its mark back at each phase and keeps the largest; other processes do not.
    others = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    said = json.loads(done.stdout)
    peak = max(others, said["peak_rss_bytes"])
    return {"what": str(run), "measured": peak, "fitted": run.fitted,
            "measured_phases": _phases(folder / "workspace" / "runs" / said["run_id"])}  # fmt: skip


def _phases(run: Path) -> dict[str, int]:
    """The peak of each phase, of a finished run's record, in bytes."""
    measured = json.loads((run / "exit.json").read_text(encoding="utf-8"))["memory"]["measured"]
    return {phase: values["rss_bytes"] for phase, values in measured.items()}


def in_its_own_process(number: int, folder: Path) -> dict[str, Any]:
    """`measure` in a process that waited for no other run, for its high-water mark."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_rss", "--one", str(number), str(folder)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-800:])
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def predict(runs: Sequence[Run], folder: Path) -> dict[str, dict[str, Any]]:
    """By the run's words: what the estimate says with the constants as they are now, in bytes."""
    from studio.core.config_io import load_config
    from studio.hardware.probe import MachineProbe
    from studio.services.memory import MemoryService
    from studio.services.models import ModelStore

    # Shapes that the runs counted are taken, what they taught of this machine is not.
    workspace, counted = folder / "estimates", folder / "workspace" / "cache" / "profiles"
    if counted.is_dir():
        shutil.copytree(counted, workspace / "cache" / "profiles", dirs_exist_ok=True)
    workspace.mkdir(exist_ok=True)
    found = {}
    models = ModelStore(workspace, ROOT / "presets")
    service = MemoryService(workspace, models, MachineProbe(workspace))
    try:
        for run in runs:
            config = load_config(lay_out(run, folder), [])
            said = service.estimate(config.model.id, config).estimate
            items = {item.name: item.bytes for item in said.items}
            found[str(run)] = {
                "predicted": said.expected, "low": said.low, "high": said.high,
                "items": items, "phases": said.phases,
            }  # fmt: skip
    finally:
        service.close()
    return found


def fit(rows: list[dict[str, Any]]) -> Constants:
    """The constants with the least sum of relative errors over `rows` of the results, by trying:
    libraries in steps of 10 MiB, gaps of 2 %. Of squared errors one odd run would decide."""

    def error(context: int, gaps: float) -> float:
        return sum(abs(_needs(row, context, gaps) / row["measured"] - 1) for row in rows)

    tried = ((mib << 20, share / 100) for mib in range(300, 810, 10) for share in range(0, 81, 2))
    context, gaps = min(tried, key=lambda found: error(*found))
    return replace(CPU, context_bytes=context, fragmentation=gaps)


def _needs(row: dict[str, Any], context: int, gaps: float) -> float:
    """What the estimate would say of a row of the results with these constants."""
    counted = sum(row["items"].get(name, 0) for name in _RESIDENT)
    steps = max(size for name, size in row["phases"].items() if name != LOADING)
    return context + counted + max(row["phases"][LOADING], (1 + gaps) * steps)


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
    parser.add_argument("--one", nargs=2, metavar=("NUMBER", "FOLDER"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    if options.one is not None:
        number, folder = options.one
        print(json.dumps(measure(RUNS[int(number)], Path(folder))))
    elif options.fit:
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rss"]
        print(fit([row for row in rows if row["fitted"]]))
    else:
        print("\n".join(f"{number:3} {run}" for number, run in enumerate(RUNS)))


if __name__ == "__main__":
    main()
