"""Lines of a UTF-8 file as blocks of bytes, of the whole file or of a range of it.

Owns cutting a file into ranges that end where a line ends, and the numbers of the first line and
row of a range. Lines end as in text that is read with universal newlines: after a line feed, a
carriage return, or both. Knows nothing of what stands in a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from studio.services.source_bytes import MAX_ROW_CHARS

# What is done to a block (services.line_looks) stays in the processor's cache.
CHUNK_BYTES = 1 << 18
UTF8_MARK = b"\xef\xbb\xbf"
# No character has more bytes in UTF-8: a line with more bytes than that has too many characters.
MAX_LINE_BYTES = 4 * MAX_ROW_CHARS
# A line of which no byte is a visible ASCII character may be blank; first a cheap look at how the
# lines begin.
_BEGINS_BLANK = re.compile(rb"\n[^\x21-\x7e]")
_VISIBLE = re.compile(rb"[\x21-\x7e]")
_MAY_BE_BLANK = re.compile(rb"^[^\n\x21-\x7e]*$", re.MULTILINE)


class Range(NamedTuple):
    """Bytes `start` to `end` of a file; both are the beginning of a line or the end of the file."""

    start: int
    end: int


class Block(NamedTuple):
    """Whole lines.

    Attributes:
        data: the lines, each with its "\\n" but perhaps the last of the file. Empty: one line that
            is far too long to be read.
        end: where the block ends in the file.
    """

    data: bytes
    end: int


def ranges(path: Path, first_share: float) -> list[Range]:
    """The file in two ranges, the first with about this share of its bytes."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = len(UTF8_MARK) if file.read(3) == UTF8_MARK else 0
        file.seek(start + int((size_bytes - start) * first_share))
        while chunk := file.read(CHUNK_BYTES):
            at = chunk.find(b"\n")
            if at >= 0:
                cut = file.tell() - len(chunk) + at + 1
                break
        else:
            cut = size_bytes
    return [Range(start, cut), Range(cut, size_bytes)]


def blocks(path: Path, part: Range) -> Iterator[Block]:
    """The lines of a range in order, about CHUNK_BYTES at a time."""
    pending: list[bytes] = []
    pending_bytes, skipping = 0, False
    at = part.start
    with path.open("rb") as file:
        file.seek(at)
        while at < part.end and (chunk := file.read(min(CHUNK_BYTES, part.end - at))):
            while chunk.endswith(b"\r") and at + len(chunk) < part.end:
                chunk += file.read(1)  # so that no pair of line ends is torn apart
            at += len(chunk)
            if b"\r" in chunk:
                chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            cut = chunk.rfind(b"\n") + 1
            if skipping:
                begin = chunk.find(b"\n") + 1
                if not begin:
                    continue
                yield Block(b"", at)
                skipping, chunk, cut = False, chunk[begin:], cut - begin
            if cut:
                yield Block(b"".join((*pending, chunk[:cut])), at)
                pending, pending_bytes = [], 0
            if cut < len(chunk):
                pending.append(chunk[cut:])
                pending_bytes += len(chunk) - cut
            if pending_bytes > MAX_LINE_BYTES:
                pending, pending_bytes, skipping = [], 0, True
    if pending or skipping:
        yield Block(b"".join(pending), part.end)


def count_rows(path: Path, part: Range) -> tuple[int, int]:
    """(lines, rows) of a range that ends where a line ends; blank lines are no rows."""
    lines = blank = 0
    for block in blocks(path, part):
        data = block.data
        lines += data.count(b"\n") if data else 1
        if _VISIBLE.match(data) and _BEGINS_BLANK.search(data) is None:
            continue
        for found in _MAY_BE_BLANK.finditer(data):
            ends_here = found.end() < len(data)  # not the place behind the last line end
            blank += ends_here and not found.group().decode("utf-8", "replace").strip()
    return lines, lines - blank
