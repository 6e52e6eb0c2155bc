"""The fast way through JSON lines gives what the exact way gives, in one process and in two."""

import json
import random
from collections import Counter
from dataclasses import asdict

import pytest

from studio.core.checks import check_row, row_hashes
from studio.core.examples import Example
from studio.services import import_child, import_parts, job_child, line_blocks
from studio.services.framed_rows import FramedPairs
from studio.services.import_process import Limits
from studio.services.line_blocks import Range, blocks, count_rows, ranges
from studio.services.line_looks import look_at
from studio.services.plain_rows import PairReader, parse
from studio.services.source_rows import open_rows

FILES = ("data.jsonl", "hashes.npy", "places.npy", "flags.npy", "findings.jsonl", "left_out.jsonl")
TEXTS = [
    "Where does the ferry leave?", "From berth 4, at nine.", "a", "", "   ", "nan", "NaN ", "null",
    "[deleted]", "tab\there", 'a "quoted" word', "back\\slash", "C:\\user\\new", "two\nlines",
    "caf\u00e9", "\u4f60\u597d", "\U0001f600", "zero\u200bwidth", "bell\x07", "del\x7f", "nul\x00",
    "vt\x0b", "ff\x0c", "bs\b", "nel\x85", "caf\u00c3\u00a9", "lost \ufffd", "nbsp\u00a0",
    "\u2028 line separator", "ann@acme.io", "mail-bob@host.net now", "password=hunter2hunter2x",
    "Password: K7f9Q2m8Zx", "api-key: 9f8e7d6c5b4a3f2e1d", "apikey=Zx81kLm92QpR",
    "my_api_key = Zx81kLm92QpRs7", "auth_token: Zx81kLm92QpRs7", "a capital of therapy",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "https://u:pw1234567x@host.io/x",
    "sk-proj-abcDEF123456abcDEF123456abcDEF123456", "AKIAIOSFODNN7ABCDEFG", "secret_key",
    "supercalifragilisticexpialidocious", "https://a.io/b/c/d/e/f/g/h/i/j/k/l/m", "{}", "[]", "-",
]  # fmt: skip
ODD_LINES = [
    "", " ", "\t", "\u00a0", "\u3000", "\x1c", "{", "null", "[]", "3", '"text"', '{"a": }',
    '{"instruction": "a b c d", "instruction": "twice twice", "output": "one two three four"}',
    '{"instruction": "a\\"b", "instruction": "twice", "output": "answer \\" answer more"}',
    '{"instruction": "x", "output": NaN}',
    '{"instruction": "big", "output": 123456789012345678901}',
    '{"instruction": "f", "output": 1.10}', '{"instruction": "i", "output": 7}',
    '{"instruction": "half \\ud83d", "output": "half a pair of surrogates"}',
    '{"instruction": "pair \\ud83d\\ude00 pair", "output": "a whole pair of surrogates"}',
    '{"instruction": "esc \\u0070assword=Zx81kLm92QpRs7", "output": "an escaped letter here"}',
    '{"instruction": "abcdefghij\\/klmnopqrst1", "output": "an escaped slash in a long run"}',
    '{"instruction": "a long enough question", "input": 0, "output": "a long enough answer"}',
    '{"instruction": "a long enough question", "input": null, "output": "a long enough answer"}',
    '{"instruction": "a long enough question", "input": [], "output": "a long enough answer"}',
    '{"instruction": "a long enough question", "input": " ", "output": "a long enough answer"}',
    '{"instruction": "The same text twice", "output": "the same text twice "}',
    '{"instruction": "true is no text", "output": true}', '{"instruction": "no answer at all"}',
    '{"instruction":"compact","input":"","output":"a compact line of an export"}',
    '  {"instruction": "indented line here", "output": "with blanks around it"}  ',
    '{"instruction": "trailing comma", "output": "not allowed at all",}',
    '{"instruction": "raw\ttab", "output": "control characters are not allowed"}',
    '{"instruction": "open string', '{"instruction": "two"} {"instruction": "values"}',
    '{"instruction": ' + "[" * 1100 + "]" * 1100 + ', "output": "nested far too deep"}',
    '{"instruction": ' + "[" * 700 + "]" * 700 + ', "output": "nested deep"}',
    '\ufeff{"instruction": "a mark inside the file", "output": "is no blank in JSON"}',
    '{"instruction": "says \\"so\\" and\\n", "output": "\\n \\t an answer \\"quoted\\"\\r\\n "}',
    '{"instruction": "The same \\"text\\" twice", "output": "the same\\n\\"text\\" twice "}',
    '{"instruction": "an unknown \\x escape", "output": "is not allowed in JSON"}',
    '{"instruction": "ends in \\\\n", "input": "\\\\", "output": "a long enough answer\\\\"}',
    '{"\\"instruction": "a quote in a name", "instruction": "a b c d e f", "output": "a b c d e"}',
    '{"instruction": "cafe\u0301 is composed", "output": "caf\u00e9 is the same in NFC"}',
    '{"instruction": "CAF\u00c9 IS SAID TWICE", "output": "caf\u00e9 is said twice"}',
    '{"instruction": "\u200c\u200c\u200c\u200c\u200c\u200cnan", "output": "hidden nothing"}',
    '{"instruction": "a name \u00c3\\u201d", "output": "a quote that is escaped"}',
    '{"instruction": "line\\n\u00c3\u201d broken", "output": "behind an escaped line end"}',
]  # fmt: skip


PLAIN = [
    "Where does the ferry leave?",
    "From berth 4, at nine.",
    "\tSay it in two\nlines. ",
    'Write "so" and C:\\dir',
    "the capital of therapy_now",
    "x" * 19 + ", nothing more",
    "A caf\u00e9 in the next stra\u00dfe",
    "\u4f60\u597d, \u4e16\u754c\nand nothing\u00a0more",
]


def alpaca_line(draw):
    texts = PLAIN if draw.random() < 0.6 else TEXTS
    row = {
        "instruction": " ".join(draw.choices(texts, k=draw.randint(1, 3))),
        "output": draw.choice(texts) + draw.choice(["", " and so on to the end"]),
    }
    if draw.random() < 0.6:
        row["input"] = draw.choice(["", *texts])
    if draw.random() < 0.1:
        row["extra"] = draw.choice([None, 1, 2.5, {"a": ["b"]}, "x"])
    escaped = draw.random() < 0.3
    compact = (",", ":") if draw.random() < 0.3 else None
    return json.dumps(row, ensure_ascii=escaped, separators=compact)


def messages_line(draw):
    turns = [{"role": "user", "content": draw.choice(TEXTS)},
             {"role": "assistant", "content": draw.choice(TEXTS)}]  # fmt: skip
    if draw.random() < 0.3:
        turns.insert(0, {"role": "system", "content": draw.choice(TEXTS)})
    return json.dumps({"messages": turns}, ensure_ascii=draw.random() < 0.3)


def hostile_file(path, seed, *, count=60, ends=("\n",), line_of=alpaca_line, odd=0.25):
    draw = random.Random(seed)
    lines = ['{"instruction": "a plain first row", "input": "", "output": "a plain first answer"}']
    if line_of is messages_line:
        lines = [messages_line(random.Random(1))]
    lines += [draw.choice(ODD_LINES) if draw.random() < odd else line_of(draw)
              for _ in range(count)]  # fmt: skip
    text = "".join(line + draw.choice(ends) for line in lines)
    path.write_bytes((text[:-1] if draw.random() < 0.3 else text).encode("utf-8", "surrogatepass"))
    return path


def import_in_process(source, folder, workers=1):
    folder.mkdir(parents=True)
    request = {"source": str(source), "name": "rows.jsonl", "folder": str(folder),
               "format": "auto", "mapping": {}, "workers": workers,
               "limits": asdict(Limits.for_file(source.stat().st_size))}  # fmt: skip
    result = job_child.run(request, import_child.read_file)
    return result, {name: (folder / name).read_bytes() for name in FILES if "facts" in result}


def exactly(monkeypatch):
    """Makes the import read line by line, as other files are read."""

    def without(source):
        rows = open_rows(source)
        rows.whole_lines = False
        return rows

    monkeypatch.setattr(import_child, "open_rows", without)


@pytest.mark.parametrize("line_of", [alpaca_line, messages_line])
@pytest.mark.parametrize("ends", [("\n",), ("\r\n",), ("\n", "\r", "\r\n")])
def test_the_fast_way_gives_the_bytes_of_the_exact_way(tmp_path, monkeypatch, line_of, ends):
    compared = 0
    for seed in range(25):
        source = hostile_file(tmp_path / "rows.jsonl", seed, ends=ends, line_of=line_of)
        # A block is cut by the frames of the blocks before it.
        monkeypatch.setattr(line_blocks, "CHUNK_BYTES", (300, 2000, 1 << 18)[seed % 3])
        fast = import_in_process(source, tmp_path / f"fast-{seed}")
        with monkeypatch.context() as patch:
            exactly(patch)
            exact = import_in_process(source, tmp_path / f"exact-{seed}")
        assert fast == exact, seed
        compared += "facts" in fast[0]
    assert compared > 15  # the rest are files that are refused, with the same sentence


@pytest.mark.parametrize("seed", range(4))
def test_two_processes_give_the_bytes_of_one(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(import_parts, "FIRST_SHARE", 0.3 + 0.1 * seed)
    ends = ("\n",) if seed % 2 else ("\n", "\r\n", "\n\n")
    source = hostile_file(tmp_path / "rows.jsonl", seed, count=2600, ends=ends)
    assert len(ranges(source, 0.5)) == 2
    one = import_in_process(source, tmp_path / "one")
    two = import_in_process(source, tmp_path / "two", workers=2)
    assert two == one and not (tmp_path / "two" / "part-2").exists()
    assert len(one[0]["facts"]["offsets"]["bytes"]) > 1


MAPPING = {"instruction": "instruction", "output": "output", "input": "input"}


def test_what_the_fast_ways_take_passes_every_check():
    draw, taken = random.Random(3), Counter()
    lines = [alpaca_line(draw).encode() for _ in range(6000)]
    look = look_at(b"\n".join(lines) + b"\n")
    framed, reader = FramedPairs("alpaca", MAPPING), PairReader("alpaca", MAPPING)
    for _ in range(2):  # the frames are known in the second round
        block = framed.cut_block(look, look.exact | look.whole)
        for number, line in enumerate(lines):
            if number in look.exact:
                continue
            row, pairs = parse(line), {}
            pairs["parsed"] = row and reader.read(row, 1, 1)
            if number not in look.wide | look.whole:
                pairs["alone"] = framed.read(*block.line(number), 1, 1)
            if block.taken[number]:
                way = "in a block, wide" if number in look.wide else "in a block"
                (data,), hashes = block.pairs(number, number + 1, 1, 1)
                pairs[way] = data, *hashes
            for way, pair in pairs.items():
                if not pair:
                    continue
                taken[way] += 1
                data, *found = pair
                example = Example.from_dict(json.loads(data))
                assert data == example.to_json().encode() + b"\n", line
                assert check_row(example) == [], line
                _, *hashes = row_hashes(example)
                assert found == [one.to_bytes(8, "little") for one in hashes], line
    assert taken["parsed"] > 3000 and taken["alone"] > 1200
    assert taken["in a block"] > 300 and taken["in a block, wide"] > 200


def test_a_run_of_a_block_is_numbered_in_order():
    lines = b"".join(
        b'{"instruction": "a long enough text %d", "output": "the answer to \\"it\\""}\n' % n
        for n in range(9)
    )
    look, framed = look_at(lines), FramedPairs("alpaca", MAPPING)
    framed.read(*framed.cut_block(look, set()).line(0), 1, 1)
    block = framed.cut_block(look, {3})
    assert block.taken.tolist() == [number != 3 for number in range(9)]
    rows, hashes = block.pairs(4, 7, 50, 60)
    assert [json.loads(row)["i"] for row in rows] == [50, 51, 52]
    assert [json.loads(row)["line"] for row in rows] == [60, 61, 62]
    assert b"text 4" in rows[0] and len(hashes) == 6


@pytest.mark.parametrize("ends", ["\n", " \n", '",\n'])
def test_a_look_misses_no_line_that_a_check_sees(ends):
    draw = random.Random(5)
    for text in TEXTS:
        cells = [draw.choice([*TEXTS, "x" * draw.randint(0, 9)]) + text for _ in range(40)]
        rows = [json.dumps({"a": cell, "b": "no more"}, ensure_ascii=False) for cell in cells]
        data = "".join(row + ends for row in rows).encode("utf-8", "surrogatepass")
        look = look_at(data)
        for number, row in enumerate(rows):
            if number in look.exact | look.wide:
                continue
            hits = check_row(Example(messages=tuple(
                {"role": role, "content": cell}
                for role, cell in zip(("user", "assistant"), json.loads(row).values(), strict=True)
            )))  # fmt: skip
            assert {hit.check for hit in hits} <= {"looks_empty", "same_text"}, row


@pytest.mark.parametrize("start", range(8))
def test_a_look_finds_a_token_wherever_it_stands(start):
    run = "aB3" * 7
    data = " " * start + run[:20]
    assert look_at((data + "\n").encode()).exact == {0}
    assert look_at(data.encode()).exact == {0}
    assert look_at((data[:-1] + "\n").encode()).exact == set()


@pytest.mark.parametrize(
    "line",
    [
        b'{"instruction": {"instruction": "a long enough text"}, "output": "b long enough text"}',
        b'{"instruction": ["a long enough question"], "output": "a long enough answer"}',
        b'{"instruction": "a long enough question", "instruction": "a long enough answer"}',
        b'{"instruction": "a long enough question", "input": 3, "output": "a long enough answer"}',
        b'{"instruction": "a long enough question", "output": "a long enough answer"',
        b'"a text, not a row"', b"", b'{"', b'""""""""""""',
    ],
)  # fmt: skip
def test_what_is_no_row_of_texts_has_no_frame(line):
    framed = FramedPairs("alpaca", MAPPING)
    for _ in range(2):
        assert framed.read(line, line, 1, 1) is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a": "x\\"y", "b": ["c", {"d": "\\\\"}]}', True),
        (b'{"a": "x", "a": "y"}', False),
        (b'{"a": "x\\"", "a": "y"}', False),
        (b'{"a": 1}', True),
        (b'{"a": 1.5}', False),
        (b'{"a": 18446744073709551616}', False),
        (b'{"a": NaN}', False),
        (b'["a"]', False),
        (b"", False),
    ],
)
def test_a_line_is_taken_only_where_both_readers_agree(line, found):
    row = parse(line)
    assert (row is not None) is found
    if found:
        assert row == json.loads(line)


def test_blocks_hold_every_line_and_ranges_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("studio.services.line_blocks.CHUNK_BYTES", 7)
    path = tmp_path / "lines.txt"
    texts = (
        b"a\r\nbb\r\rccc\n\n\xc2\xa0\nlast", b"\xef\xbb\xbfone\ntwo\n", b"x" * 50 + b"\ny",
    )  # fmt: skip
    for text in texts:
        path.write_bytes(text)
        plain = text.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        for share in (0.0, 0.2, 0.5, 0.9, 1.0):
            first, second = ranges(path, share)
            assert first.end == second.start and second.end == len(text)
            parts = [b"".join(block.data for block in blocks(path, part))
                     for part in (first, second)]  # fmt: skip
            assert b"".join(parts).decode() == plain
            lines, rows = count_rows(path, first)
            before = parts[0].decode()
            assert lines == before.count("\n")
            assert rows == sum(1 for line in before.split("\n")[:-1] if line.strip())


def test_a_line_too_long_to_read_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("studio.services.line_blocks.CHUNK_BYTES", 64)
    monkeypatch.setattr("studio.services.line_blocks.MAX_LINE_BYTES", 200)
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\n" + b"x" * 1000 + b"\ntwo\n")
    found = [block.data for block in blocks(path, Range(0, path.stat().st_size))]
    assert b"" in found and b"".join(found) == b"one\ntwo\n"
