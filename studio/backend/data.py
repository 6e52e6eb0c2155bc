"""From a data set's `data.jsonl` to what the trainer eats: split, tokenized, counted.

Nothing is dropped in silence: each row that is left out or cut is counted with its reason. Tokens
come from the workspace's cache where they are there already. Knows nothing of models or of
training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy

from studio.backend.row_file import RowFile
from studio.backend.token_cache import (
    Cancelled,
    TokenCache,
    TokenRow,
    TokenTable,
    cache_key,
    table_in_memory,
)
from studio.backend.tokenize import encode_batches
from studio.core.config import RunConfig, TrainSection
from studio.core.errors import DatasetError, StoreError
from studio.core.examples import ASSISTANT, USER, Message
from studio.core.packing import pack_best_fit
from studio.core.runs import read_json
from studio.core.split import split, split_chosen

NUM_PROMPTS = 3
MAX_TRIED = 1000  # rows looked at for prompts, where one question is asked again and again
# A run evaluates at least three times, and a forward pass costs a third of a training step: with
# so many rows that is 4 % of the run, which leaves room for sampling and saving within a tenth.
_EVAL_SHARE = 0.04
_MIN_EVAL_ROWS = 16


@dataclass(frozen=True)
class Prompt:
    """A fixed question whose answer is sampled during the run. `messages` is empty for text;
    `tools` are those of the row, which the template shows to the model as in training."""

    index: int
    messages: list[Message]
    shown: str
    reference: str
    text: str | None = None
    tools: list[dict[str, Any]] | None = None


class TokenRows(Sequence[TokenRow]):
    """Some rows of a table, cut to max_length; made into lists only when asked for."""

    def __init__(self, table: TokenTable, rows: numpy.ndarray, max_length: int) -> None:
        self._table = table
        self._max_length = max_length
        self.rows = rows
        self.lengths = numpy.minimum(table.lengths()[rows], max_length)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    def __getitem__(self, index: int | slice) -> TokenRow | TokenRows:
        if isinstance(index, slice):
            return TokenRows(self._table, self.rows[index], self._max_length)
        return self._table.row(int(self.rows[index]), self._max_length)

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def trained_share(self) -> float:
        """Share of tokens that are learned, before any is cut."""
        tokens = int(self._table.lengths()[self.rows].sum())
        return int(self._table.fact("trained")[self.rows].sum()) / tokens if tokens else 1.0

    def arrays(self, index: int) -> tuple[Any, Any]:
        """input_ids and labels of a row (int64)."""
        return self._table.arrays(int(self.rows[index]), self._max_length)


@dataclass
class TrainingData:
    """Tokenized rows and what became of all of them."""

    train: TokenRows
    held_out: TokenRows
    prompts: list[Prompt]
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)


def load_rows(folder: Path) -> RowFile:
    """All examples of a data set. Raises DatasetError."""
    return RowFile(folder / "data.jsonl")


def load_held_out(folder: Path) -> list[int] | None:
    """The rows of a data set that are held out by choice; None where chance decides."""
    chosen = (read_json(folder / "dataset.json") or {}).get("held_out") or {}
    return chosen.get("rows")


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
    held_out_rows: Sequence[int] | None = None,
    cache: TokenCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Cancelled | None = None,
) -> TrainingData:
    """Split, render, tokenize and label.

    Args:
        held_out_rows: positions of rows held out by choice; None: a share drawn by chance.
        cache: where tokens are looked for and kept; used for a RowFile only.
        progress: called with the rows done and all rows while they are tokenized.

    Raises:
        DatasetError: no row can be trained on.
        TokenizingCancelledError: `cancelled` said so.
    """
    notes: list[str] = []
    table = token_table(
        tokenizer, rows, loss_on=config.train.loss_on, system_prompt=config.data.system_prompt,
        cache=cache, progress=progress, cancelled=cancelled, note=notes.append,
    )  # fmt: skip
    max_length = config.train.max_length
    if held_out_rows is None:
        train_ids, held_out_ids = split(len(rows), config.data.val_frac, config.train.seed)
    else:
        train_ids, held_out_ids = split_chosen(len(rows), held_out_rows)
    measured_ids = spread(held_out_ids, max_eval_rows or config.train.eval_max_rows)
    train, held_out = (
        _usable(table, ids, max_length) for ids in (train_ids, measured_ids)
    )  # fmt: skip
    seen = numpy.array([*train_ids, *measured_ids], numpy.int64)
    refused = table.refused(seen)
    left_out = sum(refused.values())
    lengths = table.lengths()
    data = TrainingData(
        train=train,
        held_out=held_out,
        prompts=choose_prompts(rows, held_out_ids or train_ids),
        counts={
            "train": len(train),
            "held_out": len(held_out),
            "left_out": left_out,
            "truncated": sum(int((lengths[s.rows] > max_length).sum()) for s in (train, held_out)),
            "no_trained_token": len(seen) - left_out - len(train) - len(held_out),
            "train_tokens": int(train.lengths.sum()),
        },
    )
    data.notes = [*notes, *_notes(data.counts, refused, max_length)]
    if not len(train):
        raise DatasetError(
            "No row can be trained on", value=f"{len(train_ids)} rows",
            remedy=" ".join(data.notes) or "Choose another file",
        )  # fmt: skip
    return data


def token_table(
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    loss_on: str,
    system_prompt: str | None,
    cache: TokenCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Cancelled | None = None,
    note: Callable[[str], None] | None = None,
) -> TokenTable:
    """All rows as tokens: the cache's, or tokenized now and kept there.

    A disk that refuses does not end a run: then the tokens stay in memory, and `note` is told.
    """
    key = None
    if cache is not None and isinstance(rows, RowFile):
        key = cache_key(rows.fingerprint, tokenizer, loss_on=loss_on, system_prompt=system_prompt)
        if (table := cache.open(key)) is not None and len(table) == len(rows):
            return table

    def done(count: int) -> None:
        if progress is not None:
            progress(count, len(rows))

    def batches() -> Iterator[Any]:
        return encode_batches(tokenizer, rows, loss_on=loss_on, system_prompt=system_prompt)

    if cache is not None and key is not None:
        try:
            return cache.build(key, batches(), progress=done, cancelled=cancelled)
        except StoreError as error:
            if note is not None:
                note(f"The tokens are kept in memory, not on the disk. {error}")
    return table_in_memory(batches(), progress=done, cancelled=cancelled)


def _usable(table: TokenTable, rows: Sequence[int], max_length: int) -> TokenRows:
    """Those of the rows that have a learned token within max_length."""
    chosen = numpy.array(rows, numpy.int64)
    first = table.fact("first")[chosen]
    return TokenRows(table, chosen[(first > 0) & (first < max_length)], max_length)


def _notes(counts: Mapping[str, int], refused: Mapping[str, int], max_length: int) -> list[str]:
    notes = [f"{count} rows were left out: {reason}" for reason, count in list(refused.items())[:3]]
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


def choose_prompts(
    rows: Sequence[dict[str, Any]], chosen: Sequence[int] | None = None
) -> list[Prompt]:
    """Up to three rows, evenly spaced, with different questions, as prompts with their answers.

    Args:
        chosen: the row numbers to choose from; by default all.
    """
    chosen = range(len(rows)) if chosen is None else chosen
    prompts: list[Prompt] = []
    for row in (rows[chosen[i]] for i in islice(_spaced_first(len(chosen)), MAX_TRIED)):
        prompt = _prompt(row, len(prompts))
        if prompt is not None and prompt.shown not in {known.shown for known in prompts}:
            prompts.append(prompt)
        if len(prompts) == NUM_PROMPTS:
            break
    return prompts


def _spaced_first(count: int) -> Iterator[int]:
    """Three evenly spaced positions, then all others in order."""
    first = [(2 * i + 1) * count // (2 * NUM_PROMPTS) for i in range(NUM_PROMPTS)] if count else []
    yield from dict.fromkeys(first)
    yield from (place for place in range(count) if place not in first)


def _prompt(row: dict[str, Any], index: int) -> Prompt | None:
    messages = row.get("messages")
    if messages:
        last = max((i for i, m in enumerate(messages) if m["role"] == ASSISTANT), default=0)
        asked = [m["content"] for m in messages[:last] if m["role"] == USER]
        if not asked:
            return None
        reference, tools = messages[last]["content"], row.get("tools") or None
        return Prompt(index, messages[:last], asked[-1], reference, tools=tools)
    words = (row.get("text") or "").split(" ")
    half = min(32, len(words) // 2)
    if not half:
        return None
    beginning = " ".join(words[:half])
    return Prompt(index, [], beginning, " ".join(words[half:])[:2000], text=beginning)


class _FromTable:
    """What `datasets` calls for some rows: their tokens, read from the table just then.

    It is handed on as it is: `datasets` copies and hashes what it is given, and that would be all
    tokens.
    """

    def __init__(self, rows: TokenRows) -> None:
        self._rows = rows

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        if "row" in batch:
            single = [self._rows.arrays(row) for row in batch["row"]]
            return {"input_ids": [ids for ids, _ in single],
                    "labels": [labels for _, labels in single]}  # fmt: skip
        packed = [[self._rows.arrays(row) for row in rows] for rows in batch["rows"]]
        columns: dict[str, list[Any]] = {
            "input_ids": [numpy.concatenate([ids for ids, _ in pairs]) for pairs in packed],
            "labels": [numpy.concatenate([labels for _, labels in pairs]) for pairs in packed],
        }
        return {**columns, "seq_lengths": batch["seq_lengths"]}

    def __deepcopy__(self, memo: dict[int, Any]) -> _FromTable:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (f"{type(self).__name__} {id(self)}",)


def to_dataset(rows: TokenRows, *, pack_to: int | None = None) -> Any:
    """A `datasets.Dataset` of input_ids and labels, packed into sequences if asked.

    It holds row numbers and lengths only; tokens are read when a batch is made. Packing is best-fit
    decreasing: rows stay whole and are kept apart by their positions (`seq_lengths`).
    """
    import datasets

    if pack_to is None:
        columns: dict[str, Any] = {"row": numpy.arange(len(rows)), "length": rows.lengths}
    else:
        lengths = rows.lengths.tolist()
        bins = pack_best_fit(lengths, pack_to)
        parts = [[lengths[row] for row in members] for members in bins]
        columns = {"rows": bins, "length": [sum(part) for part in parts], "seq_lengths": parts}
    return datasets.Dataset.from_dict(columns).with_transform(_FromTable(rows))


def row_lengths(dataset: Any) -> list[int]:
    """Tokens of each row of what `to_dataset` made, without reading them."""
    return list(dataset.data.column("length").to_pylist())
