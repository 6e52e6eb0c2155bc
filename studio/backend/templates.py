"""Chat templates of foreign models, rendered by a limited process (`backend.template_child`).

Owns that process: starting it, handing it one conversation at a time, and ending it where a
template takes too much time or memory. Every rendering of the trainer, the preview and the chat
goes through here; no template is ever run in a process that holds a model or data. Thread safe.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from studio.core.errors import ModelError, StudioError
from studio.core.examples import RowProblem

MAX_SOURCE_BYTES = 64 << 10
MAX_TEXT_CHARS = 1 << 20  # or twice the conversation, where that is more
MAX_ROW_CHARS = 8 << 20
CPU_S = 1.0  # of one rendering; an honest one takes a thousandth
MEMORY_BYTES = 512 << 20
# By the clock, for a process that others keep from the processor. It cannot sleep by itself.
WALL_S = 30.0
_POLL_S = 0.05
_CHILD = Path(__file__).with_name("template_child.py")
_REMEDY = "Choose another model, or correct its chat_template.jinja"
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")

Span = tuple[int, int]


class TemplateProcess:
    """The process that renders; started when first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the process, or an error of the same shape where it had to be ended."""
        return self.ask_many([request])[0]

    def ask_many(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to all, in order; the process goes on to the next without waiting for us.

        Behind a limit that was reached nothing more is asked: the rest has that answer too.
        """
        lines = [
            json.dumps(request, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
            for request in requests
        ]
        answers: list[dict[str, Any]] = []
        with self._lock:
            for _ in range(2):
                for answer in self._try(lines[len(answers) :]):
                    answers.append(answer)
                    if answer.get("error", {}).get("kind") == "limit":
                        self._end()  # its memory may be in pieces; a new one takes 0.1 s
                        return answers + [answer] * (len(lines) - len(answers))
                if len(answers) == len(lines):
                    return answers
        ended = _failure("the process that renders it ended")
        return answers + [ended] * (len(lines) - len(answers))

    def close(self) -> None:
        """End the process. Idempotent; the next rendering starts it again."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked copy of this process: the pipe belongs to the original."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # not ours to wait for
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        os.close(stream.fileno())

    def _try(self, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        """One attempt: an answer for each line, fewer where the process ended before."""
        process = self._started()
        watched = psutil.Process(process.pid)
        began_s, used_s = time.monotonic(), _cpu_s(watched)
        # Written by a thread: a template that never ends must not hold us in a full pipe.
        threading.Thread(
            target=_write_lines, args=(process, lines), name="template rows", daemon=True
        ).start()
        missing = len(lines)
        while missing:
            line = self._next_line()
            if line:
                missing -= 1
                yield dict(json.loads(line))
                began_s, used_s = time.monotonic(), None
                continue
            if line == b"":  # it ended: by somebody's signal, or by a template that broke it
                self._end()
                return
            if used_s is None:  # it is asked for only where an answer lets us wait
                used_s = _cpu_s(watched)
            spent_s = _cpu_s(watched) - used_s
            if why := _excess(watched, spent_s, time.monotonic() - began_s):
                self._end()
                yield _failure(why)
                return

    def _next_line(self) -> bytes | None:
        """The next line; b"" behind the last one, None where there is none yet."""
        try:
            return self._lines.get(timeout=_POLL_S)
        except queue.Empty:
            return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        kept = {
            name: value for name, value in os.environ.items()
            if not any(word in name.upper() for word in _SECRET_WORDS)
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(CPU_S), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept,
        )  # fmt: skip
        self._process, self._lines = process, queue.SimpleQueue()
        threading.Thread(
            target=_read_lines, args=(process, self._lines), name="templates", daemon=True
        ).start()
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):  # a broken pipe has nothing left to write
            _stream(process.stdin).close()  # the other one is closed by its reader


def _failure(message: str) -> dict[str, Any]:
    return {"error": {"kind": "limit", "message": message, "line": None}}


def _write_lines(process: subprocess.Popen[bytes], lines: Sequence[bytes]) -> None:
    """In a thread. Where the process is gone its missing answers tell."""
    with contextlib.suppress(OSError, ValueError):
        sink = _stream(process.stdin)
        sink.write(b"\n".join(lines) + b"\n")
        sink.flush()


def _read_lines(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """In a thread: a pipe cannot be waited for with a limit on every system."""
    source = _stream(process.stdout)
    with contextlib.suppress(OSError, ValueError), source:
        for line in source:
            lines.put(line)
    lines.put(b"")
    process.wait()  # one that ended by itself must not stay a zombie until the next question


def _stream(stream: Any) -> Any:
    if stream is None:
        raise StudioError("The process that renders chat templates has no pipe")
    return stream


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return 0.0


def _excess(process: psutil.Process, spent_s: float, wall_s: float) -> str | None:
    """What it takes too much of; the process itself notices most of it a moment before."""
    if spent_s > CPU_S + 0.3 or wall_s > WALL_S:
        return f"it takes more than {CPU_S:g} s of processor time"
    try:
        full = process.memory_info().rss > MEMORY_BYTES
    except psutil.Error:
        full = False  # it has just ended, which the next look tells
    return "it needs more memory than a template may have" if full else None


_PROCESS = TemplateProcess()
atexit.register(_PROCESS.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forget)


def template_of(tokenizer: Any) -> str:
    """The tokenizer's default chat template, "" where it has none. Raises ModelError."""
    if not tokenizer.chat_template:
        return ""
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            "The model has several chat templates and none is called default", remedy=_REMEDY
        ) from error
    if not isinstance(source, str):
        raise ModelError(
            "The model's chat template is no text", value=type(source).__name__, remedy=_REMEDY
        )
    return check_source(source)


def check_source(source: str) -> str:
    """The template, if it is not longer than any honest one. Raises ModelError."""
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise ModelError(
            "The model's chat template is too long", value=f"{len(source):,} characters",
            allowed=f"{MAX_SOURCE_BYTES >> 10} KiB", remedy=_REMEDY,
        )  # fmt: skip
    return source


@dataclass(frozen=True)
class Conversation:
    """One thing to render.

    Attributes:
        prompt: end with the beginning of the next answer.
        marks: also the spans that the template marks as the assistant's.
        tools: JSON schemas of the functions that the conversation may call.
    """

    turns: Sequence[Mapping[str, Any]]
    prompt: bool = False
    marks: bool = False
    tools: Sequence[Any] | None = None


Rendered = tuple[str, list[Span]]


def render_chat(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, prompt: bool = False, marks: bool = False
) -> tuple[str, list[Span]]:
    """`render_template` with the tokenizer's own template and special tokens."""
    return render_template(
        template_of(tokenizer), turns, prompt=prompt, marks=marks,
        context=tokenizer.special_tokens_map,
    )  # fmt: skip


def render_template(
    source: str,
    turns: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    prompt: bool = False,
    marks: bool = False,
    context: Mapping[str, Any],
) -> tuple[str, list[Span]]:
    """A conversation as the template writes it, as transformers would, in the limited process.

    Args:
        prompt: end with the beginning of the next answer.
        marks: also the spans that the template marks as the assistant's.
        context: what else the template may name: the special tokens.

    Raises:
        RowProblem: the template refuses this conversation, or fails on it.
        ModelError: it takes too much time, memory or space: no other row will do better.
    """
    [answer] = render_all(source, [Conversation(turns, prompt, marks, tools)], context)
    if isinstance(answer, RowProblem):
        raise answer
    return answer


def render_chats(
    tokenizer: Any, conversations: Sequence[Conversation]
) -> list[Rendered | RowProblem]:
    """`render_all` with the tokenizer's own template and special tokens."""
    return render_all(template_of(tokenizer), conversations, tokenizer.special_tokens_map)


def render_all(
    source: str, conversations: Sequence[Conversation], context: Mapping[str, Any]
) -> list[Rendered | RowProblem]:
    """Many conversations; the RowProblem of each that the template refuses or fails on.

    Raises:
        ModelError: it takes too much time, memory or space: no other row will do better.
    """
    check_source(source)
    context = dict(context)
    requests = [_request(source, one, context) for one in conversations]
    asked = [request for request in requests if not isinstance(request, RowProblem)]
    answers = iter(_PROCESS.ask_many(asked) if asked else [])
    return [
        request if isinstance(request, RowProblem) else _result(next(answers))
        for request in requests
    ]


def _request(
    source: str, one: Conversation, context: Mapping[str, Any]
) -> dict[str, Any] | RowProblem:
    size = _chars([*one.turns, *(one.tools or ())])
    if size > MAX_ROW_CHARS:
        return RowProblem(
            f"the conversation has {size:,} characters, more than a template is given",
            "Split it into shorter ones",
        )
    return {
        "template": source, "messages": [_with_reasoning(turn) for turn in one.turns],
        "tools": list(one.tools) if one.tools else None, "add_generation_prompt": one.prompt,
        "marks": one.marks, "context": context, "limit_chars": max(MAX_TEXT_CHARS, 2 * size),
    }  # fmt: skip


def _chars(value: Any) -> int:
    """About how many characters a value has as JSON, without writing it."""
    if isinstance(value, str):
        return len(value) + 4
    if isinstance(value, Mapping):
        return sum(_chars(key) + _chars(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(_chars, value))
    return 24


def _result(answer: Mapping[str, Any]) -> Rendered | RowProblem:
    error = answer.get("error")
    if error is None:
        return answer["text"], [(start, end) for start, end in answer["spans"]]
    line = f" (line {error['line']} of the template)" if error.get("line") else ""
    if error["kind"] == "limit":
        raise ModelError(
            f"The model's chat template cannot be used: {error['message']}{line}", remedy=_REMEDY
        )
    return RowProblem(
        f"the model's chat template refuses the conversation: {error['message']}{line}",
        "Change the roles of the row or choose another model",
    )


def _with_reasoning(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Reasoning under each name that templates know, as transformers hands it to them."""
    names = ("reasoning_content", "thinking", "reasoning")
    found = next((turn[name] for name in names if turn.get(name) is not None), None)
    if found is None:
        return dict(turn)
    return {"thinking": found, **turn, "reasoning_content": found}
