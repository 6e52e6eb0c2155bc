"""JSON lines read fast, where nothing about them needs a second look.

Owns the question which lines are harmless: bytes tables and substring searches over a block of
them find every line that the exact readers and checks could say anything about (a character beyond
ASCII, an odd escape, a token, an address, a word that stands before passwords), and the parsed row
must account for every quote in its line, so that no key stands twice. All other lines go to
json_rows, core.formats and core.checks, whose results these rows equal byte for byte: a test
compares both on hostile lines.

orjson differs from Python's json in what it refuses and in big numbers; rows with a float, and
lines that it refuses, are read exactly.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from studio.core.checks import MAX_PADDING, NOTHING_MAX_CHARS, PLAIN_DELETED
from studio.core.examples import ASSISTANT, USER
from studio.core.text_checks import TOKEN_BYTES, TOKEN_RUN
from studio.services.line_blocks import LineStarts
from studio.services.source_bytes import MAX_ROW_CHARS

# One table for all questions about single bytes: "!" needs a look, "a" may be part of a token.
_CLASSES = bytes(
    ord("\n") if byte == 10
    else ord("!") if byte < 32 and byte != 9 or byte >= 127 or byte == ord("@")
    else ord("a") if byte in TOKEN_BYTES
    else ord(" ")
    for byte in range(256)
)  # fmt: skip
_LOOKED_AT = (b"!", TOKEN_RUN)
# A slash may be escaped; unescaped it could be part of a token. \b and \f are control characters.
_ESCAPE = re.compile(rb"\\[ubf/]")
_WORDS = (b"passw", b"secret")
# Pieces that are common, and what must stand with them.
_RARER = ((b"_", (b"_key", b"_token")), (b"api", (b"apikey", b"api-key")))
_NO_COUNT = -(1 << 40)

_PROMPT, _ANSWER = USER.encode() + b"\x1f", ASSISTANT.encode() + b"\x1f"


def suspicious(data: bytes, lines: list[bytes]) -> set[int]:
    """Which lines of a block need the exact way."""
    starts = LineStarts(lines)
    found = starts.with_any(data.translate(_CLASSES), _LOOKED_AT)
    found |= starts.matching(data, _ESCAPE)
    low = data.lower()
    found |= starts.with_any(low, _WORDS)
    for common, rarer in _RARER:
        for line in starts.with_any(low, (common,)) - found:
            text = lines[line].lower()
            if any(piece in text for piece in rarer):
                found.add(line)
    return found


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line as Python's json reads it; None where that is not certain."""
    if len(line) >= MAX_ROW_CHARS:
        return None
    try:
        row = orjson.loads(line)
        quotes = _quotes(row)
    except (ValueError, RecursionError):
        return None
    if type(row) is not dict:
        return None
    written = line.count(b'"')
    if written != quotes and b"\\" in line:  # some are part of a text
        line = line.replace(b"\\\\", b"")
        written = line.count(b'"') - line.count(b'\\"')
    return row if quotes == written else None


def _quotes(value: Any) -> int:
    """How many quotes a value has as JSON; negative with a number that may have been rounded."""
    kind = type(value)
    if kind is str:
        return 2
    if kind is dict:
        count = 2 * len(value)
        for item in value.values():
            count += 2 if type(item) is str else _quotes(item)
        return count
    if kind is list:
        return sum(map(_quotes, value))
    return _NO_COUNT if kind is float else 0


class Pair(NamedTuple):
    """A row of one question and one answer, ready to be stored.

    Attributes:
        data: its line in data.jsonl. hashes: of the prompt and of the answer, 8 bytes each.
    """

    data: bytes
    hashes: bytes


class PairReader:
    """Rows of two columns of text, and a third one that may stand between them.

    Does what core.formats does for an Alpaca row without history, a question and answer, and a
    prompt and completion, where all cells are harmless texts; None for every other row.
    """

    _ROLES = {
        "alpaca": ("instruction", "input", "output"),
        "pairs": ("question", "", "answer"),
        "prompt_completion": ("prompt", "", "completion"),
    }

    def __init__(self, format: str, mapping: dict[str, str]) -> None:
        ask, extra, answer = self._ROLES[format]
        self._ask, self._answer = mapping[ask], mapping[answer]
        self._extra = mapping.get(extra)

    @classmethod
    def of(cls, format: str, mapping: dict[str, str]) -> PairReader | None:
        """The reader for a shape, or None where its rows are no mere pairs."""
        roles = cls._ROLES.get(format)
        return cls(format, mapping) if roles and set(mapping) <= set(roles) else None

    def read(self, row: dict[str, Any], i: int, line: int) -> Pair | None:
        """The row of a line that is not suspicious."""
        asked, said = row.get(self._ask), row.get(self._answer)
        if type(asked) is not str or type(said) is not str:
            return None
        asked, said = asked.strip(), said.strip()
        if not asked:
            return None
        if self._extra is not None:
            given = row.get(self._extra)
            if given:
                if type(given) is not str:
                    return None
                given = given.strip()
                if given:
                    asked = f"{asked}\n\n{given}"
            elif given is not None and given != "":
                return None
        num_asked, num_said = len(asked), len(said)
        if num_said <= NOTHING_MAX_CHARS or num_asked <= NOTHING_MAX_CHARS:
            return None  # it may stand for nothing
        if abs(num_asked - num_said) <= MAX_PADDING and asked.lower() == said.lower():
            return None
        turns = ({"role": USER, "content": asked}, {"role": ASSISTANT, "content": said})
        prompt = _PROMPT + asked.encode().translate(None, PLAIN_DELETED)
        answer = _ANSWER + said.encode().translate(None, PLAIN_DELETED)
        return Pair(
            orjson.dumps({"i": i, "line": line, "messages": turns}) + b"\n",
            blake2b(prompt, digest_size=8).digest() + blake2b(answer, digest_size=8).digest(),
        )
