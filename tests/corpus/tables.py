"""Delimited tables: ragged rows, quotes, delimiters, headers, sizes."""

from __future__ import annotations

import json

from tests.corpus.case import Case, keep, refuse, table

HEAD = "question,answer\n"
CELLS = "cells, the header has 2"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def _wide(count: int) -> bytes:
    names = ",".join(f"name{n}" for n in range(count))
    return f"{names}\n{','.join('x' for _ in range(count))}\n".encode()


def _cell(size_bytes: int) -> bytes:
    return HEAD.encode() + b"a,b\nc," + b"x" * size_bytes + b"\ne,f\n"


RAGGED = [
    keep("ragged-short.csv", HEAD + "a,b\nc\nd,e\n", 3, {"1 " + CELLS: 1}, last="e"),
    keep("ragged-long.csv", HEAD + "a,b\nc,d,e\nf,g\n", 3, {"3 " + CELLS: 1}, last="g"),
    keep("ragged-both.csv", HEAD + "a\nb,c,d\ne,f\n", 3, {CELLS: 2}, last="f"),
    keep("ragged-trailing-comma.csv", HEAD + "a,b,\nc,d\n", 2, {"3 " + CELLS: 1}, last="d"),
    refuse("ragged-all.csv", HEAD + "a,b,\nc,d,\n", "3 " + CELLS, line=2),
    refuse("ragged-header-short.csv", "answer\na,b\nc,d\n", "the header has 1", line=2),
    keep("ragged-by-unquoted-comma.csv", HEAD + "a,b\nwell, c,d\ne,f\n", 3, {"3 " + CELLS: 1}),
    keep("ragged-semicolon.csv", "question;answer\na;b\nc;d;e\nf;g\n", 3, {"3 " + CELLS: 1}),
    keep("ragged-tab.tsv", "question\tanswer\na\tb\nc\nd\te\n", 3, {"1 " + CELLS: 1}, last="e"),
    keep("ragged-far-down.csv", HEAD + "a,b\n" * 500 + "c\n" + "d,e\n" * 500, 1001, {CELLS: 1}),
    keep("pandas-index.csv", ",question,answer\n0,a,b\n1,c,d\n", 2, last="d"),
    keep("trailing-comma-everywhere.csv", "question,answer,\na,b,\nc,d,\n", 2, last="d"),
]
QUOTES = [
    refuse("quote-unclosed.csv", HEAD + 'a,b\n"c,d\ne,f\n', "opened here and never closed", line=3),
    refuse("quote-unclosed-last.csv", HEAD + 'a,b\nc,"d\n', "opened here and never closed", line=3),
    refuse("quote-unclosed-header.csv", '"question,answer\na,b\n', "never closed"),
    refuse("quote-then-text.csv", HEAD + 'a,b\n"c"d,e\n', "a quote ends in the middle", line=3),
    refuse("quote-backslash.csv", HEAD + '"say \\"hi\\" now",b\n', "a quote ends in the middle"),
    refuse("quote-then-blank.csv", HEAD + '"a" ,b\n', "a quote ends in the middle", line=2),
    keep("quote-inside-plain-cell.csv", HEAD + 'say "hi" now,b\n', 1, last="b"),
    keep("quote-doubled.csv", HEAD + 'a,"say ""hi"""\n', 1, last='say "hi"'),
    keep("quote-mixed.csv", HEAD + '"a",b\nc,"d"\n"e","f"\n', 3, last="f"),
    keep("quote-single.csv", HEAD + "'a','b'\n", 1, last="'b'"),
    keep("quote-empty.csv", HEAD + '"",b\nc,""\nd,e\n', 3, {"is empty": 2}, last="e"),
    keep("quote-delimiters-inside.csv", HEAD + '"a,;|\t","b,;|\t."\n', 1, last="b,;|\t."),
    keep("quote-lines-inside.csv", HEAD + 'a,"1\n2\n3"\nb,c\n', 2, last="c"),
    keep("quote-curly.csv", HEAD + "\u201ca\u201d,\u201cb\u201d\n", 1, last="\u201cb\u201d"),
    keep("quote-open.tsv", 'question\tanswer\n"a\tb\nc\t"d\n', 2, last='"d'),
    keep("quote-after-bom.csv", ('\ufeff"question","answer"\n"a","b"\n').encode(), 1, last="b"),
    keep("quote-after-two-boms.csv", '\ufeff\ufeff"question","answer"\n"a","b"\n'.encode(), 1),
]
DELIMITERS = [
    keep("semicolon.csv", table(("a", "b"), ("c", "d"), delimiter=";"), 2, last="d"),
    keep("pipe.csv", table(("a", "b"), ("c", "d"), delimiter="|"), 2, last="d"),
    keep("tab.csv", table(("a", "b"), ("c", "d"), delimiter="\t"), 2, note="separated by tab"),
    keep("comma.tsv", table(("a", "b"), ("c", "d")), 2, last="d"),
    keep("tab.txt", table(("a", "b"), ("c", "d"), delimiter="\t"), 2, last="d"),
    keep("no-extension", table(*(("a", "b"),) * 4), 4, last="b"),
    keep("colon.csv", "question:answer\na:b\n", 1, last="a:b"),
    keep("sep-line.csv", "sep=;\nquestion;answer\na;b\n", 1, last="b"),
    refuse("sep-line-alone.csv", "sep=;\n", "the file is empty"),
    keep("sep-line-wrong.csv", "sep=|\nquestion;answer\na;b\n", 1, last="a;b"),
    keep("decimal-comma.csv", "question;answer\n1,5;2,5\n3,5;4,5\n", 2, last="4,5"),
    keep("sep-quote.csv", 'sep="\nquestion"answer\na"b\n', 2, last='a"b'),
]
HEADERS = [
    refuse("header-twice.csv", "text,text\na,b\n", "two columns have the same name", line=1),
    refuse("header-twice-blank.csv", "text, text \na,b\n", "two columns have the same name"),
    keep("header-empty-cell.csv", "question,,answer\na,x,b\n", 1, last="b"),
    refuse("header-only.csv", HEAD, "the file has no rows"),
    refuse("header-and-blank-lines.csv", HEAD + "\n\n\n", "the file has no rows"),
    refuse("header-twice-in-rows.csv", "answer,answer\n", "two columns have the same name", line=1),
    keep("header-missing.csv", table(*(("Where is it now?", "Over there."),) * 3, header=False), 3,
         note="no header"),
    keep("header-spaces.csv", " Question , Answer \na,b\n", 1, last="b"),
    keep("header-formula.csv", "=question,question,answer\n1,a,b\n", 1, last="b"),
    refuse("header-unknown.csv", "alpha,beta,gamma\n1,2,3\n", "None of the known formats fits"),
    keep("header-with-line-break.csv", '"ques\ntion",answer\na,b\n', 1, last="b"),
    refuse("header-rtl.csv", "\u202ealpha,be\u0000ta,gamma\n1,2,3\n".replace("\0", "\x07"),
           "None of the known formats fits"),
    refuse("header-html.csv", "<b>a</b>,<img src=x>,c\n1,2,3\n", "None of the known formats fits"),
    keep("header-repeated-below.csv", HEAD + "a,b\n" + HEAD + "c,d\n", 3,
         {"column names stand here again": 1}, last="d"),
]  # fmt: skip
CONTENTS = [
    keep("formulas.csv", HEAD + "=cmd|'/C calc'!A0,=1+1\n+1,-1\n@SUM(A1),b\n", 3, last="b"),
    keep("cells-empty.csv", HEAD + ",\na,\n,b\nc,d\n", 4, {"is empty": 3}, last="d"),
    refuse("cells-all-empty.csv", HEAD + ",\n,\n", "is empty", line=2),
    keep("cells-blank.csv", HEAD + "  ,a\nb,\t\nc,d\n", 3, {"is empty": 2}, last="d"),
    keep("numbers.csv", HEAD + "1,2\n3,4\n", 2, last="4"),
    keep("messages-in-cells.csv", table(*((json.dumps(CHAT),),) * 2, header=False).join(
        ["messages\n", ""]), 2, last="Yo"),
    keep("messages-in-cells-broken.csv", 'messages\n"' + json.dumps(CHAT).replace('"', '""')
         + '"\n"[{""role"": "\n', 2, {"is text, not a list of messages": 1}, last="Yo"),
    keep("html-and-scripts.csv", HEAD + "<script>alert(1)</script>,<img src=x onerror=y>\n", 1),
    refuse("only-delimiters.csv", ",,,\n,,,\n,,,\n", "None of the known formats"),
    refuse("comment-line-first.csv", "# made by hand\n" + HEAD + "a,b\n", CELLS[:-1] + "1", line=2),
    keep("cell-of-1-mib.csv", lambda: _cell(2**20), 3, last="f"),
    refuse("cell-of-17-mib.csv", lambda: _cell(17 * 2**20), "longer than 16 MiB", line=3),
    refuse("line-of-17-mib.csv", lambda: b"a" * (17 * 2**20), "longer than 16 MiB", line=1),
    refuse("cell-of-17-mib-in-lines.csv", lambda: HEAD.encode() + b'a,"' + b"x\n" * (9 * 2**20),
           "a quote is opened here and never closed", line=2),
    refuse("columns-100000.csv", lambda: _wide(100_000), "the row has 100,000 cells", line=1),
    refuse("columns-2001.csv", lambda: _wide(2_001), "the row has 2,001 cells", line=1),
    refuse("commas-10-million.csv", lambda: b"," * 10_000_000, "cells", line=1),
    keep("text-line-of-17-mib.txt", lambda: b"One.\n" + b"x" * (17 * 2**20) + b"\nTwo.\n", 3,
         {"longer than 16 MiB": 1}, last="Two."),
    keep("rows-blank-only-between.csv", HEAD + "a,b\n\n\n\nc,d\n", 2, last="d"),
]  # fmt: skip

CASES: list[Case] = [*RAGGED, *QUOTES, *DELIMITERS, *HEADERS, *CONTENTS]
