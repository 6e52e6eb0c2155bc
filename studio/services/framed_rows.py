"""Rows of question and answer cut out of their lines, without parsing them one by one.

Most lines of a file of JSON lines differ in their texts alone: what stands around the texts is a
frame, and once a frame has been parsed exactly, all lines in it are known. Owns the frames and the
row that comes of a line whose texts are harmless (services.line_looks): its line in data.jsonl and
its hashes, which equal byte for byte those of plain_rows and of the exact way. A line in no frame,
or with a text that asks for more care, is None: the other ways take it.

The lines of a block are cut all at once (`FramedPairs.cut_block`), those that are left one by one.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from studio.core.checks import NOTHING_MAX_CHARS
from studio.core.examples import ASSISTANT, USER
from studio.services.json_rows import JsonParser, parse_line
from studio.services.line_looks import CUT_QUOTE, PLAIN_QUOTE, Look, Mask, Places
from studio.services.plain_rows import Pair, pair_columns, pair_hashes

MAX_FRAMES = 64  # a file with more has rows of another kind
MAX_BLOCK_FRAMES = 4  # are looked for in whole blocks
_BLANKS = (b"\\n", b"\\t", b"\\r")
_BETWEEN = b"\\n\\n"
_CUT = CUT_QUOTE[:1]  # one byte is found much faster than two
_TO_ESCAPE = bytes.maketrans(CUT_QUOTE, b'\\"')
_PROMPT, _ANSWER = USER.encode() + b"\x1f", ASSISTANT.encode() + b"\x1f"
# Copying a hash that has the role already costs half of making a new one.
_prompt_hash = blake2b(_PROMPT, digest_size=8).copy
_answer_hash = blake2b(_ANSWER, digest_size=8).copy
_ROW = (
    b'{"i":%%d,"line":%%d,"messages":[{"role":"%b","content":"%%b"},'
    b'{"role":"%b","content":"%%b"}]}\n' % (USER.encode(), ASSISTANT.encode())
)
_IS_BLANK = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
# A text may begin with an escaped blank, or end in one, where these stand:
_MAY_BEGIN_BLANK = _IS_BLANK | (np.arange(256) == ord("\\"))
_ENDS_ESCAPE = np.isin(np.arange(256), list(b"ntr"))


class _Frame:
    """What stands around the texts of a line.

    Args:
        ask, extra, answer: which of the texts are the question, what may follow it (-1: none), and
            the answer.
        pieces: before the first text, between two and behind the last one, with the quotes.

    Attributes:
        marks: which of a line's quotes stand around texts. inside: which of these around the three.
        sizes: of the pieces. bytes: of all pieces, each with its piece (`of`) and place there
            (`at`).
    """

    def __init__(self, ask: int, extra: int, answer: int, pieces: list[bytes]) -> None:
        self.ask, self.extra, self.answer = ask, extra, answer
        self.marks = np.arange(4 * len(pieces) - 4).reshape(-1, 4)[:, 2:].ravel()
        self.inside = (2 * np.array([[ask], [extra], [answer]]) + [0, 1]).ravel()
        self.sizes = [len(piece) for piece in pieces]
        self.bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self.of = np.repeat(np.arange(len(pieces)), self.sizes)
        self.at = np.concatenate([np.arange(size) for size in self.sizes])


class CutBlock:
    """The lines of a block, of which most are rows as they stand.

    Attributes:
        taken: of each line, whether it is such a row.
    """

    def __init__(self, look: Look) -> None:
        self._cut, self._plain = look.cut, look.plain
        self._plains: list[bytes] | None = None
        self._codes = np.frombuffer(look.cut, np.uint8)
        self._ends = look.ends
        self._begins = look.begins
        self.taken = np.zeros(len(look.ends), bool)
        self._quotes = np.flatnonzero(self._codes == ord('"'))
        # As many, since `plain` has lost blanks alone.
        self._plain_quotes = np.flatnonzero(np.frombuffer(look.plain, np.uint8) == ord('"'))
        self._shown = look.plain.replace(PLAIN_QUOTE, b'"')
        self._first = np.searchsorted(self._quotes, self._begins)
        self._counts = np.searchsorted(self._quotes, self._ends) - self._first
        # Of each line: where question, what follows it, and answer begin and end, in `cut` and
        # then in `plain`.
        self._cells = np.zeros((len(look.ends), 12), np.intp)
        self._hashes: dict[int, tuple[bytes, bytes]] = {}  # of lines with more than ASCII

    def find(self, frame: _Frame, left: Mask) -> None:
        """Take those of the lines that are left that have a frame and need no more care."""
        lines = np.flatnonzero(left & ~self.taken & (self._counts == 2 * len(frame.marks)))
        if not len(lines):
            return
        marks = self._first[lines, None] + frame.marks
        places = self._quotes[marks]
        places[:, ::2] += 1
        shown = self._plain_quotes[marks[:, frame.inside]]
        shown[:, ::2] += 1
        cells = places[:, frame.inside]
        if frame.extra < 0:  # as an empty text behind the question
            cells[:, 2:4], shown[:, 2:4] = cells[:, 1:2], shown[:, 1:2]
        good = self._has_pieces(frame, lines, places) & self._is_plain(cells, shown)
        taken = lines[good]
        self.taken[taken] = True
        self._cells[taken] = np.concatenate((cells, shown), axis=1)[good]

    def _has_pieces(self, frame: _Frame, lines: Places, places: Places) -> Mask:
        """Which of the lines, whose texts begin and end at `places`, have a frame's pieces."""
        begins = np.column_stack((self._begins[lines], places[:, 1::2]))
        ends = np.column_stack((places[:, ::2], self._ends[lines]))
        same = (ends - begins == frame.sizes).all(axis=1)
        found = self._codes.take(begins[:, frame.of] + frame.at, mode="clip")
        return same & (found == frame.bytes).all(axis=1)

    def _is_plain(self, cells: Places, shown: Places) -> Mask:
        """Which lines have texts that need no more care, by where they stand."""
        sizes = shown[:, 1::2] - shown[:, ::2]
        prompt, answer = sizes[:, 0] + sizes[:, 1], sizes[:, 2]
        good = (sizes[:, 0] > 0) & (np.minimum(prompt, answer) > NOTHING_MAX_CHARS)
        good &= prompt != answer  # else both could be the same text
        last = cells[:, 1::2] - 1
        end = self._codes[last]
        blank = _MAY_BEGIN_BLANK[self._codes[cells[:, ::2]]] | _IS_BLANK[end]
        blank |= _ENDS_ESCAPE[end] & (self._codes[last - 1] == ord("\\"))
        return good & ~blank.any(axis=1)

    def pairs(self, start: int, end: int, i: int, line: int) -> tuple[list[bytes], list[bytes]]:
        """Stored lines and hashes of a run of taken lines; `i` and `line` are of the first."""
        cut, shown, hashes = self._cut, self._shown, []
        columns = self._cells[start:end].T.tolist()
        rows = [
            _ROW % (row, number, cut[a:b] + _BETWEEN + cut[c:d] if c < d else cut[a:b], cut[e:f])
            for row, number, a, b, c, d, e, f in zip(
                range(i, i + end - start), range(line, line + end - start), *columns[:6],
                strict=True,
            )
        ]  # fmt: skip
        if _CUT in cut:
            rows = [row.translate(_TO_ESCAPE) if _CUT in row else row for row in rows]
        for number, (a, b, c, d, e, f) in enumerate(zip(*columns[6:], strict=True), start):
            if number in self._hashes:
                hashes += self._hashes[number]
                continue
            prompt, answer = _prompt_hash(), _answer_hash()
            prompt.update(shown[a:b])
            if c < d:
                prompt.update(shown[c:d])
            answer.update(shown[e:f])
            hashes += (prompt.digest(), answer.digest())
        return rows, hashes

    def look_closer(self, number: int) -> None:
        """Leave a line with characters beyond ASCII to the other ways unless it is harmless."""
        asked, given, said = (
            _text(self._cut[begin:end])
            for begin, end in self._cells[number, :6].reshape(3, 2).tolist()
        )
        hashes = None
        if asked == asked.strip() and given == given.strip() and said == said.strip():
            hashes = pair_hashes(f"{asked}\n\n{given}" if given else asked, said)
        if hashes is None:
            self.taken[number] = False
        else:
            self._hashes[number] = hashes

    def line(self, number: int) -> tuple[bytes, bytes]:
        """A line of the block, for `FramedPairs.read`: of `cut` and of `plain`."""
        if self._plains is None:
            self._plains = self._plain.split(b"\n")
        return self._cut[self._begins[number] : self._ends[number]], self._plains[number]


class FramedPairs:
    """The frames of one file; as `plain_rows.PairReader` for the lines that have one."""

    def __init__(self, format: str, mapping: dict[str, str]) -> None:
        self._columns = pair_columns(format, mapping)
        self._frames: dict[bytes, _Frame | None] = {}
        self._usual: list[_Frame] = []

    def cut_block(self, look: Look, aside: set[int]) -> CutBlock:
        """Cut a block, all lines at once but those to be left aside."""
        block = CutBlock(look)
        left = np.ones(len(look.ends), bool)
        left[list(aside)] = False
        for frame in self._usual:
            block.find(frame, left)
        for number in look.wide:
            if block.taken[number]:
                block.look_closer(number)
        return block

    def read(self, cut: bytes, plain: bytes, i: int, line: int) -> Pair | None:
        """The row of a line that is harmless; `cut` and `plain` as line_looks makes them."""
        parts = cut.split(b'"')
        texts = parts[3::4]
        del parts[3::4]
        key = b'"'.join(parts)
        frame = self._frames.get(key) or self._frame_of(key, parts, len(texts))
        if frame is None:
            return None
        asked, said = _stripped(texts[frame.ask].strip()), _stripped(texts[frame.answer].strip())
        if not asked:
            return None
        shown = plain.split(b'"')
        prompt, answer = shown[4 * frame.ask + 3], shown[4 * frame.answer + 3]
        if frame.extra >= 0 and (given := _stripped(texts[frame.extra].strip())):
            asked += _BETWEEN + given
            prompt += shown[4 * frame.extra + 3]
        if len(prompt) <= NOTHING_MAX_CHARS or len(answer) <= NOTHING_MAX_CHARS:
            return None
        if prompt.lower() == answer.lower():
            return None
        data = (_ROW % (i, line, asked, said)).translate(_TO_ESCAPE)
        hashes = _prompt_hash(), _answer_hash()
        for one, text in zip(hashes, (prompt, answer), strict=True):
            one.update(text.replace(PLAIN_QUOTE, b'"'))
        return data, *(one.digest() for one in hashes)

    def _frame_of(self, key: bytes, parts: list[bytes], count: int) -> _Frame | None:
        if key in self._frames:
            return self._frames[key]
        if len(self._frames) >= MAX_FRAMES:
            return None
        frame = self._frames[key] = self._learned(parts, count)
        if frame is not None and len(self._usual) < MAX_BLOCK_FRAMES:
            self._usual.append(frame)
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
        return _Frame(place[ask], place.get(extra, -1), place[answer], _pieces(parts))


def _pieces(parts: list[bytes]) -> list[bytes]:
    """The parts of a line between quotes, without its texts, as what stands between the texts."""
    found = [b'"'.join((*parts[:3], b""))]
    for at in range(3, len(parts) - 1, 3):
        found.append(b'"'.join((b"", *parts[at : at + 3], b"")))
    return [*found, b'"' + parts[-1]]


def _text(cut: bytes) -> str:
    """A text that was cut out, without its escapes."""
    text = cut.decode("utf-8")
    if "\\" in text:
        text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    return text.replace(CUT_QUOTE.decode(), '"')


def _stripped(text: bytes) -> bytes:
    """Without blanks at both ends, escaped ones too."""
    while text.startswith(_BLANKS):
        text = text[2:].lstrip()
    while text.endswith(_BLANKS):
        text = text[:-2].rstrip()
    return text
