"""A look at a block of JSON lines: which of them the exact readers and checks must see.

Owns the question, asked of all bytes of a block at once: every line is found that holds a control
character, "@", an odd escape, or what could be part of a secret (core.text_checks.quick_look finds
nothing in the others), and every line with characters beyond ASCII. Too many are found rather than
one too few; a test holds that. Knows nothing of rows or keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from studio.core.text_checks import TOKEN_BYTES, TOKEN_RUN

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]

_NEW_LINE, _BACKSLASH, _QUOTE = ord("\n"), ord("\\"), ord('"')
_LOWER = np.uint8(32)  # this bit makes a capital a small letter
# Pieces of what stands before a password or a key, after `_LOWER`, each with the two neighbouring
# letters by which it is looked for: seldom in prose.
_PIECES = tuple(
    (bytes(code | 32 for code in piece), at)
    for piece, at in (
        (b"passw", 3), (b"secr", 2), (b"apike", 2), (b"api-ke", 3), (b"_key", 0), (b"_tok", 0),
    )
)  # fmt: skip
_PAIRS = np.unique([np.frombuffer(piece[at : at + 2], np.uint16)[0] for piece, at in _PIECES])
_BEFORE = max(at for _, at in _PIECES)
_NEAR = np.arange(-_BEFORE, max(len(piece) - at for piece, at in _PIECES))
# What may follow a backslash: \b and \f are control characters, \u may be anything, an escaped
# slash could be part of a token, and the rest is not JSON.
_PLAIN_ESCAPES = np.isin(np.arange(256), list(b'ntr"\\'))
_BLANK_ESCAPES = np.isin(np.arange(256), list(b"ntr"))
_TOKEN_TABLE = bytes(97 if code in TOKEN_BYTES else 32 for code in range(256))
_WORD = 4  # bytes that are looked at together; a run of a token holds so many whole words:
_WORDS_IN_RUN = (len(TOKEN_RUN) - 2 * (_WORD - 1)) // _WORD + 1

# In `Look.cut` these two stand for an escaped quote; control characters are in no such line.
CUT_QUOTE = b"\x01\x02"
# In `Look.plain` it is this one.
PLAIN_QUOTE = b"\x7f"


class Look(NamedTuple):
    """What was seen; lines count from 0.

    Attributes:
        exact: lines for the exact way.
        wide: other lines, with characters beyond ASCII.
        whole: other lines whose texts cannot be cut out at the quotes.
        cut: the block with CUT_QUOTE for each escaped quote.
        plain: the block without white space but line feeds, PLAIN_QUOTE for each escaped quote.
        ends: where each line ends in the block (and in `cut`), before its line feed.
    """

    exact: set[int]
    wide: set[int]
    whole: set[int]
    cut: bytes
    plain: bytes
    ends: Places

    @property
    def begins(self) -> Places:
        """Where each line begins."""
        return np.concatenate(([0], self.ends + 1))[:-1]


def look_at(data: bytes) -> Look:
    """Look at lines that end in a line feed, but perhaps the last one."""
    codes = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(codes == _NEW_LINE)

    def lines_of(places: Places) -> set[int]:
        return set(np.searchsorted(ends, places).tolist())

    wide = codes >= 128
    odd = codes - np.uint8(32) >= 95  # control characters, DEL, and bytes beyond ASCII
    odd ^= wide
    odd |= codes == ord("@")
    odd[ends] = False
    tabs = codes == ord("\t")
    odd ^= tabs
    exact = lines_of(_places(odd)) | lines_of(_words(codes))
    exact |= lines_of(_runs(codes, ends, data))
    whole, cut = lines_of(_places(tabs)), data
    escapes = _places(codes == _BACKSLASH)
    if len(escapes):
        behind = codes[np.minimum(escapes + 1, len(codes) - 1)]
        exact |= lines_of(escapes[~_PLAIN_ESCAPES[behind]])
        whole |= lines_of(escapes[behind == _BACKSLASH])
        quotes, blanks = escapes[behind == _QUOTE], escapes[_BLANK_ESCAPES[behind]]
        if len(quotes):
            cut = _with(codes, ((quotes, CUT_QUOTE),)).tobytes()
        codes = _with(codes, ((blanks, b"  "), (quotes, b" " + PLAIN_QUOTE)))
    visible = codes > ord(" ")
    visible[ends] = True
    plain = np.compress(visible, codes).tobytes()
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    look = Look(exact, set(), whole, cut, plain, ends)
    if not data.isascii():
        together = np.bitwise_or.reduceat(np.frombuffer(data, np.uint8), look.begins)
        look.wide.update(np.flatnonzero(together >= 128).tolist())
    return look


def _places(mask: Mask) -> Places:
    """Where it is true; most often nowhere, which is told much faster."""
    return np.flatnonzero(mask) if mask.any() else np.empty(0, np.intp)


def _with(codes: Bytes, changes: tuple[tuple[Places, bytes], ...]) -> Bytes:
    """The bytes with other pairs of bytes at some places."""
    changed = codes.copy()
    for places, (first, second) in changes:
        changed[places], changed[places + 1] = first, second
    return changed


def _words(codes: Bytes) -> Places:
    """Where one of the pieces stands."""
    low = codes | _LOWER
    found = []
    for start, letters in ((0, low), (1, codes[1:] | _LOWER)):  # two letters are one number
        pairs = letters[: len(letters) // 2 * 2].view(np.uint16)
        seen = pairs == _PAIRS[0]
        for pair in _PAIRS[1:]:
            seen |= pairs == pair
        found.append(2 * _places(seen) + start)
    places = np.concatenate(found)
    near = low.take(places[:, None] + _NEAR, mode="clip")
    kept = np.zeros(len(places), bool)
    for piece, at in _PIECES:
        first = _BEFORE - at
        kept |= (near[:, first : first + len(piece)] == np.frombuffer(piece, np.uint8)).all(axis=1)
    return places[kept]


def _runs(codes: Bytes, ends: Places, data: bytes) -> Places:
    """Where a run of token bytes begins that is long enough for a token, about."""
    # All bytes of tokens, and some more that are rare in long runs.
    dense = (codes >= min(TOKEN_BYTES)) & (codes != _BACKSLASH) & (codes != ord(","))
    words = dense[: len(dense) // _WORD * _WORD].view(np.uint32) == 0x01010101
    count = max(0, len(words) - _WORDS_IN_RUN + 1)
    run = words[:count]
    for offset in range(1, _WORDS_IN_RUN):
        run = run & words[offset : offset + count]
    places = _WORD * np.flatnonzero(run)
    sure = []
    for number in np.unique(np.searchsorted(ends, places)).tolist():
        start = int(ends[number - 1]) if number else 0
        end = int(ends[number]) if number < len(ends) else len(data)
        if TOKEN_RUN in data[start:end].translate(_TOKEN_TABLE):
            sure.append(start + (number > 0))
    return np.array(sure, np.intp)
