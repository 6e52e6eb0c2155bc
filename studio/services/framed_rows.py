"""Rows of question and answer cut out of their lines, without parsing them one by one.

Most lines of a file of JSON lines differ in their texts alone: what stands around the texts is a
frame, and once a frame has been parsed exactly, all lines in it are known. Owns the frames and the
row that comes of a line whose texts are harmless (services.line_looks): its line in data.jsonl and
its hashes, which equal byte for byte those of plain_rows and of the exact way. A line in no frame,
or with a text that asks for more care, is None: the other ways take it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from studio.core.checks import NOTHING_MAX_CHARS
from studio.core.examples import ASSISTANT, USER
from studio.services.json_rows import JsonParser, parse_line
from studio.services.line_looks import CUT_QUOTE, PLAIN_QUOTE
from studio.services.plain_rows import Pair, pair_columns

MAX_FRAMES = 64  # a file with more has rows of another kind
_BLANKS = (b"\\n", b"\\t", b"\\r")
_CUT = CUT_QUOTE[:1]  # one byte is found much faster than two
_TO_ESCAPE = bytes.maketrans(CUT_QUOTE, b'\\"')
_PROMPT, _ANSWER = USER.encode() + b"\x1f", ASSISTANT.encode() + b"\x1f"
# Shorter ones may stand for nothing.
_MIN_PROMPT = len(_PROMPT) + NOTHING_MAX_CHARS
_MIN_ANSWER = len(_ANSWER) + NOTHING_MAX_CHARS
_ROW = (
    b'{"i":%%d,"line":%%d,"messages":[{"role":"%b","content":"%%b"},'
    b'{"role":"%b","content":"%%b"}]}\n' % (USER.encode(), ASSISTANT.encode())
)


class _Frame(NamedTuple):
    """Which of the texts in a line are the question, what may follow it (-1: none), the answer."""

    ask: int
    extra: int
    answer: int


class FramedPairs:
    """The frames of one file; as `plain_rows.PairReader` for the lines that have one."""

    def __init__(self, format: str, mapping: dict[str, str]) -> None:
        self._columns = pair_columns(format, mapping)
        self._frames: dict[bytes, _Frame | None] = {}

    def read(self, cut: bytes, plain: bytes, i: int, line: int) -> Pair | None:
        """The row of a line that is harmless; `cut` and `plain` as line_looks makes them."""
        parts = cut.split(b'"')
        texts = parts[3::4]
        del parts[3::4]
        key = b'"'.join(parts)
        frame = self._frames.get(key) or self._frame_of(key, parts, len(texts))
        if frame is None:
            return None
        ask, extra, answer = frame
        asked, said = texts[ask].strip(), texts[answer].strip()
        if asked.startswith(_BLANKS) or asked.endswith(_BLANKS):
            asked = _stripped(asked)
        if said.startswith(_BLANKS) or said.endswith(_BLANKS):
            said = _stripped(said)
        if not asked:
            return None
        shown = plain.split(b'"')
        prompt = shown[4 * ask + 3]
        if extra >= 0 and (given := _stripped(texts[extra].strip())):
            asked = b"%b\\n\\n%b" % (asked, given)
            prompt += shown[4 * extra + 3]
        prompt, reply = _PROMPT + prompt, _ANSWER + shown[4 * answer + 3]
        if len(prompt) <= _MIN_PROMPT or len(reply) <= _MIN_ANSWER:
            return None
        size = len(prompt) - len(_PROMPT)
        if size == len(reply) - len(_ANSWER) and prompt[-size:].lower() == reply[-size:].lower():
            return None
        data = _ROW % (i, line, asked, said)
        if _CUT in data:
            data = data.translate(_TO_ESCAPE)
            prompt, reply = prompt.replace(PLAIN_QUOTE, b'"'), reply.replace(PLAIN_QUOTE, b'"')
        return (
            data,
            blake2b(prompt, digest_size=8).digest(),
            blake2b(reply, digest_size=8).digest(),
        )

    def _frame_of(self, key: bytes, parts: list[bytes], count: int) -> _Frame | None:
        if key in self._frames:
            return self._frames[key]
        if len(self._frames) >= MAX_FRAMES:
            return None
        frame = self._frames[key] = self._learned(parts, count)
        return frame

    def _learned(self, parts: list[bytes], count: int) -> _Frame | None:
        """The frame of a line, from the same line with a number in place of each text."""
        numbered = list(parts)
        for place in range(count):
            numbered.insert(4 * place + 3, b"%d" % place)
        row = parse_line(b'"'.join(numbered).decode("ascii"), JsonParser())
        if not isinstance(row, dict) or list(row.values()) != list(map(str, range(count))):
            return None
        place = {column: at for at, column in enumerate(row)}
        ask, extra, answer = self._columns
        if ask not in place or answer not in place:
            return None
        return _Frame(place[ask], place.get(extra, -1), place[answer])


def _stripped(text: bytes) -> bytes:
    """Without blanks at both ends, escaped ones too."""
    while text.startswith(_BLANKS):
        text = text[2:].lstrip()
    while text.endswith(_BLANKS):
        text = text[:-2].rstrip()
    return text
