"""Fuzzed data files through the real import: does it crash, hang, swell, or shift a row?

    python -m tests.faults.hostile_data --trials 1000

Every cell of a good file carries a tag with its column and row. The file is damaged (bytes, cuts,
splices, tokens, columns, types, numbers) and imported by the limited child, as the studio does it.
A cell that is still whole must stand in its column, and a row of whole cells must be of one row,
unless the damaged file itself has them in one: where a piece is cut out from the middle of a row to
the same place of another, what is left is a good row, and no reader can tell.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from studio.core.errors import StudioError
from studio.services.datasets import DatasetStore
from tests.corpus.case import MAX_S, problems_of_message, verdict
from tests.corpus.everything import CASES
from tests.faults.result import Result, run_from_command_line

MAX_RSS_BYTES = 1_500_000_000
WORKERS = 2
WHOLE = re.compile(r"<([qxa])(\d+)>[^<>]*</\1\2>")
# Which cells may stand in which turn; an Alpaca input follows its instruction.
COLUMNS = {"user": "qx", "assistant": "a", "text": "q"}
WORDS = (
    "harbour", "a, b", "c; d", 'say "hi"', "two\nlines", "tab\there", "pipe | pipe", "\u00fcber",
    "\u65e5\u672c", "=1+1", "'quoted'", "[1, 2]", "{x}", "back\\slash", "0", "", "null",
    "\U0001f600",
)  # fmt: skip
SCRAPS = (
    b'"', b",", b"\n", b"\r", b"\0", b"{", b"}", b"[", b"]", b"\\", b"\\u", b"\\ud800", b"NaN",
    b"\t", b";", b'""', b'","', b"\xff", b"\xc3", b"\xef\xbb\xbf", b"9" * 5000, b"-", b"1e999",
    b"\xe2\x80\xa8", b"null", b"<b>", b"[" * 2000, b"PAR1", b"\x1f\x8b", b"# ", b"//", b":",
)  # fmt: skip


def cell(column: str, row: int, rng: random.Random) -> str:
    """A text that names its place."""
    body = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
    return f"<{column}{row}>{body}</{column}{row}>"


# ------------------------------------------------------------------ good files


def _table(rng: random.Random, rows: int) -> list[list[str]]:
    """Number, question, answer and source, in any order of columns."""
    order = rng.sample(range(4), 4)
    found = [["id", "question", "answer", "url"]]
    for row in range(rows):
        found.append([str(row), cell("q", row, rng), cell("a", row, rng), f"u{row}"])
    return [[line[at] for at in order] for line in found]


def _csv(rng: random.Random, rows: int) -> tuple[str, bytes]:
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=rng.choice(",;|\t"), lineterminator=rng.choice(["\n", "\r\n"]),
        quoting=rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    )  # fmt: skip
    writer.writerows(_change_table(_table(rng, rows), rng))
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])
    return "table.csv", out.getvalue().encode(encoding)


def _change_table(table: list[list[str]], rng: random.Random) -> list[list[str]]:
    """In some tables a row or two get or lose a cell, or a column stands twice."""
    if rng.random() < 0.4:
        for row in rng.sample(range(1, len(table)), 2):
            at = rng.randrange(4)
            if rng.random() < 0.5:
                table[row].insert(at, rng.choice(["", "0", table[row][at]]))
            else:
                del table[row][at]
    elif rng.random() < 0.1:
        at = rng.randrange(4)
        table = [[*row, row[at]] for row in table]
    return table


def _pairs(rng: random.Random, rows: int) -> list[Any]:
    return [
        {"id": row, "question": cell("q", row, rng), "answer": cell("a", row, rng)}
        for row in range(rows)
    ]


def _chats(rng: random.Random, rows: int) -> list[Any]:
    speaker, speech, names = rng.choice([
        ("role", "content", ("user", "assistant")), ("from", "value", ("human", "gpt")),
    ])  # fmt: skip
    return [
        {"messages": [{speaker: names[turn % 2], speech: cell("qa"[turn % 2], row, rng)}
                      for turn in range(2 * rng.randint(1, 3))]}
        for row in range(rows)
    ]  # fmt: skip


def _alpaca(rng: random.Random, rows: int) -> list[Any]:
    return [
        {"instruction": cell("q", row, rng), "input": cell("x", row, rng), "output":
         cell("a", row, rng)} for row in range(rows)
    ]  # fmt: skip


def _change_rows(found: list[Any], rng: random.Random) -> list[Any]:
    """In some files a value gets another type, goes, or grows."""
    if rng.random() < 0.4:
        for row in rng.sample(found, 2):
            key = rng.choice(list(row))
            row[key] = rng.choice(
                [None, 1, 1.5, True, [], {}, [[]], 10**400, "", " ", {"a": [row[key]]}, [row[key]]]
            )
            if rng.random() < 0.3:
                del row[key]
    return found


def _rows(rng: random.Random, rows: int) -> list[Any]:
    return _change_rows(rng.choice([_pairs, _chats, _alpaca])(rng, rows), rng)


def _jsonl(rng: random.Random, rows: int) -> tuple[str, bytes]:
    ascii_only = rng.random() < 0.5
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in _rows(rng, rows)]
    return "rows.jsonl", "\n".join(lines).encode()


def _json(rng: random.Random, rows: int) -> tuple[str, bytes]:
    found: Any = _rows(rng, rows)
    if rng.random() < 0.3:
        found = {"train": found, "test": _rows(rng, 2)}
    return "rows.json", json.dumps(found, indent=rng.choice([None, 1])).encode()


def _columns(rng: random.Random, rows: int) -> tuple[str, bytes]:
    found = _pairs(rng, rows)
    return "rows.json", json.dumps({key: [row[key] for row in found] for key in found[0]}).encode()


def _parquet(rng: random.Random, rows: int) -> tuple[str, bytes]:
    import pyarrow
    import pyarrow.parquet

    found = rng.choice([_pairs, _chats, _alpaca])(rng, rows)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(found), sink, row_group_size=rng.choice([5, 1000]),
        compression=rng.choice(["none", "snappy", "zstd"]),
        # Without checksums nobody can tell a changed index into a column's dictionary from a row
        # that was meant so; with them the import must notice each damaged page.
        write_page_checksum=True,
    )  # fmt: skip
    return "rows.parquet", sink.getvalue()


def _text(rng: random.Random, rows: int) -> tuple[str, bytes]:
    return "rows.txt", "\n\n".join(cell("q", row, rng) for row in range(rows)).encode()


def _gzip(rng: random.Random, rows: int) -> tuple[str, bytes]:
    name, content = rng.choice([_csv, _jsonl])(rng, rows)
    return f"{name}.gz", gzip.compress(content, mtime=0)


KINDS: tuple[Callable[[random.Random, int], tuple[str, bytes]], ...] = (
    _csv, _csv, _csv, _jsonl, _jsonl, _json, _json, _columns, _parquet, _text, _gzip,
)  # fmt: skip


# ------------------------------------------------------------------ damage


def damage(content: bytes, rng: random.Random) -> bytes:
    """One to four changes of the bytes."""
    data = bytearray(content)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:  # a bit
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:  # a byte
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:  # the end is missing
            del data[at:]
        elif kind == 3:  # a piece is missing
            del data[at : at + rng.randint(1, 200)]
        elif kind == 4:  # a piece stands twice, somewhere else
            piece = data[at : at + rng.randint(1, 200)]
            data[(there := rng.randrange(len(data) + 1)) : there] = piece
        elif kind == 5:  # something is put in
            data[at:at] = rng.choice(SCRAPS)
        elif data:  # one character becomes another everywhere behind
            old, new = rng.choice(b'",:;{}[]\n\\0'), rng.choice(b'",:;{}[]\n\\0')
            data[at:] = data[at:].replace(bytes([old]), bytes([new]), rng.choice([1, 3, -1]))
    return bytes(data)


# ------------------------------------------------------------------ one trial


def shifted(example: dict[str, Any], written: str = "") -> list[str]:
    """Whole cells that stand in a wrong column, or whole cells of several rows.

    Args:
        written: the damaged file's text.
    """
    turns = example.get("messages") or [{"role": "text", "content": example.get("text")}]
    wrong, rows, is_whole, cells = [], set(), True, []
    for turn in turns:
        for part in turn["content"].split("\n\n") if turn["role"] == "user" else [turn["content"]]:
            whole = WHOLE.fullmatch(part.strip())
            if whole is None:
                is_whole = False
                continue
            rows.add(whole[2])
            cells.append(f"<{whole[1]}{whole[2]}>")
            if whole[1] not in COLUMNS.get(turn["role"], ""):
                wrong.append(f"{whole[0][:60]!r} stands as {turn['role']}")
    if is_whole and len(rows) > 1 and not _stand_together(cells, written):
        wrong.append(f"rows {sorted(rows)} in one")
    return wrong


def _stand_together(cells: list[str], written: str) -> bool:
    """Whether the file has these cells one after another without the end of a row between them."""
    bare = WHOLE.sub(lambda whole: f"<{whole[1]}{whole[2]}>", written)
    wanted = r"[^\n}]*".join(map(re.escape, cells))
    backwards = r"[^\n}]*".join(map(re.escape, reversed(cells)))
    return re.search(f"{wanted}|{backwards}", bare) is not None


def _text_of(content: bytes) -> str:
    """What is written in a damaged file, as far as it can be read."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        content = gzip.decompress(content)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return content.decode(encoding, "replace")


def attempt(number: int, seed: int, folder: Path) -> tuple[list[str], str]:
    """One damaged file. Returns what is wrong, and what became of it."""
    rng = random.Random(f"{seed}:{number}")
    rows = 3000 if number % 100 == 99 else rng.randint(3, 40)
    name, content = rng.choice(KINDS)(rng, rows)
    content = damage(content, rng)
    folder.mkdir()
    path = folder / name
    path.write_bytes(content)
    store = DatasetStore(folder / "workspace")
    began = time.monotonic()
    try:
        info = store.import_file(path)
    except StudioError as error:
        wrong = problems_of_message(error)
        if name not in str(error):
            wrong.append(f"the message does not name the file: {error}")
        outcome = "files refused"
    except Exception as error:  # noqa: BLE001 - any other end is what is looked for
        return [f"{name}: the import raised {error!r}"], "crashes"
    else:
        wrong, outcome = _of_examples(store, info, _text_of(content)), "files accepted"
    took_s = time.monotonic() - began
    if took_s > MAX_S:
        wrong.append(f"{name}: took {took_s:.0f} s")
    shutil.rmtree(folder)
    return [f"trial {number}, seed {seed}, {name}: {problem}" for problem in wrong], outcome


def _of_examples(store: DatasetStore, info: Any, written: str) -> list[str]:
    wrong = []
    if info.used + info.left_out != info.rows:
        wrong.append(f"{info.used} used and {info.left_out} left out of {info.rows}")
    if sum(info.problem_reasons.values()) != info.left_out:
        wrong.append(f"the reasons do not add up: {info.problem_reasons}")
    examples = store.rows(info.id, 0, info.rows)
    if len(examples) != info.used:
        wrong.append(f"{len(examples)} of {info.used} examples can be read")
    for example in examples:
        wrong += [f"row {example['i']}: {problem}" for problem in shifted(example, written)]
    return wrong


def run(trials: int = 1000, seed: int = 0) -> Result:
    """Damage and import that many files, each through a limited child of its own."""
    before = _largest_child_bytes()
    result = Result(
        "Fuzzed data files through the import",
        "1,000 files: 0 crashes, 0 hangs over 30 s, under 1.5 GB, 0 rows shifted, all told",
    )
    with (
        tempfile.TemporaryDirectory(prefix="lora-studio-data-") as root,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        jobs = [
            pool.submit(attempt, number, seed, Path(root) / str(number)) for number in range(trials)
        ]
        for job in jobs:
            wrong, outcome = job.result()
            result.trials += 1
            result.count(outcome)
            result.failures += wrong
    _check_size(result, before)
    return result


def golden(trials: int = 0, seed: int = 0) -> Result:
    """Every file of the corpus against its expected outcome; `trials` limits their number."""
    before = _largest_child_bytes()
    result = Result(
        "Nasty data files by hand, each with its message or its counts",
        "150 files, each as expected; a message with file and reason for each refused one",
    )
    cases = CASES if not trials else random.Random(seed).sample(CASES, min(trials, len(CASES)))
    with tempfile.TemporaryDirectory(prefix="lora-studio-data-") as root:
        for number, case in enumerate(cases):
            folder = Path(root) / str(number)
            result.failures += [f"{case.name[:60]}: {wrong}" for wrong in verdict(case, folder)]
            result.trials += 1
            result.count("refused" if case.refused else "accepted")
            shutil.rmtree(folder)
    _check_size(result, before)
    return result


def _largest_child_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _check_size(result: Result, before: int) -> None:
    """The largest child so far. A child begins as a copy of this process, which must be small.

    The system counts for a process's whole life, and a child until its exec with its parent's
    memory: what an earlier test's child or this process itself used is not the import's.
    """
    rss_bytes = _largest_child_bytes()
    result.facts["MB in the largest child"] = rss_bytes // 10**6
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    is_ours = rss_bytes > max(before, ours)
    result.check(rss_bytes < MAX_RSS_BYTES or not is_ours, f"a child used {rss_bytes / 1e9:.1f} GB")


if __name__ == "__main__":
    sys.exit(run_from_command_line(run, __doc__, trials=1000))
