"""Our own token loop: one answer, one token at a time, and its text as it grows.

With one loop of ours two answers of one model can grow side by side, each with its own key/value
cache, and either stops within one token. Greedy answers equal `model.generate(do_sample=False)`
token for token: the same input preparation, the same processors, the same end tokens.
Knows nothing of adapters, servers or locks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes; beyond this many held tokens the bytes are not a character.
_MAX_HELD_TOKENS = 8


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class TextStream:
    """Text of a growing token sequence, in pieces that are never taken back.

    A byte-level tokenizer may need several tokens for one character: the piece is held until the
    character is whole. The token before is decoded again each time, because some tokenizers write
    the space in front of a word only behind another word.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # first token that is decoded again
        self._read = 0  # tokens before this one have been given out

    def push(self, token: int) -> str:
        """The text that became certain with this token; often empty."""
        self._ids.append(token)
        whole = self._decode(self._ids[self._context :])
        if whole.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
            return ""
        return self._give(whole)

    def finish(self) -> str:
        """What was held back."""
        return self._give(self._decode(self._ids[self._context :]))

    def _give(self, whole: str) -> str:
        given = self._decode(self._ids[self._context : self._read])
        self._context, self._read = self._read, len(self._ids)
        return whole[len(given) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class Answer:
    """One answer in the making. Used from one thread at a time.

    Args:
        model: the transformers model that generates (for a peft model its inner one, which holds
            the adapter's layers too).
        prompt_ids: the tokens in front of the answer.
        stop_ids: tokens that end it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._stop_ids = frozenset(stop_ids)
        self._text = TextStream(tokenizer)
        self._device = model.device
        self._ids = torch.tensor([list(prompt_ids)], device=self._device)
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._processors = build_processors(model.generation_config)
        self._draws = torch.Generator().manual_seed(sampling.seed)
        self._logits_to_keep = (
            {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        )  # the prefill then builds one row of logits, as generate() does
        self._seconds = 0.0
        self.tokens: list[int] = []
        self.is_done = False
        self.truncated = False

    def step(self) -> str:
        """Generate one token; returns the text that became certain with it."""
        if self.is_done:
            return ""
        started = time.perf_counter()
        token = self._next_token()
        self._seconds += time.perf_counter() - started
        if token in self._stop_ids:
            return self._end()
        self.tokens.append(token)
        text = self._text.push(token)
        if len(self.tokens) >= self._sampling.max_tokens:
            self.truncated = True
            text += self._end()
        return text

    @property
    def tokens_per_s(self) -> float:
        """Tokens of this answer by the time spent on it, prefill included."""
        return len(self.tokens) / self._seconds if self._seconds else 0.0

    def _end(self) -> str:
        self.is_done = True
        self._cache = None
        return self._text.finish()

    def _next_token(self) -> int:
        is_first = not self.tokens
        with torch.inference_mode():
            inputs = self._model.prepare_inputs_for_generation(
                self._ids,
                next_sequence_length=None if is_first else 1,
                past_key_values=self._cache,
                attention_mask=torch.ones_like(self._ids),
                is_first_iteration=is_first,
                use_cache=True,
                **self._logits_to_keep,
            )
            logits = self._model(**inputs, return_dict=True).logits[:, -1].float()
            scores = self._processors(self._ids, logits)
            token = choose_token(scores[0], self._sampling, self._draws)
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)
        return token


def choose_token(scores: torch.Tensor, sampling: Sampling, draws: torch.Generator) -> int:
    """The next token of (vocabulary,) scores: the likeliest, or drawn.

    Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): the smallest set of likeliest tokens
    whose probability reaches top_p. Drawn on the CPU, so that a seed means the same everywhere.
    """
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    probabilities = torch.softmax(scores.double().cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=draws))


def build_processors(generation_config: Any) -> LogitsProcessorList:
    """The score changes that a model's own generation_config.json asks for in every mode."""
    processors = LogitsProcessorList()
    penalty = generation_config.repetition_penalty
    if penalty is not None and penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=penalty))
    size = generation_config.no_repeat_ngram_size
    if size is not None and size > 0:
        processors.append(NoRepeatNGramLogitsProcessor(size))
    if generation_config.suppress_tokens is not None:
        processors.append(SuppressTokensLogitsProcessor(generation_config.suppress_tokens))
    return processors
