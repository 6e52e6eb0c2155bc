"""Rows from JSON: lines, an array, objects one after another, or an object that wraps them.

Streams: at most one row and one block of text are in memory. Broken lines of JSON lines are
problems of that line; a break inside one big document makes the rest unreadable, so it is an error
of the file, with its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from studio.core.examples import RowProblem, shown
from studio.core.turns import is_turn
from studio.services.source_bytes import CHUNK_BYTES, MAX_ROW_CHARS, file_error

Opener = Callable[[], TextIO]
# (line in the file or None, row or what is wrong with it)
NumberedRow = tuple[int | None, "dict[str, Any] | RowProblem"]

PROBED_LINES = 20
_BLANKS = re.compile("[ \t\r\n\ufeff]*")
SPLIT_NAMES = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
WRAPPER_NAMES = ("data", "rows", "examples", "items", "records", "samples", "instances")


_BROKEN_NAME = RowProblem("a column's name holds broken characters", "Save the file again as UTF-8")


def _can_be_written(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class JsonParser:
    """Python's JSON decoder, which alone would silently keep the last of two equal keys.

    Attributes:
        twice: a key that stood twice in one object of the last value, else None.
    """

    def __init__(self) -> None:
        self.twice: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            self.twice = next(key for key in keys if keys.count(key) > 1)
        return found

    def whole(self, text: str) -> Any:
        """The value that is the whole text."""
        self.twice = None
        return self._decoder.decode(text)

    def first(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends."""
        self.twice = None
        return self._decoder.raw_decode(text, at)

    def as_row(self, value: Any) -> dict[str, Any] | RowProblem:
        """The last value as a row."""
        if self.twice is not None:
            return RowProblem(
                f"the key {self.twice[:40]!r} stands twice in one object", "Remove one of the two"
            )
        return as_row(value)


def as_row(value: Any) -> dict[str, Any] | RowProblem:
    """One JSON value as a row: objects as they are, a text and a list of turns by their kind."""
    if isinstance(value, dict):
        names = "".join(value)
        return value if names.isascii() or _can_be_written(names) else _BROKEN_NAME
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {"messages": value}
    kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return RowProblem(f"the row is {kind}, not an object", "Write each row as a JSON object")


def is_json_lines(open_text: Opener) -> bool:
    """Whether a text that begins like an object holds one object a line.

    True where at least two of the first lines stand, or where one line does and more follow.
    """
    whole = lines = 0
    with open_text() as stream:
        for _ in range(PROBED_LINES):
            line = stream.readline(MAX_ROW_CHARS)
            if not line:
                break
            if line.strip():
                lines += 1
                whole += _is_object(line)
    return whole > 0 and lines > 1


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_json_lines(open_text: Opener) -> Iterator[NumberedRow]:
    """One row a line; blank lines are no rows."""
    number, parser = 0, JsonParser()
    with open_text() as stream:
        while line := stream.readline(MAX_ROW_CHARS):
            number += 1
            if not line.strip():
                continue
            if len(line) >= MAX_ROW_CHARS and not line.endswith("\n"):
                while line and not line.endswith("\n"):
                    line = stream.readline(MAX_ROW_CHARS)
                yield number, RowProblem("the line is longer than 16 MiB", "Split the row")
                continue
            yield number, _parse_line(line, parser)


def _parse_line(line: str, parser: JsonParser) -> dict[str, Any] | RowProblem:
    try:
        return parser.as_row(parser.whole(line))
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        return RowProblem(
            f"not valid JSON: {what} at column {error.colno}", "Correct or remove the line"
        )
    except ValueError:  # a number of thousands of digits
        return RowProblem("not valid JSON: a number is too long", "Correct or remove the line")
    except RecursionError:
        return RowProblem("the JSON is nested too deeply", "Correct or remove the line")


class JsonText:
    """A cursor over one big JSON text, value by value."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._parser = JsonParser()
        self.line = 1

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            self._advance(_BLANKS.match(self._buffer, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._fill():
                return ""

    def take(self, allowed: str) -> str:
        """Step over one of the allowed characters."""
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(repr(character) for character in allowed)
            raise self.error(f"expected {wanted}" if found else "the file ends in the middle")
        self._advance(self._at + 1)
        return found

    def value(self) -> Any:
        """The next value; reads on only as far as it needs."""
        if not self.peek():
            raise self.error("the file ends in the middle")
        while True:
            try:
                value, end = self._parser.first(self._buffer, self._at)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self._buffer) - 16
                if not (near_end or error.msg.startswith("Unterminated")) or not self._fill():
                    what = error.msg.removesuffix(" at")
                    raise self.error(f"not valid JSON: {what}", at=error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.error("not valid JSON: nested too deeply or too long") from error
            else:
                if end < len(self._buffer) or isinstance(value, (dict, list, str)):
                    self._advance(end)
                    return value
                if not self._fill():  # a number may go on in the next block
                    self._advance(end)
                    return value

    def row(self) -> dict[str, Any] | RowProblem:
        """The next value as a row."""
        return self._parser.as_row(self.value())

    def rows(self) -> Iterator[NumberedRow]:
        """(line, row) of the array that begins here."""
        return self._each(self.row)

    def elements(self) -> Iterator[tuple[int, Any]]:
        """(line, value) of the array that begins here."""
        return self._each(self.value)

    def _each(self, read: Callable[[], Any]) -> Iterator[tuple[int, Any]]:
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.peek()
            line = self.line
            yield line, read()
            if self.take(",]") == "]":
                return

    def error(self, reason: str, *, at: int | None = None) -> Exception:
        """A DatasetError at the cursor, or at a place in the block that follows it."""
        line = self.line + (self._buffer.count("\n", self._at, at) if at is not None else 0)
        return file_error(
            self._name, reason, line=line, remedy="Correct the JSON there or export it again"
        )

    def _advance(self, to: int) -> None:
        self.line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _fill(self) -> bool:
        """Read on; the blocks grow with the value, so long values are not parsed too often."""
        if self._ended:
            return False
        pending = len(self._buffer) - self._at
        if pending > MAX_ROW_CHARS:
            raise self.error("a value is longer than 16 MiB")
        more = self._stream.read(max(CHUNK_BYTES, pending))
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        self._ended = not more
        return bool(more)


@dataclass(frozen=True)
class JsonShape:
    """How a JSON document holds its rows.

    Attributes:
        kind: array, objects (one or several, one after another), wrapped (an array under `key`)
            or columns (an object of equally long lists).
        note: what the user should know about the choice.
    """

    kind: str
    key: str | None = None
    note: str | None = None


@dataclass
class _Entry:
    key: str
    n_items: int = -1  # -1: not a list
    first: Any = None


def find_shape(open_text: Opener, name: str) -> JsonShape:
    """Look through a document once and decide where its rows are."""
    with open_text() as stream:
        text = JsonText(stream, name)
        if text.peek() == "[":
            return JsonShape("array")
        entries = _entries(text)
        if text.peek():
            return JsonShape("objects")
    tables = [e for e in entries if e.n_items > 0 and isinstance(e.first, dict)]
    if any(is_turn(entry.first) for entry in tables):
        return JsonShape("objects")
    if tables:
        return _choose_table(tables, name)
    lengths = {entry.n_items for entry in entries}
    if len(lengths) == 1 and lengths.pop() > 0:
        return JsonShape("columns")
    return JsonShape("objects")


def is_list_of_turns(text: str) -> bool:
    """Whether a JSON list is one conversation."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        bool(value)
        and isinstance(value, list)
        and is_turn(value[0])
    )


def _entries(text: JsonText) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return []
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise text.error("not valid JSON: a key is not a text")
        text.take(":")
        if key in entries:
            raise text.error(f"the key {key[:40]!r} stands twice")
        entry = _Entry(key)
        if text.peek() == "[":
            entry.n_items = 0
            for _, value in text.elements():
                entry.first = value if entry.n_items == 0 else entry.first
                entry.n_items += 1
        else:
            text.value()
        entries[key] = entry
        if text.take(",}") == "}":
            return list(entries.values())


def _choose_table(tables: list[_Entry], name: str) -> JsonShape:
    names = [entry.key for entry in tables]
    for wanted in (*SPLIT_NAMES, *WRAPPER_NAMES):
        key = next((found for found in names if found.lower() == wanted), None)
        if key is not None or len(names) == 1:
            key = key or names[0]
            others = [f"{shown(e.key[:40])} ({e.n_items} rows)" for e in tables if e.key != key]
            note = f"the rows are those under {key!r}"
            return JsonShape(
                "wrapped", key, note + (f"; not used: {', '.join(others)}" if others else "")
            )
    raise file_error(
        name, "it holds several lists of rows", value=", ".join(names),
        remedy="Save the one to train on as a file of its own",
    )  # fmt: skip


def read_json(open_text: Opener, name: str, shape: JsonShape) -> Iterator[NumberedRow]:
    """The rows of a document whose shape is known."""
    with open_text() as stream:
        text = JsonText(stream, name)
        if shape.kind == "array":
            yield from text.rows()
            if text.peek():
                raise text.error("there is more text after the end of the array")
        elif shape.kind == "objects":
            while text.peek():
                line = text.line
                yield line, text.row()
        elif shape.kind == "columns":
            table = text.value()
            for cells in zip(*table.values(), strict=True):
                yield None, dict(zip(table, cells, strict=True))
        else:
            yield from _wrapped_rows(text, shape.key)


def _wrapped_rows(text: JsonText, wanted: str | None) -> Iterator[NumberedRow]:
    """Rows of the array under one key; what stands before it is stepped over."""
    text.take("{")
    while True:
        key = text.value()
        text.take(":")
        if key == wanted:
            yield from text.rows()
            return
        if text.peek() == "[":
            for _ in text.elements():
                pass
        else:
            text.value()
        text.take(",}")
