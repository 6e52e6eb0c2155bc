"""Measuring a model in training without touching the training: held-out loss and sampled answers.

Owns: the mean loss over learned tokens, greedy batched answers, and putting everything back (mode,
random numbers), so that a run gives the same losses whether or not it is measured. Knows nothing
of schedules, files or trainers.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from studio.backend.data import Prompt
from studio.backend.given_back import large_blocks_apart
from studio.backend.tokenize import (
    IGNORED,
    Encoded,
    prompt_adds_special_tokens,
    render_prompt,
    stop_token_ids,
)
from studio.core.examples import RowProblem

MAX_NEW_TOKENS = 96
Context = Callable[[], contextlib.AbstractContextManager[Any]]
Asked = Callable[[], bool]


class GivenUp(Exception):
    """The measurement was left because the run shall end; what it had so far is worth nothing."""


class _StopIfAsked(StoppingCriteria):
    """Ends a generation between two tokens."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._asked(), device=input_ids.device)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt. `truncated`: it had not ended after MAX_NEW_TOKENS."""

    prompt: Prompt
    text: str
    tokens: int
    truncated: bool


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; mode and all random numbers are as before afterwards."""
    was_training = model.training
    states = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def mean_loss(
    model: Any,
    rows: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Context = contextlib.nullcontext,
    give_up: Asked = _never,
) -> float:
    """Mean negative log-likelihood over all learned tokens of the rows, in nats.

    The mean is over tokens, not over batches: it does not depend on how rows are batched. Rows of
    similar length share a batch. `model` must answer `fused_lm_head=True` (trl.add_fused_lm_head).
    Raises GivenUp where `give_up`, asked before each batch, says so.
    """
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    with undisturbed(model):
        for start in range(0, len(ordered), batch_size):
            if give_up():
                raise GivenUp
            batch = collate(ordered[start : start + batch_size], pad_token_id, model.device)
            with autocast():
                output = model(**batch, fused_lm_head=True)
            # log_probs is zero where nothing is learned
            total -= output.log_probs.double().sum().item()
            count += int(output.label_mask.sum().item())
    return total / max(1, count)


def collate(
    rows: Sequence[Encoded], pad_token_id: int, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """Rows padded on the right: input_ids, attention_mask and labels, each (rows, longest)."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([v + [fill] * (longest - len(v)) for v in values], device=device)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    system_prompt: str | None = None,
    autocast: Context = contextlib.nullcontext,
    give_up: Asked = _never,
) -> list[Answer]:
    """The most likely answer to each prompt, all in one batch (padded on the left). Raises GivenUp
    where `give_up`, asked after each token, says so."""
    ids = [_prompt_ids(tokenizer, prompt, system_prompt) for prompt in prompts]
    room = _context_tokens(model) - MAX_NEW_TOKENS
    ids = [row[-room:] if 0 < room < len(row) else row for row in ids]
    longest = max(len(row) for row in ids)
    pad = tokenizer.pad_token_id
    inputs = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=model.device
    )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    stops = stop_token_ids(tokenizer, base.generation_config)
    own_config = _own_generation_config(base, stops, pad)
    with undisturbed(model), autocast(), own_config, large_blocks_apart(), _one_head(base):
        output = model.generate(
            input_ids=inputs, attention_mask=mask, use_cache=True,
            stopping_criteria=StoppingCriteriaList([_StopIfAsked(give_up)]),
        )  # fmt: skip
    if give_up():
        raise GivenUp
    return [
        _answer(tokenizer, prompt, row, stops)
        for prompt, row in zip(prompts, output[:, longest:].tolist(), strict=True)
    ]


@contextlib.contextmanager
def _one_head(base: Any) -> Iterator[None]:
    """Give the output head rows that lie side by side.

    The first token is made from a slice, the last position of each prompt. torch 2.13 multiplies
    such a slice in bf16 on a CPU as a batch and copies the head's matrix for each prompt: 787 MiB
    for 3 prompts and a head of 151,936 x 896 (260 MiB), nothing for rows side by side.
    """
    head = base.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    try:
        yield
    finally:
        hook.remove()


def _prompt_ids(tokenizer: Any, prompt: Prompt, system_prompt: str | None) -> list[int]:
    if prompt.text is not None:
        return list(tokenizer(prompt.text, verbose=False)["input_ids"])
    try:
        text = render_prompt(tokenizer, prompt.messages, system_prompt, tools=prompt.tools)
    except RowProblem:
        text = prompt.shown
    ids = tokenizer(text, add_special_tokens=prompt_adds_special_tokens(tokenizer), verbose=False)[
        "input_ids"
    ]
    return list(ids)


def _context_tokens(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


@contextlib.contextmanager
def _own_generation_config(base: Any, stops: list[int], pad: int) -> Iterator[None]:
    """Greedy, whatever sampling the model's own generation_config.json asks for: unset fields are
    taken from there, and a temperature beside do_sample=False is a warning at each call."""
    before = base.generation_config
    base.generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1, eos_token_id=stops or None,
        pad_token_id=pad,
    )  # fmt: skip
    try:
        yield
    finally:
        base.generation_config = before


def _answer(tokenizer: Any, prompt: Prompt, tokens: list[int], stops: list[int]) -> Answer:
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    kept = tokens if end is None else tokens[:end]
    return Answer(
        prompt=prompt,
        text=tokenizer.decode(kept, skip_special_tokens=True).strip(),
        tokens=len(kept),
        truncated=end is None,
    )
