"""The one place where an example becomes tokens and labels: for the trainer and for the preview.

Owns: which tokens of a rendered text are learned, cutting at `max_length`, and doing it fast (the
tokenizer works in threads while the next rows are rendered). The text and its learned spans come
from `backend.chat_text`. Knows nothing of data sets, files, batches or training.

A token that lies across the edge of a learned span is learned. So are tokens without characters
inside it: where one character takes several tokens, some tokenizers give only the first a place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy

from studio.backend.chat_text import Renderer, with_system
from studio.backend.templates import Span
from studio.core.errors import ModelError
from studio.core.examples import Message, RowProblem
from studio.hardware.threads import cpu_count

__all__ = [
    "IGNORED", "Encoded", "TokenBatch", "encode_batches", "encode_example", "encode_examples",
    "has_generation_markers", "prompt_adds_special_tokens", "render_prompt", "stop_token_ids",
    "with_system",
]  # fmt: skip

IGNORED = -100  # the label of a token that is not learned, everywhere in torch and transformers
BATCH_ROWS = 256
MAX_THREADS = 8  # beyond it one process that renders cannot keep them busy


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it.

    `input_ids` and `labels` are cut to `max_length`; `text` and `offsets` (characters of `text`,
    one pair a token) are whole, `cut_ids` are the tokens behind the cut.
    """

    input_ids: list[int]
    labels: list[int]
    text: str
    offsets: list[Span]
    cut_ids: list[int]

    @property
    def cut_tokens(self) -> int:
        """How many tokens were cut."""
        return len(self.cut_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learned. The first is never predicted, so it does not count."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class TokenBatch:
    """Whole rows in flat arrays, for many rows at once.

    Attributes:
        ids: int32, the tokens of all rows one behind the other.
        learned: uint8 of the same length, 1 where the label is the token itself.
        lengths: int32, tokens of each row; 0 for a row that cannot be used.
        problems: row of this batch: why it cannot be used.
    """

    ids: numpy.ndarray
    learned: numpy.ndarray
    lengths: numpy.ndarray
    problems: dict[int, RowProblem]


def encode_example(
    tokenizer: Any,
    example: Mapping[str, Any],
    *,
    loss_on: str = "assistant",
    max_length: int | None = None,
    system_prompt: str | None = None,
) -> Encoded:
    """Render, tokenize and label one example of `data.jsonl`. Raises RowProblem."""
    [result] = encode_examples(
        tokenizer, [example], loss_on=loss_on, max_length=max_length, system_prompt=system_prompt
    )
    if isinstance(result, RowProblem):
        raise result
    return result


def encode_examples(
    tokenizer: Any,
    examples: Sequence[Mapping[str, Any]],
    *,
    loss_on: str = "assistant",
    max_length: int | None = None,
    system_prompt: str | None = None,
) -> list[Encoded | RowProblem]:
    """Like `encode_example` for many; a row that the template refuses is answered with its
    RowProblem."""
    _check_fast(tokenizer)
    rendered = Renderer(tokenizer).render(examples, loss_on, system_prompt)
    results: list[Encoded | RowProblem] = []
    for item, row in zip(rendered, _tokenize(tokenizer, examples, rendered), strict=True):
        if isinstance(item, RowProblem) or row is None:
            results.append(item if isinstance(item, RowProblem) else _no_tokens())
            continue
        encoding, count = row
        ids = encoding.ids[:count]
        labels = [IGNORED] * count
        for first, end in _learned_ranges(encoding, count, *item):
            labels[first:end] = ids[first:end]
        edge = count if max_length is None else max_length
        offsets = [tuple(pair) for pair in encoding.offsets[:count]]
        results.append(Encoded(ids[:edge], labels[:edge], item[0], offsets, ids[edge:]))
    return results


def encode_batches(
    tokenizer: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    loss_on: str = "assistant",
    system_prompt: str | None = None,
    threads: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[TokenBatch]:
    """All rows, whole and in order, a batch at a time; the same tokens as `encode_examples`.

    The tokenizer runs in `threads` threads (it leaves Python alone meanwhile), at most twice as
    many batches are under way, so the memory does not grow with the number of rows.
    """
    _check_fast(tokenizer)
    renderer = Renderer(tokenizer)
    count = max(1, min(MAX_THREADS, threads or cpu_count()))
    source = iter(examples)
    under_way: deque[tuple[list[Any], Future[list[Any]]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="tokenize") as pool:
        try:
            while True:
                while len(under_way) <= 2 * count and (rows := list(islice(source, batch_rows))):
                    rendered = renderer.render(rows, loss_on, system_prompt)
                    under_way.append((rendered, pool.submit(_tokenize, tokenizer, rows, rendered)))
                    if under_way[0][1].done():
                        break
                if not under_way:
                    return
                rendered, future = under_way.popleft()
                yield _to_batch(rendered, future.result())
        finally:
            for _, future in under_way:
                future.cancel()


def render_prompt(
    tokenizer: Any, messages: Iterable[Message], system_prompt: str | None = None, *,
    tools: Sequence[Any] | None = None,
) -> str:  # fmt: skip
    """The text in front of the next answer, exactly as in training. Raises RowProblem.

    Tokenize it with `add_special_tokens=prompt_adds_special_tokens(tokenizer)`.
    """
    return Renderer(tokenizer).prompt(messages, system_prompt, tools)


def prompt_adds_special_tokens(tokenizer: Any) -> bool:
    """A chat template writes the beginning-of-text token itself; without one the tokenizer does."""
    return not tokenizer.chat_template


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Tokens that end an answer: end of text, the model's own list, and the template's turn end."""
    found: list[int] = []
    ends = getattr(generation_config, "eos_token_id", None)
    for token in (tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])):
        if token is not None and token not in found:
            found.append(int(token))
    turn_end = Renderer(tokenizer).turn_end()
    if turn_end is not None and (token := tokenizer.convert_tokens_to_ids(turn_end)) not in found:
        found.append(token)
    return found


def has_generation_markers(tokenizer: Any) -> bool:
    """Whether the chat template itself says what the assistant wrote."""
    return Renderer(tokenizer).has_markers


def _check_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "The model has no fast tokenizer (tokenizer.json)", remedy="Choose a model that has one"
        )


def _no_tokens() -> RowProblem:
    return RowProblem(
        "the tokenizer makes no token of the row", "Remove the row or choose another model"
    )


def _tokenize(
    tokenizer: Any, examples: Sequence[Mapping[str, Any]], rendered: Sequence[Any]
) -> list[tuple[Any, int] | None]:
    """Of each row its encoding and how many of its tokens count; None where there are none."""
    results: list[tuple[Any, int] | None] = [None] * len(rendered)
    for chat in (True, False):
        rows = [
            place for place, item in enumerate(rendered)
            if not isinstance(item, RowProblem)
            and (bool(examples[place].get("messages")) and bool(tokenizer.chat_template)) is chat
        ]  # fmt: skip
        if not rows:
            continue
        texts = [rendered[place][0] for place in rows]
        for place, encoding in zip(rows, _encodings(tokenizer, texts, chat), strict=True):
            count = _count(tokenizer, encoding)
            results[place] = (encoding, count) if count else None
    return results


def _encodings(tokenizer: Any, texts: list[str], chat: bool) -> list[Any]:
    """What the tokenizer's own library makes of the texts.

    Asked directly where the model's class changes nothing on the way: transformers copies each
    encoding into lists, a fifth of the time.
    """
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    plain = all(
        getattr(kind, name, None) is getattr(TokenizersBackend, name)
        for name in ("__call__", "_encode_plus", "set_truncation_and_padding")
    )
    if not plain:  # longer than the model reads is our business: rows are cut and counted
        answer = tokenizer(
            texts, add_special_tokens=not chat, return_attention_mask=False, verbose=False
        )
        return list(answer.encodings)
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None or backend.padding is not None:
        tokenizer.set_truncation_and_padding(
            PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE, max_length=None,
            stride=0, pad_to_multiple_of=None, padding_side=None,
        )  # fmt: skip
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return list(backend.encode_batch(texts, add_special_tokens=not chat))


def _count(tokenizer: Any, encoding: Any) -> int:
    """A tokenizer that adds end-of-text itself doubles ours: keep the one that has characters."""
    count = len(encoding)
    if count < 2:
        return count
    first, last = encoding.token_to_chars(count - 2), encoding.token_to_chars(count - 1)
    if (last is None or last[0] == last[1]) and first is not None and first[0] < first[1]:
        ids = encoding.ids
        if ids[-1] == ids[-2] == tokenizer.eos_token_id:
            return count - 1
    return count


def _learned_ranges(encoding: Any, count: int, text: str, spans: Sequence[Span]) -> list[Span]:
    """Ranges of tokens that the spans of characters cover."""
    ranges: list[Span] = []
    for start, end in spans:
        if end <= start:
            continue
        first = encoding.char_to_token(start)
        behind = None if end >= len(text) else encoding.char_to_token(end)
        if first is None or (behind is None and end < len(text)):
            return _ranges_by_offsets(encoding, count, spans)
        if behind is None:
            behind = count
            while behind and _is_added(encoding, behind - 1):
                behind -= 1
        else:
            while behind < count and _starts_before(encoding, behind, end):
                behind += 1  # it lies across the edge
        ranges.append((first, behind))
    return ranges


def _starts_before(encoding: Any, token: int, end: int) -> bool:
    found = encoding.token_to_chars(token)
    return found is not None and found[0] < end and found[0] < found[1]


def _is_added(encoding: Any, token: int) -> bool:
    """Whether the tokenizer put it there itself: it stands for no character of the text."""
    return bool(encoding.special_tokens_mask[token])


def _ranges_by_offsets(encoding: Any, count: int, spans: Sequence[Span]) -> list[Span]:
    """The same for any text, slower: some tokenizers leave characters out."""
    pairs = numpy.array(encoding.offsets[:count], dtype=numpy.int64).reshape(-1, 2)
    added = numpy.array(encoding.special_tokens_mask[:count], dtype=bool)
    ranges: list[Span] = []
    for start, end in spans:
        inside = (pairs[:, 0] < pairs[:, 1]) & (pairs[:, 1] > start) & (pairs[:, 0] < end)
        places = numpy.flatnonzero(inside)
        if not len(places):
            continue
        first, behind = int(places[0]), int(places[-1]) + 1
        # The other tokens of the last character have no place of their own.
        while behind < count and not added[behind] and pairs[behind, 0] == pairs[behind, 1] <= end:
            behind += 1
        ranges.append((first, behind))
    return ranges


def _to_batch(rendered: Sequence[Any], rows: Sequence[tuple[Any, int] | None]) -> TokenBatch:
    lengths = numpy.zeros(len(rows), numpy.int32)
    problems: dict[int, RowProblem] = {}
    parts: list[numpy.ndarray] = []
    masks: list[numpy.ndarray] = []
    for place, (item, row) in enumerate(zip(rendered, rows, strict=True)):
        if row is None or isinstance(item, RowProblem):
            problems[place] = item if isinstance(item, RowProblem) else _no_tokens()
            continue
        encoding, count = row
        lengths[place] = count
        parts.append(numpy.array(encoding.ids[:count], numpy.int32))
        mask = numpy.zeros(count, numpy.uint8)
        for first, end in _learned_ranges(encoding, count, *item):
            mask[first:end] = 1
        masks.append(mask)
    return TokenBatch(
        ids=numpy.concatenate(parts) if parts else numpy.zeros(0, numpy.int32),
        learned=numpy.concatenate(masks) if masks else numpy.zeros(0, numpy.uint8),
        lengths=lengths,
        problems=problems,
    )
