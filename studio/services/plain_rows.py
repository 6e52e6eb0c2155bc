"""JSON lines parsed fast, where nothing about them needs a second look.

Owns two questions about lines in which services.line_looks saw nothing odd: whether the parsed row
accounts for every quote in its line, so that no key stands twice, and whether its texts are fit to
be stored as they are. All other lines go to json_rows, core.formats and core.checks, whose results
these rows equal byte for byte: a test compares both on hostile lines.

orjson differs from Python's json in what it refuses and in big numbers; rows with a float, and
lines that it refuses, are read exactly.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from studio.core.checks import MAX_PADDING, NOTHING_MAX_CHARS, UNSEEN, UNSEEN_MAX_CHARS, plain
from studio.core.examples import ASSISTANT, USER
from studio.core.text_checks import broken_encoding, has_wide_control
from studio.services.source_bytes import MAX_ROW_CHARS

_NO_COUNT = -(1 << 40)

_WIDE_ALONE = bytes(code if code >= 128 else 32 for code in range(256))

_PROMPT, _ANSWER = USER.encode() + b"\x1f", ASSISTANT.encode() + b"\x1f"


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


# A row of one question and one answer, ready to be stored: its line in data.jsonl, and the hashes
# of prompt and answer, 8 bytes each. A plain tuple: a million are made.
Pair = tuple[bytes, bytes, bytes]


_ROLES = {
    "alpaca": ("instruction", "input", "output"),
    "pairs": ("question", "", "answer"),
    "prompt_completion": ("prompt", "", "completion"),
}


def is_pair(format: str, mapping: dict[str, str]) -> bool:
    """Whether rows of a shape are a question and an answer, and perhaps a text between them."""
    return set(mapping) <= set(_ROLES.get(format, ()))


def pair_columns(format: str, mapping: dict[str, str]) -> tuple[str, str | None, str]:
    """The columns of the question, of what may follow it, and of the answer."""
    ask, extra, answer = _ROLES[format]
    return mapping[ask], mapping.get(extra), mapping[answer]


class PairReader:
    """Rows of two columns of text, and a third one that may stand between them.

    Does what core.formats does for an Alpaca row without history, a question and answer, and a
    prompt and completion, where all cells are harmless texts; None for every other row.
    """

    def __init__(self, format: str, mapping: dict[str, str]) -> None:
        self._ask, self._extra, self._answer = pair_columns(format, mapping)

    def read(self, row: dict[str, Any], i: int, line: int) -> Pair | None:
        """The row of a line in which nothing odd was seen but characters beyond ASCII."""
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
        hashes = pair_hashes(asked, said)
        if hashes is None:
            return None
        turns = ({"role": USER, "content": asked}, {"role": ASSISTANT, "content": said})
        return orjson.dumps({"i": i, "line": line, "messages": turns}) + b"\n", *hashes


def pair_hashes(asked: str, said: str) -> tuple[bytes, bytes] | None:
    """Hashes of prompt and answer; None where a check may say something about these texts, in
    which nothing odd was seen but characters beyond ASCII."""
    if _is_doubtful(asked) or _is_doubtful(said):
        return None
    if abs(len(asked) - len(said)) <= MAX_PADDING and asked.casefold() == said.casefold():
        return None
    prompt, answer = _PROMPT + plain(asked), _ANSWER + plain(said)
    return blake2b(prompt, digest_size=8).digest(), blake2b(answer, digest_size=8).digest()


def _is_doubtful(text: str) -> bool:
    """Whether a check may say something about a text."""
    if len(text) <= NOTHING_MAX_CHARS:
        return True  # it may stand for nothing
    if text.isascii():
        return False
    if len(text) <= UNSEEN_MAX_CHARS and len(text.strip(UNSEEN)) <= NOTHING_MAX_CHARS:
        return True
    # The patterns look at characters beyond ASCII; what stands between them is one blank here.
    wide = b" ".join(text.encode("utf-8", "surrogatepass").translate(_WIDE_ALONE).split())
    shown = wide.decode("utf-8", "surrogatepass")
    return has_wide_control(shown) or broken_encoding(shown) is not None
