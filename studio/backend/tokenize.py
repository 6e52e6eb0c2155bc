"""The one place where an example becomes tokens and labels: for the trainer and for the preview.

Owns: rendering with the model's chat template (or without one), which part of it is learned, and
cutting at `max_length`. Knows nothing of data sets, files, batches or training.

What is learned (`loss_on="assistant"`), as spans of characters of the rendered text:
  1. a template with `{% generation %}` says it itself;
  2. else an answer is what the conversation up to it adds to its own prompt:
     render(m[:i+1]) minus render(m[:i], add_generation_prompt=True);
  3. where a template rewrites earlier turns (then 2 finds no common beginning), the answer is
     searched in the rendered text.
In each case the token that ends the turn is learned, or the model would never stop; white space
behind it is not. A token that lies across the edge of a span is learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from studio.core.errors import ModelError
from studio.core.examples import ASSISTANT, SYSTEM, USER, Message, RowProblem

IGNORED = -100  # the label of a token that is not learned, everywhere in torch and transformers
Span = tuple[int, int]
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
    """Like `encode_example` for many, in one call of the tokenizer; a row that the template
    refuses is answered with its RowProblem."""
    rendered: list[tuple[str, list[Span]] | RowProblem] = []
    for example in examples:
        try:
            rendered.append(_render_example(tokenizer, example, loss_on, system_prompt))
        except RowProblem as problem:
            rendered.append(problem)
    tokens = _tokenize(
        tokenizer,
        [None if isinstance(item, RowProblem) else item[0] for item in rendered],
        [_is_chat(tokenizer, example) for example in examples],
    )
    return [
        item if isinstance(item, RowProblem) else _label(item[0], item[1], *pair, max_length)
        for item, pair in zip(rendered, tokens, strict=True)
    ]


def with_system(messages: Iterable[Message], system_prompt: str | None) -> list[Message]:
    """The messages, with the system prompt in front where there is none."""
    result = [dict(message) for message in messages]
    if system_prompt and not any(message["role"] == SYSTEM for message in result):
        result.insert(0, {"role": SYSTEM, "content": system_prompt})
    return result


def render_prompt(
    tokenizer: Any, messages: Iterable[Message], system_prompt: str | None = None
) -> str:
    """The text in front of the next answer, exactly as in training. Raises RowProblem.

    Tokenize it with `add_special_tokens=prompt_adds_special_tokens(tokenizer)`.
    """
    turns = with_system(messages, system_prompt)
    if not tokenizer.chat_template:
        return _plain(tokenizer, turns)[0]
    return _render(tokenizer, turns, prompt=True)


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
    turn_end = _turn_end_id(tokenizer)
    if turn_end is not None and turn_end not in found:
        found.append(turn_end)
    return found


def has_generation_markers(tokenizer: Any) -> bool:
    """Whether the chat template itself says what the assistant wrote."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return bool(_MARKER.search(template))


def _turn_end_id(tokenizer: Any) -> int | None:
    """The special token right behind an answer in the template, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}]
    try:
        text, spans = _render_example(tokenizer, {"messages": turns}, "assistant", None)
    except RowProblem:
        return None
    if not spans:
        return None
    special = [t for t in _special_tokens(tokenizer) if text[: spans[-1][1]].endswith(t)]
    return tokenizer.convert_tokens_to_ids(max(special, key=len)) if special else None


def _is_chat(tokenizer: Any, example: Mapping[str, Any]) -> bool:
    return bool(example.get("messages")) and bool(tokenizer.chat_template)


def _render_example(
    tokenizer: Any, example: Mapping[str, Any], loss_on: str, system_prompt: str | None
) -> tuple[str, list[Span]]:
    """Text and learned spans of one example."""
    messages = example.get("messages")
    if not messages:
        text = example.get("text") or ""
        if not text.strip():
            raise RowProblem("the row has no text", "Fill it in or remove the row")
        text += tokenizer.eos_token or ""
        return text, [(0, len(text))]
    turns = with_system(messages, system_prompt)
    if not tokenizer.chat_template:
        text, spans = _plain(tokenizer, turns)
    else:
        text, spans = _render_chat(tokenizer, turns)
    return text, [(0, len(text))] if loss_on == "all" else spans


def _plain(tokenizer: Any, turns: Sequence[Message]) -> tuple[str, list[Span]]:
    """Without a template: each message on its own lines, each answer closed by end-of-text."""
    text, spans = "", []
    for turn in turns:
        start = len(text)
        if turn["role"] == ASSISTANT:
            text += turn["content"] + (tokenizer.eos_token or "")
            spans.append((start, len(text)))
            text += "" if turn is turns[-1] else "\n"
        else:
            text += turn["content"] + "\n"
    return text, spans


def _render_chat(tokenizer: Any, turns: list[Message]) -> tuple[str, list[Span]]:
    """Rendered conversation and the spans of its answers with their end tokens."""
    special = _special_tokens(tokenizer)
    text, spans = "", []
    if has_generation_markers(tokenizer):
        text, spans = _render(tokenizer, turns, marks=True)
    if not spans:
        text = _render(tokenizer, turns)
        spans = _spans_by_prefix(tokenizer, turns, text, special)
    spans = [_with_end_token(text, span, special) for span in spans]
    if spans and turns[-1]["role"] == ASSISTANT and tokenizer.eos_token:
        start, end = spans[-1]
        if not any(text[:end].endswith(token) for token in special):
            # No end-of-turn in this template: end of text stands in, or it would never stop.
            text = text[:end] + tokenizer.eos_token
            spans[-1] = (start, len(text))
    return text, spans


def _render(
    tokenizer: Any, turns: list[Message], *, prompt: bool = False, marks: bool = False
) -> Any:
    """The template's text; with `marks` also the spans that it marks itself.

    A template that knows no system role gets its text in front of the first user message.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    def once(messages: list[Message]) -> Any:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **tokenizer.special_tokens_map,
        )
        return (texts[0], [tuple(span) for span in spans[0]]) if marks else texts[0]

    try:
        return once(turns)
    except TemplateError as error:
        folded = _fold_system(turns)
        if folded is not None:
            try:
                return once(folded)
            except TemplateError:
                pass  # the first error says it better
        raise RowProblem(
            f"the model's chat template refuses the conversation ({error})",
            "Change the roles of the row or choose another model",
        ) from error


def _fold_system(turns: list[Message]) -> list[Message] | None:
    if len(turns) < 2 or turns[0]["role"] != SYSTEM or turns[1]["role"] != USER:
        return None
    joined = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    return [{"role": USER, "content": joined}, *turns[2:]]


def _spans_by_prefix(
    tokenizer: Any, turns: list[Message], text: str, special: Sequence[str]
) -> list[Span]:
    """Spans of the answers for a template without markers (rules 2 and 3 of the module)."""
    spans: list[Span] = []
    cursor = 0
    for index, turn in enumerate(turns):
        if turn["role"] != ASSISTANT:
            continue
        content = turn["content"].strip()
        head = _try_render(tokenizer, turns[:index], prompt=True) if index else None
        whole = text if index == len(turns) - 1 else _try_render(tokenizer, turns[: index + 1])
        if head and text.startswith(head):
            start = len(head)
        else:
            start = text.find(content, cursor)
            if start < 0:
                continue  # the template left this answer out
        found = text.find(content, start)
        if whole is not None and len(whole) > start and text.startswith(whole):
            end = len(whole)
        elif found >= 0:
            end = found + len(content)
        else:  # rewritten: it reaches to the token that ends the turn
            end = min((at for t in special if (at := text.find(t, start)) > 0), default=start)
        if end <= start:
            continue
        end = start + len(text[start:end].rstrip())
        spans.append((start, end))
        cursor = end
    return spans


def _try_render(tokenizer: Any, turns: list[Message], *, prompt: bool = False) -> str | None:
    try:
        return _render(tokenizer, turns, prompt=prompt)
    except RowProblem:
        return None


def _with_end_token(text: str, span: Span, special: Sequence[str]) -> Span:
    """The span, with the special token that follows it where it has none at its end."""
    start, end = span
    if any(text[start:end].endswith(token) for token in special):
        return span
    behind = text[end:]
    gap = len(behind) - len(behind.lstrip())
    follows = [token for token in special if behind[gap:].startswith(token)]
    return (start, end + gap + len(max(follows, key=len))) if follows else span


def _special_tokens(tokenizer: Any) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    found = {str(token) for token in added.values() if getattr(token, "special", False)}
    return sorted({*found, *map(str, tokenizer.all_special_tokens)} - {""})


def _tokenize(
    tokenizer: Any, texts: Sequence[str | None], chats: Sequence[bool]
) -> list[tuple[list[int], list[Span]]]:
    """Token ids and character offsets of each text; a None gives an empty pair."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "The model has no fast tokenizer (tokenizer.json)", remedy="Choose a model that has one"
        )
    result: list[tuple[list[int], list[Span]]] = [([], [])] * len(texts)
    for chat in (True, False):
        rows = [i for i, text in enumerate(texts) if text is not None and chats[i] is chat]
        if not rows:
            continue
        encoded = tokenizer(
            [texts[i] for i in rows],
            add_special_tokens=not chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # longer than the model reads is our business: rows are cut and counted
        )
        for i, ids, offsets in zip(
            rows, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            result[i] = _one_end(tokenizer, ids, [tuple(pair) for pair in offsets])
    return result


def _one_end(tokenizer: Any, ids: list[int], offsets: list[Span]) -> tuple[list[int], list[Span]]:
    """A tokenizer that adds end-of-text itself doubles ours: keep the one that has characters."""
    end = tokenizer.eos_token_id
    if len(ids) > 1 and ids[-1] == ids[-2] == end and offsets[-1][0] == offsets[-1][1]:
        return ids[:-1], offsets[:-1]
    return ids, offsets


def _label(
    text: str, spans: list[Span], ids: list[int], offsets: list[Span], max_length: int | None
) -> Encoded:
    labels, position = [], 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        while position < len(spans) and spans[position][1] <= start:
            position += 1
        inside = position < len(spans) and start < end and end > spans[position][0]
        labels.append(token if inside else IGNORED)
    edge = len(ids) if max_length is None else max_length
    return Encoded(ids[:edge], labels[:edge], text, offsets, ids[edge:])
