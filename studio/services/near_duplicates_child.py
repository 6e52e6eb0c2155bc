"""Finds rows that are almost the same as an earlier one, in a process of its own with limits.

    python -m studio.services.near_duplicates_child REQUEST.json

Two rows are near-duplicates when the sets of their word pairs (SHINGLE_WORDS words in a row, case
and punctuation aside) have a Jaccard similarity of THRESHOLD or more. MinHash sketches (package
datasketch) and bands propose candidates; each is then compared exactly, so nothing is named that is
not one. Of rows alike the first is kept and the others name it; exact repeats are another check.

Owns the sketches, the bands, the comparison, and the files it leaves in the request's folder:
near_duplicates.npy (rows, 3: position, position of the earlier row, similarity in thousandths),
result.json, progress.json. Word sets lie in a file that is mapped, not in memory.

REQUEST.json: {data, hashes (or null), name, folder, limits, rows}.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from studio.core.checks import row_hashes, turns_of
from studio.core.examples import Example
from studio.services.job_child import Words, run_child
from studio.services.near_duplicates import FOUND_FILE
from studio.services.progress_file import ProgressFile
from studio.services.set_checks import duplicates

THRESHOLD = 0.8
SHINGLE_WORDS = 2
SEED = 1
# 18 bands of 7: a pair at the threshold shares a band with a probability of
# 1 - (1 - 0.8**7)**18 = 0.986, one with half its word pairs in common with 0.13.
BANDS, BAND_ROWS = 18, 7
NUM_PERM = BANDS * BAND_ROWS
SHINGLES_AT_ONCE = 4096  # bounds the memory that one very long row takes
MAX_WORDS_KNOWN = 1 << 19
WORDS = Words(
    "comparing its rows", "Take a sample of the rows first", "its rows cannot be compared"
)

# Thai, Lao, Japanese and Chinese put no blanks between words: there a character is a word.
_NO_BLANKS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_NO_BLANKS}]|[^\\W{_NO_BLANKS}]+")
_ASCII_WORD = re.compile("[a-z0-9_]+")
_FIRST, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)

Shingles = NDArray[np.uint32]


class WordPairs:
    """Turns texts into sorted sets of 32-bit numbers, one a word pair; the same everywhere."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> Shingles:
        words = _words(text)
        known = self._known
        if len(known) > MAX_WORDS_KNOWN:
            known.clear()
        for word in words:
            if word not in known:
                known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        codes = np.fromiter(map(known.__getitem__, words), np.uint64, len(words))
        if len(codes) >= SHINGLE_WORDS:
            codes = codes[:-1] * _FIRST + codes[1:]
        mixed = (codes ^ (codes >> np.uint64(33))) * _MIX
        return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _words(text: str) -> list[str]:
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFC", text.casefold()))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Size of the intersection by size of the union of two sorted sets; 0 where both are empty."""
    smaller, larger = sorted((len(one), len(other)))
    if smaller == 0 or smaller < THRESHOLD * larger:
        return 0.0
    both = np.concatenate((one, other))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (smaller + larger - shared)


class Sketches:
    """Word sets and band keys of the rows that are looked at, on disk.

    Attributes:
        rows: position in data.jsonl of each sketched row, ascending.
        keys: (rows, BANDS), equal where a band of two sketches is equal.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "shingles.bin"
        self._ends: list[int] = []
        self._flat: NDArray[np.uint32] = np.empty(0, np.uint32)
        self.rows = np.empty(0, np.int64)
        self.keys = np.empty((0, BANDS), np.uint64)

    def build(self, texts: Iterator[tuple[int, str]]) -> None:
        """Sketch each (position, text)."""
        word_pairs, rows, keys, end = WordPairs(), [], [], 0
        sketch = MinHash(num_perm=NUM_PERM, seed=SEED, hashfunc=int)
        with self._file.open("wb") as file:
            for position, text in texts:
                shingles = word_pairs(text)
                end += len(shingles)
                rows.append(position)
                self._ends.append(end)
                file.write(shingles.tobytes())
                keys.append(_band_keys(sketch, shingles))
        self.rows = np.array(rows, np.int64)
        self.keys = np.array(keys, np.uint64).reshape(-1, BANDS)
        if end:
            self._flat = np.memmap(self._file, np.uint32, "r")

    def shingles(self, at: int) -> Shingles:
        """The word set of the row at a place of `rows`."""
        return self._flat[self._ends[at - 1] if at else 0 : self._ends[at]]

    def candidates(self) -> NDArray[np.int64]:
        """(pairs, 2) places, earlier first, that share a band: each with the one before it and the
        first of its band, which bounds them to two a row and band."""
        count = len(self.rows)
        found = [np.empty(0, np.int64)]
        for band in range(BANDS):
            order = np.argsort(self.keys[:, band], kind="stable")
            ordered = self.keys[order, band]
            begins = np.empty(count, bool)
            begins[:1] = True
            begins[1:] = ordered[1:] != ordered[:-1]
            first = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
            later = np.flatnonzero(~begins)
            for earlier in (first[later], later - 1):
                found.append(order[later] * count + order[earlier])
            if band % 6 == 5:
                found = [np.unique(np.concatenate(found))]
        pairs = np.unique(np.concatenate(found))
        return np.stack((pairs % max(1, count), pairs // max(1, count)), axis=1)


def _band_keys(sketch: MinHash, shingles: Shingles) -> NDArray[np.uint64]:
    sketch.clear()
    for start in range(0, len(shingles), SHINGLES_AT_ONCE):
        sketch.update_batch(shingles[start : start + SHINGLES_AT_ONCE].tolist())
    values = sketch.hashvalues.astype(np.uint64).reshape(BANDS, BAND_ROWS)
    keys = values[:, 0]
    for column in range(1, BAND_ROWS):
        keys = (keys ^ (keys >> np.uint64(29))) * _FIRST + values[:, column]
    return keys * _MIX


def near_duplicates(
    texts: Iterator[tuple[int, str]], folder: Path, told: ProgressFile | None = None
) -> NDArray[np.int64]:
    """(found, 3): position, position of the earlier row, similarity in thousandths."""
    sketches = Sketches(folder)
    sketches.build((at, text) for at, text in texts if text)
    pairs = sketches.candidates()
    stands_for: dict[int, int] = {}  # a row that is named -> the row that is kept in its place
    found: list[tuple[int, int, int]] = []
    for number, (earlier, later) in enumerate(pairs.tolist()):
        if told is not None and number % 1024 == 0:
            told.tell(0.8 + 0.2 * number / len(pairs), f"{number:,} pairs compared")
        kept = stands_for.get(earlier, earlier)
        if later in stands_for:
            continue
        similarity = jaccard(sketches.shingles(kept), sketches.shingles(later))
        if similarity >= THRESHOLD:
            stands_for[later] = kept
            rows = sketches.rows
            found.append((int(rows[later]), int(rows[kept]), round(1000 * similarity)))
    return np.array(found, np.int64).reshape(-1, 3)


def read_texts(request: dict[str, Any], told: ProgressFile) -> Iterator[tuple[int, str]]:
    """(position, text) of the rows that do not repeat an earlier one exactly."""
    repeats = None
    if request["hashes"]:
        hashes = np.load(request["hashes"], mmap_mode="r", allow_pickle=False)
        repeats = set(duplicates(hashes).rows.tolist())
    seen: set[int] = set()
    with Path(request["data"]).open("rb") as file:
        for position, line in enumerate(file):
            told.tell(0.8 * position / max(1, request["rows"]), f"{position:,} rows read")
            if repeats is not None and position in repeats:
                continue
            example = Example.from_dict(json.loads(line))
            if repeats is None:
                whole = row_hashes(example)[0]
                if whole in seen:
                    continue
                seen.add(whole)
            yield position, "\n".join([text for _, text in turns_of(example)])


def find(request: dict[str, Any]) -> dict[str, Any]:
    """The number of near-duplicates; they lie in the request's folder."""
    folder = Path(request["folder"])
    told = ProgressFile(folder)
    found = near_duplicates(read_texts(request, told), folder, told)
    np.save(folder / FOUND_FILE, found, allow_pickle=False)
    return {"count": len(found)}


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, find, WORDS))
