"""Encodings, line ends, and files with hardly anything in them."""

from __future__ import annotations

import codecs
import json

from tests.corpus.case import Case, keep, lines, pairs, refuse, table

GERMAN = table(("Wo ist der B\u00e4cker?", "\u00dcber die Stra\u00dfe."))
APPLE = "\u308a\u3093\u3054\u3067\u3059\u3002"
JAPANESE = table(("\u3053\u308c\u306f\u4f55\u3067\u3059\u304b\u3002", APPLE))
RUSSIAN = table(("\u041a\u0442\u043e \u0442\u0430\u043c", "\u042d\u0442\u043e \u043c\u044b"))
CHINESE = table(("\u8fd9\u662f\u4ec0\u4e48\u4e1c\u897f", "\u8fd9\u662f\u82f9\u679c"))
STREET = "\u00dcber die Stra\u00dfe."
GERMAN_4 = table(*(("Wo ist der B\u00e4cker?", STREET),) * 4).encode()
BROKEN = "broken characters"


def _mixed() -> bytes:
    rows = ["Gr\u00fc\u00dfe,ja"] * 6
    good = "\n".join(rows).encode()
    return b"question,answer\n" + good + "\nGr\u00fc\u00dfe,nein\n".encode("latin-1") + good + b"\n"


ENCODINGS = [
    keep("bom-utf8.csv", GERMAN.encode("utf-8-sig"), 1, last=STREET),
    keep("bom-utf8.jsonl", lines(*pairs(2)).encode("utf-8-sig"), 2, last="It is 2."),
    keep("bom-utf8-array.json", json.dumps(pairs(2)).encode("utf-8-sig"), 2),
    keep("bom-utf16-le.csv", codecs.BOM_UTF16_LE + GERMAN.encode("utf-16-le"), 1, last=STREET),
    keep("bom-utf16-be.csv", codecs.BOM_UTF16_BE + GERMAN.encode("utf-16-be"), 1, last=STREET),
    keep("bom-utf32-le.csv", codecs.BOM_UTF32_LE + GERMAN.encode("utf-32-le"), 1, last=STREET),
    keep("bom-utf32-be.csv", codecs.BOM_UTF32_BE + GERMAN.encode("utf-32-be"), 1, last=STREET),
    keep("utf16-le-no-bom.csv", GERMAN.encode("utf-16-le"), 1, last=STREET, note="UTF-16 LE"),
    keep("utf16-be-no-bom.csv", GERMAN.encode("utf-16-be"), 1, last=STREET, note="UTF-16 BE"),
    keep("utf16.jsonl", lines(*pairs(3)).encode("utf-16"), 3, last="It is 3."),
    keep("cp1252.csv", GERMAN.encode("cp1252"), 1, last=STREET, note="Windows-1252 (a guess)"),
    keep("cp1252-dashes.csv", table(("a \u2013 b", "\u201cc\u201d")).encode("cp1252"), 1,
         last="\u201cc\u201d", note="Windows-1252"),
    keep("latin1-c1.csv", table(("a\u0081b", "\u00e9t\u00e9")).encode("latin-1"), 1,
         last="\u00e9t\u00e9", note="Latin-1 (a guess)"),
    keep("shift-jis.csv", JAPANESE.encode("shift-jis"), 1, note="Shift-JIS (a guess)", last=APPLE),
    refuse("cp1251-russian.csv", RUSSIAN.encode("cp1251"), "neither UTF-8 nor Western European"),
    refuse("koi8-russian.csv", RUSSIAN.encode("koi8-r"), "neither UTF-8 nor Western European"),
    refuse("gbk-chinese.csv", CHINESE.encode("gbk"), "neither UTF-8 nor Western European"),
    refuse("euc-japanese.csv", JAPANESE.encode("euc-jp"), "neither UTF-8 nor Western European"),
    refuse("ebcdic.csv", table(*(("What is it", "An apple"),) * 3).encode("cp037"),
           "neither UTF-8 nor Western European"),
    refuse("nul-early.csv", b"question,answer\na\0b,c\n", "a binary file"),
    keep("nul-late.csv", ("question,answer\n" + "what,that\n" * 7000 + "a\0b,c\n").encode(), 7001,
         {"a NUL character": 1}),
    keep("nul-escape.jsonl", lines(*pairs(2), {"question": "a\0", "answer": "b"}), 3,
         {"a NUL character": 1}),
    keep("surrogate-escape.jsonl", lines(*pairs(2)) + '{"question": "a", "answer": "\\ud800"}\n', 3,
         {BROKEN: 1}),
    keep("surrogate-pair-escape.jsonl", '{"question": "a", "answer": "\\ud83d\\ude00"}\n', 1,
         last="\U0001f600"),
    keep("surrogate-in-a-key.jsonl", lines(*pairs(2)) + '{"\\ud800": "a", "answer": "b"}\n', 3,
         {"column's name holds broken": 1}),
    keep("surrogate-utf16.csv",
         "question,answer\na,b\nc,\ud800d\n".encode("utf-16", "surrogatepass"), 2, {BROKEN: 1}),
    keep("utf32-out-of-range.csv", "question,answer\na,b\nc,d".encode("utf-32")
         + b"\xff\xff\xff\x7f", 2, {BROKEN: 1}),
    keep("cesu8.csv", GERMAN_4 + b"c,\xed\xa0\x80\n", 5, {BROKEN: 1}),
    keep("overlong.csv", GERMAN_4 + b"c,\xc0\xaf\n", 5, {BROKEN: 1}),
    keep("overlong-nul.csv", GERMAN_4 + b"c,\xc0\x80\n", 5, {BROKEN: 1}),
    keep("mixed-utf8-latin1.csv", _mixed(), 13, {BROKEN: 1}, note="2 characters are not valid"),
    keep("utf8-cut-in-a-character.csv", GERMAN_4 + "x,\u00fc".encode()[:-1], 5, {BROKEN: 1}),
    keep("invalid-byte-in-unused-column.csv",
         b"id,question,answer\n" + "\u00fc,\u00e4,\u00f6\n".encode() * 3 + b"\xff,a,b\n", 4),
    refuse("broken-header.csv", "ques\u00fc\u00e4".encode() + b"\xff,answer\na,b\n",
           "column's name holds broken characters", line=1),
    refuse("utf16-odd.csv", GERMAN.encode("utf-16")[:-1], "bytes are missing"),
    refuse("utf32-cut.csv", GERMAN.encode("utf-32")[:-3], "bytes are missing"),
    refuse("utf16-bom-on-ascii.csv", b"\xff\xfequestion,answer!\na,b!\n", "the file has no rows"),
    refuse("bom-alone.csv", b"\xef\xbb\xbf", "the file is empty"),
    refuse("bom-utf16-alone.csv", b"\xff\xfe", "the file is empty"),
    keep("bom-twice.csv", codecs.BOM_UTF8 * 2 + b"question,answer\na,b\n", 1),
    keep("bom-in-the-middle.jsonl", (lines(*pairs(1)) + "\ufeff" + lines(*pairs(2))).encode(), 3,
         {"not valid JSON": 1}),
]  # fmt: skip

LINE_ENDS = [
    keep("cr.csv", "question,answer\ra,b\rc,d\r", 2, last="d"),
    keep("crlf.csv", "question,answer\r\na,b\r\nc,d\r\n", 2, last="d"),
    keep("mixed-ends.csv", "question,answer\r\na,b\nc,d\re,f", 3, last="f"),
    keep("lf-cr.csv", "question,answer\n\ra,b\n\rc,d\n\r", 2, last="d"),
    keep("cr.jsonl", lines(*pairs(3)).replace("\n", "\r"), 3, last="It is 3."),
    keep("crlf.jsonl", lines(*pairs(3)).replace("\n", "\r\n"), 3),
    keep("no-last-end.jsonl", lines(*pairs(3))[:-1], 3),
    keep("u2028.csv", table(("a\u2028b", "c\u2029d")), 1, last="c\u2029d"),
    keep("u2028.jsonl", '{"question": "a\u2028b", "answer": "c\u2028d"}\n', 1, last="c\u2028d"),
    keep("nel.csv", table(("a\u0085b", "c\u0085d")), 1, last="c\u0085d"),
    keep("vertical-tab-form-feed.csv", table(("a\x0bb", "c\x0cd")), 1, last="c\x0cd"),
    keep("file-separators.csv", table(("a\x1cb", "c\x1dd\x1ee")), 1, last="c\x1dd\x1ee"),
    keep("file-separators.jsonl", lines({"question": "a\x1cb", "answer": "c\x1dd"}), 1),
    keep("crlf-paragraphs.txt", "One\r\nmore\r\n\r\nTwo\r\n", 2, last="Two"),
    keep("blank-lines-first.csv", "\n" * 300 + "question,answer\na,b\n", 1, last="b"),
    keep("blank-lines-first.jsonl", "\n" * 300 + lines(*pairs(2)), 2),
    keep("quoted-line-breaks.csv", 'question,answer\na,"b\r\nc\rd"\ne,f\n', 2, last="f"),
]

HARDLY_ANYTHING = [
    refuse("empty.csv", b"", "the file is empty"),
    refuse("empty.json", b"", "the file is empty"),
    refuse("empty.parquet", b"", "the file is empty"),
    refuse("spaces.csv", b"   ", "the file is empty"),
    refuse("line-ends.jsonl", b"\r\n\n\r\n", "the file is empty"),
    refuse("tabs.txt", b"\t\t\n\t", "the file is empty"),
    keep("one-letter.txt", b"a", 1, last="a"),
    refuse("one-letter.csv", b"a", "the file has no rows"),
    refuse("one-letter.json", b"a", "does not begin like JSON", line=1),
    refuse("one-nul.txt", b"\0", "a binary file"),
    refuse("one-brace.json", b"{", "the file ends in the middle", line=1),
    refuse("one-bracket.jsonl", b"[", "the file ends in the middle", line=1),
    refuse("one-quote.csv", b'"', "a quote is opened here and never closed"),
    keep("one-high-byte.txt", b"\xff", 1, last="\u00ff", note="Windows-1252"),
    refuse("no-break-spaces.txt", "\u00a0\u3000\u2003\n", "the file has no rows"),
]

CASES: list[Case] = [*ENCODINGS, *LINE_ENDS, *HARDLY_ANYTHING]
