"""From an example to the text that a model reads, with the spans of characters that it learns.

Owns which part of a rendered conversation is learned, and what stands in for a chat template where
there is none. The rendering itself is `backend.templates`'; `backend.tokenize` turns text and spans
into tokens. Knows nothing of tokens, data sets or training.

What is learned (`loss_on="assistant"`), as spans of characters of the rendered text:
  1. a template with `{% generation %}` says it itself;
  2. else an answer is what the conversation up to it adds to its own prompt:
     render(m[:i+1]) minus render(m[:i], add_generation_prompt=True);
  3. where a template rewrites earlier turns (then 2 finds no common beginning), the answer is
     searched in the rendered text.
In each case the token that ends the turn is learned, or the model would never stop; white space
behind it is not. An answer with `"weight": 0` is rendered like the others and not learned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from studio.backend.templates import Conversation, Rendered, Span, render_chats, template_of
from studio.core.examples import ASSISTANT, SYSTEM, TOOL, USER, RowProblem

Turn = dict[str, Any]
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class _Row:
    """A conversation on its way; `asked` are the places of its renderings in the batch."""

    turns: list[Turn]
    tools: Sequence[Any] | None
    asked: range


class Renderer:
    """The chat text of one tokenizer. Cheap to make; what it looks up is looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = template_of(tokenizer)
        self._eos = str(tokenizer.eos_token or "")

    @cached_property
    def special(self) -> list[str]:
        """Texts of the special tokens. Not the padding token as such: it is chosen late, and what
        a row teaches must not depend on it."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}) or {}
        found = {str(token) for token in added.values() if getattr(token, "special", False)}
        named = {
            text for name, text in self._tokenizer.special_tokens_map.items()
            if name != "pad_token"
        }  # fmt: skip
        extra = map(str, getattr(self._tokenizer, "extra_special_tokens", None) or ())
        return sorted({*found, *named, *extra} - {""})

    @cached_property
    def has_markers(self) -> bool:
        """Whether the chat template itself says what the assistant wrote."""
        return bool(_MARKER.search(self._template))

    def render(
        self, examples: Sequence[Mapping[str, Any]], loss_on: str, system_prompt: str | None
    ) -> list[Rendered | RowProblem]:
        """Text and learned spans of each example, or why it cannot be used.

        All are rendered in one go, for each question to the process of the templates takes time.
        """
        results: list[Rendered | RowProblem | None] = []
        rows: dict[int, _Row] = {}
        wanted: list[Conversation] = []
        for place, example in enumerate(examples):
            try:
                found = self._without_template(example, system_prompt)
            except RowProblem as problem:
                found = problem
            results.append(found)
            if found is None:
                turns = with_system(example["messages"], system_prompt)
                asked = self._questions(turns, example.get("tools") or None)
                rows[place] = _Row(
                    turns, example.get("tools") or None,
                    range(len(wanted), len(wanted) + len(asked)),
                )  # fmt: skip
                wanted += asked
        answers = self._answers(wanted)
        for place, row in rows.items():
            results[place] = _with_tools(row, self._read(row, [answers[i] for i in row.asked]))
        return [
            (found[0], [(0, len(found[0]))])
            if loss_on == "all" and isinstance(found, tuple) else found
            for found in results
        ]  # fmt: skip

    def prompt(
        self, messages: Iterable[Mapping[str, Any]], system_prompt: str | None,
        tools: Sequence[Any] | None = None,
    ) -> str:  # fmt: skip
        """The text in front of the next answer, exactly as in training. Raises RowProblem."""
        turns = with_system(messages, system_prompt)
        if not self._template:
            return self._plain(turns)[0]
        asked = [_for_template(turn) for turn in turns]
        [found] = self._answers([Conversation(asked, prompt=True, tools=tools)])
        if isinstance(found, RowProblem):
            raise found
        return found[0]

    def turn_end(self) -> str | None:
        """The special token right behind an answer in the template, if there is one."""
        if not self._template:
            return None
        turns = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}]
        [found] = self.render([{"messages": turns}], ASSISTANT, None)
        if isinstance(found, RowProblem) or not found[1]:
            return None
        before = found[0][: found[1][-1][1]]
        return max((t for t in self.special if before.endswith(t)), key=len, default=None)

    def _without_template(
        self, example: Mapping[str, Any], system_prompt: str | None
    ) -> Rendered | None:
        """Plain text, and conversations of a model without a template; None for the others."""
        messages = example.get("messages")
        if not messages:
            text = example.get("text") or ""
            if not text.strip():
                raise RowProblem("the row has no text", "Fill it in or remove the row")
            # One end is enough where the text has brought its own.
            text += "" if self._eos and text.endswith(self._eos) else self._eos
            return text, [(0, len(text))]
        called = any(turn.get("tool_calls") for turn in messages)
        for used, word, what in (
            (example.get("tools"), "tools", "tools"), (called, "tool_calls", "tool calls"),
        ):  # fmt: skip
            if used and word not in self._template:  # else the answer is learned without its cause
                raise RowProblem(
                    f"the model's chat template knows no {what}",
                    "Choose a model whose template does, or remove them from the row",
                )
        return None if self._template else self._plain(with_system(messages, system_prompt))

    def _plain(self, turns: Sequence[Turn]) -> Rendered:
        """Without a template: each message on its own lines, each answer closed by end-of-text."""
        text, spans = "", []
        for turn in turns:
            start = len(text)
            if turn["role"] == ASSISTANT:
                text += _content(turn) + self._eos
                if _is_learned(turn):
                    spans.append((start, len(text)))
                text += "" if turn is turns[-1] else "\n"
            else:
                text += _content(turn) + "\n"
        return text, spans

    def _questions(
        self, turns: list[Turn], tools: Sequence[Any] | None, *, marks: bool | None = None
    ) -> list[Conversation]:
        """The whole conversation; without markers also what is needed to tell answers apart:
        of each answer its prompt and, unless it is the last turn, the conversation up to it."""
        marks = self.has_markers if marks is None else marks
        turns = [_for_template(turn) for turn in turns]
        asked = [Conversation(turns, marks=marks, tools=tools)]
        if marks:
            return asked
        for index in _answer_places(turns):
            if index:
                asked.append(Conversation(turns[:index], prompt=True, tools=tools))
            if index < len(turns) - 1:
                asked.append(Conversation(turns[: index + 1], tools=tools))
        return asked

    def _answers(self, wanted: Sequence[Conversation]) -> list[Rendered | RowProblem]:
        """The template's texts. One that refuses the system role, or leaves it out without a word,
        gets its text in front of the first user message."""
        answers = render_chats(self._tokenizer, wanted) if wanted else []
        again = {
            place: folded for place, (one, found) in enumerate(zip(wanted, answers, strict=True))
            if (folded := _fold_system(one.turns)) is not None
            and (isinstance(found, RowProblem) or _content(one.turns[0]).strip() not in found[0])
        }  # fmt: skip
        if again:
            second = render_chats(
                self._tokenizer,
                [replace(wanted[place], turns=turns) for place, turns in again.items()],
            )
            for place, found in zip(again, second, strict=True):
                if not isinstance(found, RowProblem):  # else the first problem says it better
                    answers[place] = found
        return answers

    def _read(self, row: _Row, answers: list[Rendered | RowProblem]) -> Rendered | RowProblem:
        """Text and spans of a conversation, each answer with its end token."""
        whole = answers[0]
        if isinstance(whole, RowProblem):
            return whole
        text, spans = whole
        turns = row.turns
        learned = [_is_learned(turns[index]) for index in _answer_places(turns)]
        if not all(learned) and len(spans) == len(learned):
            spans = [span for span, wanted in zip(spans, learned, strict=True) if wanted]
        elif not spans or not all(learned):
            if self.has_markers:  # the template marked nothing, or not answer by answer
                answers = self._answers(self._questions(turns, row.tools, marks=False))
            spans = self._spans_by_prefix(
                turns, text, [None if isinstance(a, RowProblem) else a[0] for a in answers[1:]]
            )
        spans = [_with_end_token(text, span, self.special) for span in spans]
        if spans and turns[-1]["role"] == ASSISTANT and _is_learned(turns[-1]) and self._eos:
            start, end = spans[-1]
            if not any(text[:end].endswith(token) for token in self.special):
                # No end-of-turn in this template: end of text stands in, or it would never stop.
                text = text[:end] + self._eos
                spans[-1] = (start, len(text))
        return text, spans

    def _spans_by_prefix(
        self, turns: list[Turn], text: str, parts: Sequence[str | None]
    ) -> list[Span]:
        """Spans of the answers for a template without markers (rules 2 and 3 of the module).

        Args:
            parts: the renderings that `_questions` asks for behind the first.
        """
        spans: list[Span] = []
        rendered = iter(parts)
        cursor = 0
        for index in _answer_places(turns):
            content = _content(turns[index]).strip()
            head = next(rendered) if index else None
            whole = next(rendered) if index < len(turns) - 1 else text
            if head and text.startswith(head):
                start = len(head)
            else:
                start = text.find(content, cursor)
                if start < 0 or not content:
                    continue  # the template left this answer out
            found = text.find(content, start)
            if whole is not None and len(whole) > start and text.startswith(whole):
                end = len(whole)
            elif found >= 0 and content:
                end = found + len(content)
            else:  # rewritten: it reaches to the token that ends the turn
                ends = [at for t in self.special if (at := text.find(t, start)) > 0]
                end = min(ends, default=start)
            end = start + len(text[start:end].rstrip())
            if end > start:
                if _is_learned(turns[index]):
                    spans.append((start, end))
                cursor = end
        return spans


def with_system(messages: Iterable[Mapping[str, Any]], system_prompt: str | None) -> list[Turn]:
    """The messages, with the system prompt in front where there is none."""
    result = [dict(message) for message in messages]
    if system_prompt and not any(message["role"] == SYSTEM for message in result):
        result.insert(0, {"role": SYSTEM, "content": system_prompt})
    return result


def _answer_places(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    return [index for index, turn in enumerate(turns) if turn["role"] == ASSISTANT]


def _is_learned(turn: Mapping[str, Any]) -> bool:
    return turn.get("weight") != 0


def _for_template(turn: Turn) -> Turn:
    """The turn as templates know it: without our weight, and a call without words has none."""
    kept = {key: value for key, value in turn.items() if key != "weight"}
    return {**kept, "content": kept.get("content") or None} if kept.get("tool_calls") else kept


_WORD = re.compile(r"[A-Za-z0-9]+")


def _with_tools(row: _Row, found: Rendered | RowProblem) -> Rendered | RowProblem:
    """The rendering, unless the template left tools out without a word: then answers would be
    learned without their cause."""
    if isinstance(found, RowProblem):
        return found
    wanted = [tool.get("function", tool).get("name") for tool in row.tools or ()]
    for turn in row.turns:
        wanted += [call["function"]["name"] for call in turn.get("tool_calls") or ()]
        if turn["role"] == TOOL:
            wanted.append(max(_WORD.findall(_content(turn)), key=len, default=""))
    # A name stands once for its schema and once for each call.
    if all(found[0].count(text) >= times for text, times in Counter(wanted).items() if text):
        return found
    return RowProblem(
        "the model's chat template leaves tools out of the text",
        "Choose a model whose template writes them, or remove them from the row",
    )


def _content(turn: Mapping[str, Any]) -> str:
    """A message's text; a call of a tool may have none."""
    content = turn.get("content")
    return content if isinstance(content, str) else ""


def _fold_system(turns: Sequence[Mapping[str, Any]]) -> list[Turn] | None:
    if len(turns) < 2 or turns[0]["role"] != SYSTEM or turns[1]["role"] != USER:
        return None
    joined = f"{_content(turns[0])}\n\n{_content(turns[1])}"
    return [{"role": USER, "content": joined}, *map(dict, turns[2:])]


def _with_end_token(text: str, span: Span, special: Sequence[str]) -> Span:
    """The span, with the special token that follows it where it has none at its end."""
    start, end = span
    if any(text[start:end].endswith(token) for token in special):
        return span
    behind = text[end:]
    gap = len(behind) - len(behind.lstrip())
    follows = [token for token in special if behind[gap:].startswith(token)]
    return (start, end + gap + len(max(follows, key=len))) if follows else span
