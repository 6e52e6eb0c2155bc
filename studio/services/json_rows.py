"""Rows from JSON lines, and a cursor over big JSON texts.

How one document holds its rows is decided in json_documents. Streams: at most one row and one
block of text are in memory. Broken lines of JSON lines are problems of that line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from studio.core.examples import RowProblem
from studio.services.source_bytes import CHUNK_BYTES, MAX_ROW_CHARS, file_error

Opener = Callable[[], TextIO]
# (line in the file or None, row or what is wrong with it)
NumberedRow = tuple[int | None, "dict[str, Any] | RowProblem"]

PROBED_LINES = 20
_BLANKS = re.compile("[ \t\r\n\ufeff]*")

_BROKEN_NAME = RowProblem("a column's name holds broken characters", "Save the file again as UTF-8")

TOO_LONG = RowProblem("the line is longer than 16 MiB", "Split the row")


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
                yield number, TOO_LONG
                continue
            yield number, parse_line(line, parser)


def parse_line(line: str, parser: JsonParser) -> dict[str, Any] | RowProblem:
    """The row of one line."""
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
