"""In which encoding the text of a data file is written.

Owns: the decision, by the user's choice, from a byte order mark or from all bytes, and its note
where it was a guess or a choice.
Text that would be learned as gibberish is refused rather than guessed. Broken characters become
lone surrogates, which cost the rows that hold them (core.examples.clean_text). Runs in the import
child.
"""

from __future__ import annotations

import codecs
import re

from studio.services.read_options import DETECT, ENCODINGS
from studio.services.source_bytes import (
    CHUNK_BYTES,
    NOT_DATA,
    Source,
    TextCoding,
    file_error,
)

MARK_BROKEN = "lora-studio-mark-broken"
# From so many high bytes on, and so large a share of them side by side, text is not Western.
MIN_HIGH_BYTES, MAX_ADJACENT_SHARE = 8, 0.6
MIN_KANA_SHARE = 0.3
MIN_GUESS_BYTES = 8
PIECE_BYTES = 4096  # in most of them no byte is beyond ASCII, which is told fast
UNIT_BYTES = {"utf-16": 2, "utf-16-le": 2, "utf-16-be": 2, "utf-32": 4}


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    """For UTF-16 and UTF-32 what surrogateescape is for UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(MARK_BROKEN, _mark_broken)


def text_coding(source: Source) -> TextCoding:
    """Decide the encoding from the bytes, reading the whole file once.

    A byte order mark decides. Without one UTF-8 is tried; a file that is not UTF-8 is taken for
    UTF-8 with broken characters where most of its special characters are whole (the broken rows
    are then left out by line), else for Shift-JIS or Windows-1252, and that guess is noted. What
    the user has chosen goes before all of that.
    """
    if source.options.encoding != DETECT:
        return _chosen_coding(source, source.options.encoding)
    head = source.head()
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if head.startswith(mark):
            if encoding != "utf-8-sig":
                return _whole_units(source, TextCoding(encoding, MARK_BROKEN))
            _, whole, broken = _utf8_census(source)
            return TextCoding(encoding, "surrogateescape" if broken else "strict")
    if b"\0" in head:
        return _wide_coding(source, head)
    valid, whole, broken = _utf8_census(source)
    if valid:
        return TextCoding("utf-8")
    if whole > broken:
        note = f"{broken} characters are not valid UTF-8; the rows that hold them are left out"
        return TextCoding("utf-8", "surrogateescape", note)
    encoding, title = _other_coding(source)
    return TextCoding(encoding, "strict", f"not UTF-8; read as {title} (a guess)")


def _chosen_coding(source: Source, name: str) -> TextCoding:
    """The encoding that was chosen by hand. Rows of which it can make no text are left out."""
    encoding = name
    if name == "utf-8" and source.head().startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    note = f"read as {ENCODINGS[name]} (chosen by hand)"
    if name == "utf-16":
        return _whole_units(source, TextCoding(encoding, MARK_BROKEN, note))
    if _decodes(source, encoding):
        return TextCoding(encoding, "strict", note)
    note += "; some bytes mean nothing in it, the rows that hold them are left out"
    return TextCoding(encoding, "surrogateescape" if name == "utf-8" else MARK_BROKEN, note)


def _decodes(source: Source, encoding: str) -> bool:
    """Whether every byte of the file means something in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    with source.open() as stream:
        try:
            while chunk := stream.read(CHUNK_BYTES):
                decoder.decode(chunk)
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            return False
    return True


def _whole_units(source: Source, coding: TextCoding) -> TextCoding:
    """The coding, unless the file ends in half a character: then all after the gap is gibberish."""
    size_bytes = 0
    with source.open() as stream:
        while chunk := stream.read(CHUNK_BYTES):
            size_bytes += len(chunk)
    if size_bytes % UNIT_BYTES[coding.encoding]:
        raise file_error(
            source.name, f"it is written as {coding.encoding.upper()}, but bytes are missing",
            value=f"{size_bytes:,} bytes", allowed=f"a multiple of {UNIT_BYTES[coding.encoding]}",
            remedy="Get the file again or save it as UTF-8",
        )  # fmt: skip
    return coding


def _wide_coding(source: Source, head: bytes) -> TextCoding:
    """UTF-16 without a byte order mark, recognised by where its zero bytes stand."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = max(1, len(head) // 2)
    if len(head) < MIN_GUESS_BYTES:
        pass
    elif odd > 0.4 * half and even < 0.05 * half:
        note = "read as UTF-16 LE (a guess)"
        return _whole_units(source, TextCoding("utf-16-le", MARK_BROKEN, note))
    elif even > 0.4 * half and odd < 0.05 * half:
        note = "read as UTF-16 BE (a guess)"
        return _whole_units(source, TextCoding("utf-16-be", MARK_BROKEN, note))
    raise file_error(source.name, "this is a binary file, not a data file", remedy=NOT_DATA)


def _utf8_census(source: Source) -> tuple[bool, int, int]:
    """(all valid, whole special characters, broken bytes); the counts only where not valid."""
    strict = codecs.getincrementaldecoder("utf-8")("strict")
    with source.open() as stream:
        try:
            while chunk := stream.read(CHUNK_BYTES):
                for start in range(0, len(chunk), PIECE_BYTES):
                    piece = chunk[start : start + PIECE_BYTES]
                    if not piece.isascii() or strict.getstate()[0]:  # half a character waits
                        strict.decode(piece)
            strict.decode(b"", True)
            return True, 0, 0
        except UnicodeDecodeError:
            pass  # the census below tells how much of it is broken
    whole = broken = 0
    lenient = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with source.open() as stream:
        while chunk := stream.read(CHUNK_BYTES):
            text = lenient.decode(chunk)
            bad = len(re.findall("[\udc80-\udcff]", text))
            broken += bad
            whole += len(re.findall(r"[^\x00-\x7f]", text)) - bad
    return False, whole, broken + len(lenient.decode(b"", True))


def _other_coding(source: Source) -> tuple[str, str]:
    """What is not UTF-8: Shift-JIS, Windows-1252, or Latin-1 where a byte occurs that Windows-1252
    leaves undefined. Western text has its special letters apart, other scripts have them in rows.
    """
    high = adjacent = 0
    undefined = False
    with source.open() as stream:
        while chunk := stream.read(CHUNK_BYTES):
            high += len(re.findall(rb"[\x80-\xff]", chunk))
            adjacent += sum(map(len, re.findall(rb"[\x80-\xff]{2,}", chunk)))
            undefined = undefined or re.search(rb"[\x81\x8d\x8f\x90\x9d]", chunk) is not None
    if high >= MIN_HIGH_BYTES and _is_shift_jis(source):
        return "cp932", "Shift-JIS"
    if high >= MIN_HIGH_BYTES and adjacent > MAX_ADJACENT_SHARE * high:
        raise file_error(
            source.name, "its characters are neither UTF-8 nor Western European, so it cannot be "
            "told what they mean", remedy="Save the file as UTF-8, or choose its encoding",
        )  # fmt: skip
    return ("latin-1", "Latin-1") if undefined else ("cp1252", "Windows-1252")


def _is_shift_jis(source: Source) -> bool:
    """Whether all of it decodes, and much of it is the two Japanese syllabaries."""
    decoder = codecs.getincrementaldecoder("cp932")("strict")
    kana = special = 0
    with source.open() as stream:
        try:
            while chunk := stream.read(CHUNK_BYTES):
                text = decoder.decode(chunk)
                kana += len(re.findall("[\u3041-\u30ff]", text))
                special += len(re.findall(r"[^\x00-\x7f]", text))
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            return False
    return special > 0 and kana >= MIN_KANA_SHARE * special
