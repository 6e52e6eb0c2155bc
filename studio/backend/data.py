"""From a data set's `data.jsonl` to what the trainer eats: split, tokenized, counted.

Nothing is dropped in silence: each row that is left out or cut is counted with its reason. Knows
nothing of models or of training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.backend.tokenize import Encoded, encode_examples
from studio.core.config import RunConfig, TrainSection
from studio.core.errors import DatasetError
from studio.core.examples import ASSISTANT, USER, Message, RowProblem
from studio.core.split import split

NUM_PROMPTS = 3
# A run evaluates at least three times, and a forward pass costs a third of a training step: with
# so many rows that is 4 % of the run, which leaves room for sampling and saving within a tenth.
_EVAL_SHARE = 0.04
_MIN_EVAL_ROWS = 16


@dataclass(frozen=True)
class Prompt:
    """A fixed question whose answer is sampled during the run. `messages` is empty for text."""

    index: int
    messages: list[Message]
    shown: str
    reference: str
    text: str | None = None


@dataclass
class TrainingData:
    """Tokenized rows and what became of all of them."""

    train: list[Encoded]
    held_out: list[Encoded]
    prompts: list[Prompt]
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)


def load_rows(folder: Path) -> list[dict[str, Any]]:
    """All examples of a data set. Raises DatasetError."""
    file = folder / "data.jsonl"
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(
            "The data set cannot be read", value=str(file),
            remedy=f"Import the file again ({error})",
        ) from error  # fmt: skip
    if not rows:
        raise DatasetError("The data set is empty", value=str(file), remedy="Choose another file")
    return rows


def eval_rows(config: RunConfig, total_steps: int) -> int:
    """How many held-out rows to measure: eval_max_rows, fewer in a short run if it is not set."""
    train = config.train
    if train.eval_max_rows != TrainSection.model_fields["eval_max_rows"].default:
        return train.eval_max_rows
    trained = total_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps
    return min(train.eval_max_rows, max(_MIN_EVAL_ROWS, round(_EVAL_SHARE * trained)))


def prepare(
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    config: RunConfig,
    *,
    max_eval_rows: int | None = None,
) -> TrainingData:
    """Split, render, tokenize and label. Raises DatasetError if no row can be trained on."""
    train_ids, held_out_ids = split(len(rows), config.data.val_frac, config.train.seed)
    measured_ids = spread(held_out_ids, max_eval_rows or config.train.eval_max_rows)
    refused: Counter[str] = Counter()

    def encode(indices: Sequence[int]) -> list[Encoded]:
        results = encode_examples(
            tokenizer,
            [rows[i] for i in indices],
            loss_on=config.train.loss_on,
            max_length=config.train.max_length,
            system_prompt=config.data.system_prompt,
        )
        refused.update(str(item) for item in results if isinstance(item, RowProblem))
        return [item for item in results if isinstance(item, Encoded)]

    train, held_out = encode(train_ids), encode(measured_ids)
    usable = [row for row in train if row.trained_tokens]
    measured = [row for row in held_out if row.trained_tokens]
    data = TrainingData(
        train=usable,
        held_out=measured,
        prompts=choose_prompts([rows[i] for i in held_out_ids] or [rows[i] for i in train_ids]),
        counts={
            "train": len(usable),
            "held_out": len(measured),
            "left_out": sum(refused.values()),
            "truncated": sum(row.cut_tokens > 0 for row in (*usable, *measured)),
            "no_trained_token": len(train) - len(usable) + len(held_out) - len(measured),
            "train_tokens": sum(len(row.input_ids) for row in usable),
        },
    )
    data.notes = _notes(data.counts, refused, config.train.max_length)
    if not usable:
        raise DatasetError(
            "No row can be trained on", value=f"{len(train_ids)} rows",
            remedy=" ".join(data.notes) or "Choose another file",
        )  # fmt: skip
    return data


def _notes(counts: dict[str, int], refused: Counter[str], max_length: int) -> list[str]:
    notes = [f"{count} rows were left out: {reason}" for reason, count in refused.most_common(3)]
    if counts["truncated"]:
        notes.append(
            f"{counts['truncated']} rows are longer than max_length ({max_length} tokens) and were "
            "cut; raise train.max_length to keep them whole"
        )
    if counts["no_trained_token"]:
        notes.append(
            f"{counts['no_trained_token']} rows were left out: nothing of their answer is within "
            f"max_length ({max_length} tokens); raise train.max_length"
        )
    return notes


def spread(indices: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of the indices, evenly spaced: files are often sorted."""
    if len(indices) <= limit:
        return list(indices)
    return [indices[i * len(indices) // limit] for i in range(limit)]


def choose_prompts(rows: Sequence[dict[str, Any]]) -> list[Prompt]:
    """Up to three rows, evenly spaced, with different questions, as prompts with their answers."""
    prompts: list[Prompt] = []
    for row in (rows[i] for i in _spaced_first(len(rows))):
        prompt = _prompt(row, len(prompts))
        if prompt is not None and prompt.shown not in {known.shown for known in prompts}:
            prompts.append(prompt)
        if len(prompts) == NUM_PROMPTS:
            break
    return prompts


def _spaced_first(count: int) -> list[int]:
    """Three evenly spaced positions, then all others in order."""
    first = [(2 * i + 1) * count // (2 * NUM_PROMPTS) for i in range(NUM_PROMPTS)] if count else []
    return list(dict.fromkeys([*first, *range(count)]))


def _prompt(row: dict[str, Any], index: int) -> Prompt | None:
    messages = row.get("messages")
    if messages:
        last = max((i for i, m in enumerate(messages) if m["role"] == ASSISTANT), default=0)
        asked = [m["content"] for m in messages[:last] if m["role"] == USER]
        if not asked:
            return None
        return Prompt(index, messages[:last], asked[-1], messages[last]["content"])
    words = (row.get("text") or "").split(" ")
    half = min(32, len(words) // 2)
    if not half:
        return None
    beginning = " ".join(words[:half])
    return Prompt(index, [], beginning, " ".join(words[half:])[:2000], text=beginning)


def to_dataset(rows: Sequence[Encoded], *, pack_to: int | None = None) -> Any:
    """A `datasets.Dataset` of input_ids and labels, packed into sequences if asked.

    Packing is best-fit decreasing: rows stay whole and are kept apart by their positions.
    """
    import datasets

    dataset = datasets.Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    )
    if pack_to is None:
        return dataset
    from trl import pack_dataset

    datasets.disable_progress_bars()
    return pack_dataset(dataset, pack_to, "bfd")
