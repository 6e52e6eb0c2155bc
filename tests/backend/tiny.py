"""Tiny models, tokenizers and run folders for the tests of the backend."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.backend.inbox import Inbox
from studio.backend.trainer import begin, conduct
from studio.core.config_io import build_config, dump_config
from studio.core.events import current, read_records
from studio.core.plan import resolve
from studio.core.runs import RunPaths
from studio.core.split import split

HEAD = "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
TAIL = "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
CHATML = HEAD + "{{- m['content'] + '<|im_end|>\n' }}" + TAIL
CHATML_MARKED = (
    HEAD + "{%- if m['role'] == 'assistant' %}{% generation %}"
    "{{- m['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
    "{%- else %}{{- m['content'] + '<|im_end|>\n' }}{%- endif %}" + TAIL
)
TEMPLATES = {"chatml": CHATML, "marked": CHATML_MARKED, "plain": None}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
_WORDS = [
    "the", "a", "red", "blue", "green", "cat", "dog", "bird", "house", "tree", "river", "says",
    "what", "is", "where", "when", "yes", "no", "maybe", "small", "large", "old", "new", "runs",
    "sleeps", "eats", "sings", "user", "assistant", "system", "colour",
]  # fmt: skip
CPU = {"cuda": False, "mps": False, "bnb": True, "bf16": True, "cores": 1, "threads": 1}


def make_tokenizer(template: str | None = CHATML, *, pad: bool = True, **changes: Any) -> Any:
    """A byte-level BPE of about 400 tokens; `template` is a key of TEMPLATES or a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator([" ".join(_WORDS)] * 50, trainer)
    options = {"eos_token": "<|im_end|>", **({"pad_token": "<|pad|>"} if pad else {}), **changes}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        **options,
    )
    tokenizer.chat_template = TEMPLATES.get(template, template) if template else None
    return tokenizer


def save_model(folder: Path, template: str | None = "marked", **config: Any) -> Path:
    """A random Llama of about 50 k parameters with a tokenizer, as a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(template)
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(**{
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "tie_word_embeddings": True, "pad_token_id": 3,
            "eos_token_id": 2, "bos_token_id": None, **config,
        })
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Examples of very different lengths whose answers follow a rule that can be learned."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = [draw.choice(_WORDS) for _ in range(draw.randint(2, 18))]
        rows.append({"i": i + 1, "line": i + 1, "messages": [
            {"role": "user", "content": " ".join(words)},
            {"role": "assistant", "content": f"{words[0]} sings yes"},
        ]})  # fmt: skip
    return rows


def write_dataset(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A data set folder by the contract; returns what run.json says of it."""
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data.jsonl").write_text(text)
    return {"id": folder.name, "path": str(folder), "name": "test rows",
            "fingerprint": hashlib.sha256(text.encode()).hexdigest()}  # fmt: skip


@dataclass
class RunMaker:
    """Makes run folders by the contract, as services/runs.py does."""

    root: Path
    model_folder: Path
    count: int = 0

    def __call__(
        self, values: dict[str, Any] | None = None, rows: Any = 40, model: Path | None = None
    ) -> RunPaths:
        self.count += 1
        rows = make_rows(rows) if isinstance(rows, int) else rows
        train = {"max_steps": 6, "per_device_train_batch_size": 2,
                 "gradient_accumulation_steps": 2, "max_length": 64, "learning_rate": 5e-3,
                 "eval_max_rows": 8}  # fmt: skip
        values = values or {}
        config = build_config({
            "lora": {"r": 4, "lora_alpha": 8},
            **values,
            "train": {**train, **values.get("train", {})},
        })  # fmt: skip
        folder = model or self.model_folder
        info = {"params": 50_000, "context_length": 128}
        kept, held_out = split(len(rows), config.data.val_frac, config.train.seed)
        plan = resolve(config, CPU, len(kept), len(held_out), info)
        paths = RunPaths(self.root / f"20260101-000000-{self.count:04x}")
        paths.commands.mkdir(parents=True)
        dataset = write_dataset(self.root / f"data-{self.count}", rows)
        paths.run_json.write_text(json.dumps({
            "schema": 1, "id": paths.id, "created": "2026-01-01T00:00:00Z",
            "config": dump_config(config), "resolved": dump_config(plan.config),
            "auto": plan.reasons, "total_steps": plan.total_steps,
            "dataset": {**dataset, "rows_train": len(kept), "rows_held_out": len(held_out),
                        "rows_left_out": 0},
            "model": {"id": "tiny", "kind": "folder", "path": str(folder), "params": 50_000,
                      "config_sha256": "0" * 64},
            "versions": {}, "seed": config.train.seed, "machine": {},
        }))  # fmt: skip
        return paths


class ScriptedInbox(Inbox):
    """Gives real orders at a moment: {(step, micro-batch of the next step): verb}.

    The trainer polls after each micro-batch, so polls are counted per completed step.
    """

    def __init__(self, paths: RunPaths, orders: dict[tuple[int, int], str]) -> None:
        super().__init__(paths)
        self._orders = dict(orders)
        self._seen: tuple[int, int] = (-1, 0)
        self.journal: Any = None

    def poll(self) -> bool:
        step = self.journal.step if self.journal else 0
        polls = self._seen[1] + 1 if step == self._seen[0] else 0
        self._seen = (step, polls)
        verb = self._orders.pop(self._seen, None)
        if verb:
            (self._paths.commands / f"{len(self._orders) + 1:04d}-{verb}.json").write_text("{}")
        return super().poll()


def train(paths: RunPaths, orders: dict[tuple[int, int], str] | None = None) -> dict[str, Any]:
    """One attempt in this process; returns exit.json."""
    inbox = ScriptedInbox(paths, orders or {})
    attempt = begin(paths, inbox)
    inbox.journal = attempt.journal
    attempt.telemetry._interval_s = 0.2
    conduct(attempt)
    return json.loads(paths.exit_json.read_text())


def records(paths: RunPaths, kind: str) -> list[dict[str, Any]]:
    """Records of one kind that are not superseded."""
    return [r for r in current(read_records(paths.metrics).records) if r["kind"] == kind]


def losses(paths: RunPaths) -> dict[int, float]:
    """Training loss by step."""
    return {r["step"]: r["loss"] for r in records(paths, "step")}


def tensors(folder: Path) -> dict[str, Any]:
    """The numbers of an adapter folder."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def same_tensors(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Bit for bit."""
    import torch

    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
