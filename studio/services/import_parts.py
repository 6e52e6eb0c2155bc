"""Imports JSON lines by blocks, and a big file in two processes at once.

The import child reads the first range of the file and starts import_part_child for the second one;
then it appends what is written there. Each process has the limits of an import for itself. When the
second one dies, the import child ends the same way, so that whoever watches it hears of the end of
an import as of one process.

Owns which rows take the fast way (services.plain_rows) and what the two processes tell each other:
in the folder part-2 request.json, result.json, progress.json, and the files of the rows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studio.services.example_file import ExampleFile
from studio.services.framed_rows import CutBlock, FramedPairs
from studio.services.import_rows import Outcome, RowWriter
from studio.services.job_child import ReportedError
from studio.services.json_rows import TOO_LONG, JsonParser, parse_line
from studio.services.line_blocks import Range, blocks, ranges
from studio.services.line_looks import look_at
from studio.services.plain_rows import Pair, PairReader, is_pair, parse
from studio.services.progress_file import PROGRESS_EVERY_S, ProgressFile
from studio.services.source_bytes import MAX_ROW_CHARS, Source

PART_FOLDER = "part-2"
# The second process starts Python and counts lines first; the first one appends the other's rows,
# as far as they are written when its own are done.
FIRST_SHARE = 0.48

Shape = tuple[str, dict[str, str]]


class LineReader:
    """Brings the lines of a range to a writer, each on the way that it needs.

    Args:
        lines: number of lines before the range.
    """

    def __init__(self, writer: RowWriter, shape: Shape, lines: int) -> None:
        self._writer = writer
        pairs = is_pair(*shape)
        self._framed = FramedPairs(*shape) if pairs else None
        self._pairs = PairReader(*shape) if pairs else None
        self._parser = JsonParser()
        self._line = lines
        self._clean: list[bytes] = []
        self._hashes: list[bytes] = []
        self._places: list[int] = []

    def take(self, data: bytes) -> None:
        """The next block of lines."""
        if not data:
            self._line += 1
            self._writer.take(self._line, TOO_LONG)
            return
        look = look_at(data)
        aside = look.exact | look.wide | look.whole
        others, block = range(len(look.ends)), None
        if self._framed is not None and len(data) < MAX_ROW_CHARS:
            block = self._framed.cut_block(look, look.exact | look.whole)
            others = np.flatnonzero(~block.taken).tolist()
        begins, ends, start = look.begins.tolist(), look.ends.tolist(), 0
        for number in others:
            self._take_run(block, start, number)
            start = number + 1
            self._line += 1
            if block is None or number in aside or not self._take_framed(*block.line(number)):
                row = None if number in look.exact else parse(data[begins[number] : ends[number]])
                if row is None:
                    self._take_exactly(data[begins[number] : ends[number] + 1])
                else:
                    self._take_row(row, harmless=number not in look.wide)
        self._take_run(block, start, len(ends))
        self._store()
        self._writer.check_size()

    def _take_framed(self, cut: bytes, plain: bytes) -> bool:
        pair = self._framed.read(cut, plain, self._writer.outcome.rows + 1, self._line)
        if pair is not None:
            self._take_pair(pair)
        return pair is not None

    def _take_run(self, block: CutBlock | None, start: int, end: int) -> None:
        """Lines of a block that are rows as they stand."""
        if block is None or start == end:
            return
        outcome, line, count = self._writer.outcome, self._line + 1, end - start
        rows, hashes = block.pairs(start, end, outcome.rows + 1, line)
        places = range(outcome.rows + 1, outcome.rows + count + 1), range(line, line + count)
        self._clean += rows
        self._hashes += hashes
        self._places += itertools.chain.from_iterable(zip(*places, strict=True))
        outcome.rows += count
        self._line += count

    def _take_pair(self, pair: Pair) -> None:
        data, prompt, answer = pair
        outcome = self._writer.outcome
        outcome.rows += 1
        self._clean.append(data)
        self._hashes += (prompt, answer)
        self._places += (outcome.rows, self._line)

    def _take_row(self, row: dict[str, Any], *, harmless: bool) -> None:
        pair = self._pairs and self._pairs.read(row, self._writer.outcome.rows + 1, self._line)
        if pair:
            self._take_pair(pair)
        else:
            self._store()
            self._writer.take(self._line, row, harmless=harmless)

    def _take_exactly(self, line: bytes) -> None:
        text = line.decode("utf-8")
        if not text.strip():
            return
        self._store()
        if len(text) > MAX_ROW_CHARS or len(text) == MAX_ROW_CHARS and not text.endswith("\n"):
            self._writer.take(self._line, TOO_LONG)
        else:
            self._writer.take(self._line, parse_line(text, self._parser))

    def _store(self) -> None:
        """Write the pairs that wait."""
        if self._clean:
            self._writer.target.add_clean(self._clean, self._places, b"".join(self._hashes))
            self._clean, self._hashes, self._places = [], [], []


def write_lines(
    request: dict[str, Any], source: Source, shape: Shape, outcome: Outcome
) -> dict[str, Any]:
    """Write the examples of a file of JSON lines; counts and problems go to `outcome`."""
    folder = Path(request["folder"])
    parts = ranges(source.path, FIRST_SHARE if request.get("workers", 1) > 1 else 1.0)
    second = SecondHalf(request, shape, parts) if parts[1].start < parts[1].end else None
    done = [0]

    def progress() -> dict[str, Any]:
        there = {"bytes": 0, "rows": 0} if second is None else second.progress()
        frac = (done[0] + there["bytes"]) / max(1, source.size_bytes)
        return {"frac": min(1.0, frac), "rows": outcome.rows + there["rows"],
                "second_pid": second and second.pid}  # fmt: skip

    told = ProgressFile(folder)
    with contextlib.ExitStack() as stack:
        if second is not None:
            stack.callback(second.end)
        target = stack.enter_context(ExampleFile(folder))
        writer = RowWriter(target, shape, outcome, source.max_bytes, source.too_big)
        reader = LineReader(writer, shape, 0)
        for block in blocks(source.path, parts[0]):
            reader.take(block.data)
            done[0] = block.end - parts[0].start
            told.tell_facts(progress)
        if second is not None:
            rows = outcome.rows
            target.follow(second.folder)
            for _ in second.wait():
                told.tell_facts(progress)
            found = second.result()
            target.append_part(second.folder, found["target"])
            outcome.append(rows + found["rows"], found["problems"], found["reasons"])
            writer.check_size()
        outcome.used = target.used
        return target.finish()


class SecondHalf:
    """The second process, from the side of the first."""

    def __init__(self, request: dict[str, Any], shape: Shape, parts: list[Range]) -> None:
        self.folder = Path(request["folder"]) / PART_FOLDER
        self.folder.mkdir()
        path = self.folder / "request.json"
        path.write_text(json.dumps({
            **request, "folder": str(self.folder), "shape": shape, "parts": parts,
            "parent": os.getpid(),
        }), encoding="utf-8", errors="surrogatepass")  # fmt: skip
        self._told = {"bytes": 0, "rows": 0}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "studio.services.import_part_child", str(path)],
            stdin=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def progress(self) -> dict[str, int]:
        """How far it is."""
        with contextlib.suppress(FileNotFoundError):
            self._told = json.loads((self.folder / "progress.json").read_text())
        return self._told

    def wait(self) -> Iterator[None]:
        """Yields now and then until it has ended."""
        while True:
            try:
                self._process.wait(PROGRESS_EVERY_S)
                return
            except subprocess.TimeoutExpired:
                yield

    def result(self) -> dict[str, Any]:
        """What it counted. Raises its error; where it died without one, so does this process."""
        code = self._process.returncode
        path = self.folder / "result.json"
        if code == 0 and path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            if "error" in result:
                raise ReportedError(result["error"])
            return result["facts"]
        if code < 0 and os.name != "nt":
            os.kill(os.getpid(), -code)
        raise SystemExit(code or 1)

    def end(self) -> None:
        """End it if it still runs and remove its folder; called however the import ends."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
