"""Runs the checks while a data set is written, and writes down what they found.

Owns these files of a data set's folder, all made by the child that writes data.jsonl:

    hashes.npy      (rows, 3) uint64: whole row, prompt, last answer (core.checks.row_hashes)
    places.npy      (rows, 2) int64: number `i` and line (-1: unknown) of each row of data.jsonl
    flags.npy       (rows,) uint16: bit n is set where the row does not pass FLAGGED[n]
    findings.jsonl  {"check", "i", "line", "detail"}: the hits, at most LISTED a check
    left_out.jsonl  {"check", "i", "line", "reason", "remedy", "preview"}: rows that cannot train

Counts are complete, and so are the flags; only the two lists end at LISTED. `finish` returns what
dataset.json keeps as `checks`. Reading them is services.check_lists. Works in bounded memory: 42
bytes a row.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.core.checks import (
    CHECKS,
    HASH_MIX,
    LEFT_OUT_CHECKS,
    Check,
    LabelBalance,
    inspect_row,
    left_out_check,
)
from studio.core.examples import Example, RowProblem
from studio.services.set_checks import conflicting_answers, duplicates

HASHES, PLACES, FLAGS = "hashes.npy", "places.npy", "flags.npy"
LABELS = "labels.npy"  # of a part only
FINDINGS, LEFT_OUT = "findings.jsonl", "left_out.jsonl"
LISTED = 100_000
FIRST = 5
PREVIEW_CHARS = 400
NO_LINE = -1
_BEGIN = '{"check": "'  # of each line of both lists

# The order is that of the bits in flags.npy; new ones go to the end.
FLAGGED = (
    "duplicate", "conflicting_answers", "unbalanced_labels", "same_text", "looks_empty",
    "broken_encoding", "control_characters", "secret", "email",
)  # fmt: skip
BIT = {check: 1 << number for number, check in enumerate(FLAGGED)}


class Findings:
    """Takes each row as it is written; `finish` adds what only the whole set can tell.

    Args:
        folder: where the files go; data.jsonl lies there too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes, self._places, self._flags = bytearray(), array("q"), array("H")
        self._labels = LabelBalance()
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[dict[str, Any]]] = {}
        self._hits = (folder / FINDINGS).open("w", encoding="utf-8", errors="backslashreplace")
        self._left_out = (folder / LEFT_OUT).open("w", encoding="utf-8", errors="backslashreplace")

    def row(self, example: Example, *, harmless: bool = False) -> None:
        """A row that trains, in the order of data.jsonl; `harmless` as in `inspect_row`."""
        hits, (_, prompt, answer) = inspect_row(example, harmless=harmless)
        self._hashes += prompt.to_bytes(8, "little") + answer.to_bytes(8, "little")
        line = example.line
        self._places.extend((example.i, NO_LINE if line is None else line))
        self._labels.add(example.label)
        flags = 0
        for hit in hits:
            flags |= BIT[hit.check]
            self._note(hit.check, example.i, line, hit.detail)
        self._flags.append(flags)

    def clean_rows(self, places: list[int], hashes: bytes) -> None:
        """Rows that pass every check of a single row and have no label.

        Args:
            places: i and line of each. hashes: of its prompt and its answer, 8 bytes each.
        """
        self._hashes += hashes
        self._places.extend(places)
        count = len(places) // 2
        self._labels.add_none(count)
        self._flags.frombytes(bytes(self._flags.itemsize * count))

    def left_out(self, i: int, line: int | None, problem: RowProblem, row: Any) -> None:
        """A row of the source that cannot train, with what could be read of it (or None)."""
        check = left_out_check(problem)
        self._counts[check] += 1
        first = self._first.setdefault(check, [])
        if len(first) < FIRST:
            first.append({"i": i, "line": line, "detail": problem.reason})
        if self._counts[check] <= LISTED:
            record = {
                "check": check, "i": i, "line": line, "reason": problem.reason,
                "remedy": problem.remedy, "preview": "" if row is None else clipped(row),
            }  # fmt: skip
            self._left_out.write(json.dumps(record, ensure_ascii=False) + "\n")

    def count_left_out(self, problem: RowProblem, count: int) -> None:
        """So many more rows of this problem, of which nothing else is known."""
        self._counts[left_out_check(problem)] += count

    def finish(self) -> list[dict[str, Any]]:
        """Write the files and return the checks that found something, worst first."""
        hashes = with_whole(_as_array(self._hashes, np.uint64).reshape(-1, 2))
        places = _as_array(self._places, np.int64).reshape(-1, 2)
        flags = _as_array(self._flags, np.uint16).copy()
        repeats, conflicts = duplicates(hashes), conflicting_answers(hashes)
        for check, matches, words in (
            ("duplicate", repeats, "repeats row"),
            ("conflicting_answers", conflicts, "another answer stands in row"),
        ):
            flags[matches.rows] |= BIT[check]
            self._counts[check] += len(matches)
            for at, other in zip(matches.rows[:LISTED], matches.others[:LISTED], strict=True):
                self._list(check, places[at], f"{words} {_place(places[other])}")
        rare = self._labels.hits()
        self._counts["unbalanced_labels"] += len(rare)
        for at, detail in rare.items():
            flags[at] |= BIT["unbalanced_labels"]
            self._list("unbalanced_labels", places[at], detail)
        for name, values in ((HASHES, hashes), (PLACES, places), (FLAGS, flags)):
            np.save(self._folder / name, values, allow_pickle=False)
        self.close()
        return summaries(self._counts, self._first)

    def finish_part(self) -> dict[str, Any]:
        """Leave what was found in the folder for `append_part`, which takes what is returned."""
        self.close()
        for name, values in (
            (HASHES, _as_array(self._hashes, np.uint64)),
            (PLACES, _as_array(self._places, np.int64)),
            (FLAGS, _as_array(self._flags, np.uint16)),
            (LABELS, self._labels.rows()),
        ):
            np.save(self._folder / name, values, allow_pickle=False)
        return {"counts": self._counts, "first": self._first, "labels": self._labels.names()}

    def append_part(self, folder: Path, part: dict[str, Any]) -> None:
        """Take over what was found in the rows that follow."""
        self._hashes += np.load(folder / HASHES, allow_pickle=False).tobytes()
        self._places.frombytes(np.load(folder / PLACES, allow_pickle=False).tobytes())
        self._flags.frombytes(np.load(folder / FLAGS, allow_pickle=False).tobytes())
        self._labels.append(part["labels"], np.load(folder / LABELS, allow_pickle=False).tolist())
        for name, target in ((FINDINGS, self._hits), (LEFT_OUT, self._left_out)):
            room = {check: LISTED - count for check, count in self._counts.items()}
            with (folder / name).open(encoding="utf-8") as file:
                for line in file:
                    check = line[len(_BEGIN) : line.index('"', len(_BEGIN))]
                    room[check] = room.get(check, LISTED) - 1
                    if room[check] >= 0:
                        target.write(line)
        for check, hits in part["first"].items():
            first = self._first.setdefault(check, [])
            first += hits[: FIRST - len(first)]
        self._counts.update(part["counts"])

    def close(self) -> None:
        """Close the lists; harmless after `finish`."""
        self._hits.close()
        self._left_out.close()

    def _note(self, check: str, i: int, line: int | None, detail: str) -> None:
        self._counts[check] += 1
        if self._counts[check] <= LISTED:
            self._write(check, i, line, detail)

    def _list(self, check: str, place: NDArray[np.int64], detail: str) -> None:
        """A hit of the whole set: counted already, in ascending order."""
        i, line = place.tolist()
        self._write(check, i, None if line == NO_LINE else line, detail)

    def _write(self, check: str, i: int, line: int | None, detail: str) -> None:
        hit = {"i": i, "line": line, "detail": detail}
        first = self._first.setdefault(check, [])
        if len(first) < FIRST:
            first.append(hit)
        self._hits.write(json.dumps({"check": check, **hit}, ensure_ascii=False) + "\n")


def with_whole(pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of prompt and answer with that of the whole row before them (core.checks)."""
    whole = pairs[:, 0] * np.uint64(HASH_MIX) + pairs[:, 1]
    return np.column_stack((whole, pairs))


def _as_array(values: array[Any] | bytearray, kind: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(values, kind) if len(values) else np.empty(0, kind)


def _place(place: NDArray[np.int64]) -> str:
    i, line = place.tolist()
    return f"{i:,}" if line == NO_LINE else f"{i:,} (line {line:,})"


def clipped(value: Any) -> str:
    """The first characters of a row or cell as JSON, to be shown."""
    try:
        text = value
        if not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "(nested too deeply to show)"
    except (TypeError, ValueError):  # keys or numbers that JSON cannot write
        text = str(value)
    return text[:PREVIEW_CHARS]


def summaries(counts: Counter[str], first: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The `checks` of dataset.json: those that found something, in the order of CHECKS."""
    return [
        summary(check, counts[check.id], first.get(check.id, []))
        for check in CHECKS.values()
        if counts[check.id]
    ]


def summary(check: Check, count: int, first: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry of `checks`."""
    fix = None
    if check.fix is not None and count:
        step = {"step": check.fix_step, "check": check.id}
        label = check.fix.format(n=f"{count:,}")
        fix = {"step": step, "label": label.removesuffix("s") if count == 1 else label}
    return {
        "id": check.id, "title": check.title, "level": check.level, "count": count,
        "listed": min(count, LISTED), "first": first[:FIRST], "remedy": check.remedy, "fix": fix,
        "left_out": check.id in LEFT_OUT_CHECKS,
    }  # fmt: skip
