"""Tokenized rows on disk: made once for a data set, a tokenizer and a loss, then memory-mapped.

Owns `workspace/cache/tokens/<key>/`: its files, key, checks, and how much room they may take. Rows
are kept whole; cutting at max_length happens on reading, so one entry serves every length. Knows
nothing of data sets, batches or training.

    ids.i32, learned.u8     tokens of all rows one behind the other, and whether each is learned
    ends.u64                where each row ends
    facts.i32               four numbers a row, see FACTS
    manifest.json           what it was made of, reasons, size and sha256 of each file

An entry is written beside its place and renamed when it is whole, so a reader never sees half of
one, and of two writers the second finds the first one's. What does not verify is removed and made
again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy

from studio.backend.tokenize import IGNORED, TokenBatch
from studio.core.errors import StudioError
from studio.core.examples import RowProblem
from studio.core.runs import read_json
from studio.hardware.platforms import (
    free_bytes,
    make_folder,
    store_error,
    sync_file,
    sync_folder,
    write_json,
)

# Raised whenever the same row gives other tokens or labels: older entries are then not found.
ENCODING_VERSION = 1
MAX_CACHE_BYTES = 8 << 30
MIN_FREE_BYTES = 512 << 20  # checkpoints need room too
MAX_REASONS = 1000
STALE_S = 24 * 3600.0
# Of each row: place of its first and of its last learned token (-1: none; the first token of a row
# is never predicted, so it does not count), learned tokens, and its reason in the manifest if it
# cannot be used (-1: it can).
FACTS = ("first", "last", "trained", "reason")
_FILES = {"ids.i32": "<i4", "learned.u8": "u1", "ends.u64": "<u8", "facts.i32": "<i4"}

Progress = Callable[[int], None]
Cancelled = Callable[[], bool]


class TokenizingCancelledError(StudioError):
    """The user cancelled; nothing was kept."""


@dataclass(frozen=True)
class TokenRow:
    """One row as the trainer feeds it."""

    input_ids: list[int]
    labels: list[int]


@dataclass
class TokenTable:
    """Tokens of many rows; in memory or memory-mapped. Read only."""

    ids: numpy.ndarray
    learned: numpy.ndarray
    ends: numpy.ndarray
    facts: numpy.ndarray
    reasons: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ends)

    def lengths(self) -> numpy.ndarray:
        """Tokens of each row (int64)."""
        return numpy.diff(self.ends, prepend=self.ends.dtype.type(0)).astype(numpy.int64)

    def fact(self, name: str) -> numpy.ndarray:
        """One of FACTS for all rows (int32)."""
        return self.facts[:, FACTS.index(name)]

    def arrays(self, row: int, max_length: int | None = None) -> tuple[Any, Any]:
        """input_ids and labels of a row (int64), cut to max_length."""
        start = int(self.ends[row - 1]) if row else 0
        end = int(self.ends[row])
        if max_length is not None:
            end = min(end, start + max_length)
        ids = self.ids[start:end].astype(numpy.int64)
        return ids, numpy.where(self.learned[start:end] != 0, ids, IGNORED)

    def row(self, row: int, max_length: int | None = None) -> TokenRow:
        """The same as lists."""
        ids, labels = self.arrays(row, max_length)
        return TokenRow(ids.tolist(), labels.tolist())

    def refused(self, rows: Sequence[int] | numpy.ndarray | None = None) -> dict[str, int]:
        """How many of the rows (default: all) cannot be used, by reason, most frequent first."""
        found = self.fact("reason") if rows is None else self.fact("reason")[rows]
        counts = numpy.bincount(found[found >= 0], minlength=len(self.reasons))
        pairs = {self.reasons[i]: int(n) for i, n in enumerate(counts) if n}
        return dict(sorted(pairs.items(), key=lambda pair: -pair[1]))


class _Facts:
    """Collects the small numbers of all rows while the tokens go elsewhere."""

    def __init__(self) -> None:
        self.tokens = 0
        self._ends: list[numpy.ndarray] = []
        self._facts: list[numpy.ndarray] = []
        self._reasons: dict[str, int] = {}

    def add(self, batch: TokenBatch) -> None:
        """Take the numbers of one batch."""
        ends = numpy.cumsum(batch.lengths, dtype=numpy.int64)
        facts = numpy.full((len(batch.lengths), len(FACTS)), -1, numpy.int32)
        starts = ends - batch.lengths
        places = numpy.flatnonzero(batch.learned)
        rows = numpy.searchsorted(ends, places, side="right")
        later = places > starts[rows]
        places, rows = places[later], rows[later]
        counts = numpy.bincount(rows, minlength=len(ends))
        some = numpy.flatnonzero(counts)
        behind = numpy.cumsum(counts)[some]
        facts[some, 0] = places[behind - counts[some]] - starts[some]
        facts[some, 1] = places[behind - 1] - starts[some]
        facts[:, 2] = counts
        for row, problem in batch.problems.items():
            facts[row, 3] = self._reason(problem)
        self._ends.append((ends + self.tokens).astype(numpy.uint64))
        self._facts.append(facts)
        self.tokens += int(ends[-1]) if len(ends) else 0

    def _reason(self, problem: RowProblem) -> int:
        """Its number. A template may put the row into its message: the rest shares one line."""
        text = str(problem)
        if text not in self._reasons and len(self._reasons) >= MAX_REASONS:
            text = "other reasons of the model's chat template"
        return self._reasons.setdefault(text, len(self._reasons))

    def result(self) -> tuple[numpy.ndarray, numpy.ndarray, list[str]]:
        """Ends, facts and reasons of all rows."""
        return (
            numpy.concatenate(self._ends or [numpy.zeros(0, numpy.uint64)]),
            numpy.concatenate(self._facts or [numpy.zeros((0, len(FACTS)), numpy.int32)]),
            list(self._reasons),
        )


def table_in_memory(
    batches: Iterable[TokenBatch], *, progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> TokenTable:  # fmt: skip
    """A table without a file: for a run without a workspace, or a disk that is full."""
    facts, ids, learned = _Facts(), [], []
    done = 0
    for batch in batches:
        _stop_if(cancelled)
        facts.add(batch)
        ids.append(batch.ids)
        learned.append(batch.learned)
        done += len(batch.lengths)
        if progress:
            progress(done)
    ends, numbers, reasons = facts.result()
    return TokenTable(
        numpy.concatenate(ids or [numpy.zeros(0, numpy.int32)]),
        numpy.concatenate(learned or [numpy.zeros(0, numpy.uint8)]), ends, numbers, reasons,
    )  # fmt: skip


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identity of everything that decides which tokens a text becomes.

    The padding token is left out unless the template names it: no row depends on it, and the
    trainer chooses one where a model has none.
    """
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None or backend.padding is not None:
        backend.no_truncation()
        backend.no_padding()
    template = tokenizer.chat_template
    named = {
        name: text for name, text in tokenizer.special_tokens_map.items()
        if name != "pad_token" or "pad_token" in str(template)
    }  # fmt: skip
    facts = [
        ENCODING_VERSION, type(tokenizer).__name__, template, named,
        [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or ()],
        bool(tokenizer.split_special_tokens),
        [version(name) for name in ("tokenizers", "transformers", "jinja2")],
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(backend.to_str().encode())
    return digest.hexdigest()


def cache_key(
    data_fingerprint: str, tokenizer: Any, *, loss_on: str, system_prompt: str | None
) -> str:
    """The name of an entry."""
    parts = [data_fingerprint, tokenizer_fingerprint(tokenizer), loss_on, system_prompt or ""]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class TokenCache:
    """The entries of a workspace. Safe with several processes; each call stands for itself."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @classmethod
    def of_workspace(cls, workspace: Path) -> TokenCache:
        """Where the trainer, the page and the command line look."""
        return cls(workspace / "cache" / "tokens")

    def open(self, key: str) -> TokenTable | None:
        """The entry, or None where there is none; one that does not verify is removed."""
        folder = self._folder / key
        manifest = read_json(folder / "manifest.json")
        if not folder.is_dir():
            return None
        table = _load(folder, manifest) if manifest else None
        if table is None:
            shutil.rmtree(folder, ignore_errors=True)  # made again; what stays is tried again
            return None
        with contextlib.suppress(OSError):  # a read-only workspace is read all the same
            os.utime(folder / "manifest.json")  # used just now: the oldest is removed first
        return table

    def build(
        self, key: str, batches: Iterable[TokenBatch], *, progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> TokenTable:  # fmt: skip
        """Write an entry from all its rows and open it.

        Raises:
            StoreError: the disk refuses.
            TokenizingCancelledError: `cancelled` said so. In both cases nothing is kept.
        """
        staged = self._folder / f".{key}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            make_folder(self._folder)
            make_folder(staged)
            self._write(staged, key, batches, progress, cancelled)
            final = self._folder / key
            # Another process was faster, or what is there is damaged.
            if final.exists() and (table := self.open(key)) is not None:
                return table
            try:
                os.rename(staged, final)
            except OSError:
                if (table := self.open(key)) is not None:
                    return table
                raise
            sync_folder(self._folder)
            self.prune(keep=key)
            manifest = read_json(final / "manifest.json")
            table = _load(final, manifest, verify=False) if manifest else None
            if table is None:
                raise OSError(errno.EIO, "what was written cannot be read", str(final))
            return table
        except OSError as error:
            raise store_error(self._folder / key, error) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # gone already where it was renamed

    def prune(self, *, keep: str | None = None) -> None:
        """Remove the entries used longest ago until the rest fits, and what a dead writer left."""
        found: list[tuple[float, int, Path]] = []
        for folder in self._folder.iterdir():
            try:
                size = sum(file.stat().st_size for file in folder.iterdir())
                last = folder.stat().st_mtime
                if not folder.name.startswith("."):
                    last = (folder / "manifest.json").stat().st_mtime
            except OSError:
                continue  # removed by another process meanwhile
            if folder.name.startswith("."):
                if time.time() - last > STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            found.append((last, size, folder))
        total = sum(size for _, size, _ in found)
        for _, size, folder in sorted(found):
            if total <= self._max_bytes:
                break
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size

    def _check_room(self) -> None:
        free = free_bytes(self._folder)
        if free is not None and free < MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _write(
        self, staged: Path, key: str, batches: Iterable[TokenBatch],
        progress: Progress | None, cancelled: Cancelled | None,
    ) -> None:  # fmt: skip
        facts, done = _Facts(), 0
        digests = {name: hashlib.sha256() for name in _FILES}
        with (staged / "ids.i32").open("wb") as ids, (staged / "learned.u8").open("wb") as learned:
            for number, batch in enumerate(batches):
                _stop_if(cancelled)
                if number % 64 == 0:
                    self._check_room()
                facts.add(batch)
                for file, name, data in (
                    (ids, "ids.i32", batch.ids.astype("<i4", copy=False).tobytes()),
                    (learned, "learned.u8", batch.learned.tobytes()),
                ):
                    file.write(data)
                    digests[name].update(data)
                done += len(batch.lengths)
                if progress:
                    progress(done)
            for file in (ids, learned):
                file.flush()
                sync_file(file.fileno())
        ends, numbers, reasons = facts.result()
        for name, array in (("ends.u64", ends), ("facts.i32", numbers)):
            data = array.astype(_FILES[name], copy=False).tobytes()
            digests[name].update(data)
            (staged / name).write_bytes(data)
        write_json(staged / "manifest.json", {
            "schema": ENCODING_VERSION, "key": key, "rows": len(ends), "tokens": facts.tokens,
            "reasons": reasons,
            "files": {
                name: {"bytes": (staged / name).stat().st_size, "sha256": digest.hexdigest()}
                for name, digest in digests.items()
            },
        })  # fmt: skip


def _stop_if(cancelled: Cancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise TokenizingCancelledError("Tokenizing was cancelled; nothing was kept")


def _load(folder: Path, manifest: Mapping[str, Any], *, verify: bool = True) -> TokenTable | None:
    """The entry if all its files are what the manifest says."""
    try:
        rows, tokens = int(manifest["rows"]), int(manifest["tokens"])
        files = {name: manifest["files"][name] for name in _FILES}
        wanted = {"ids.i32": 4 * tokens, "learned.u8": tokens, "ends.u64": 8 * rows,
                  "facts.i32": 4 * len(FACTS) * rows}  # fmt: skip
        if manifest["schema"] != ENCODING_VERSION or any(
            (folder / name).stat().st_size != size or files[name]["bytes"] != size
            for name, size in wanted.items()
        ):
            return None
        if verify:
            with ThreadPoolExecutor(2) as pool:  # hashing leaves Python alone
                found = pool.map(partial(_sha256, folder), _FILES)
                if list(found) != [files[name]["sha256"] for name in _FILES]:
                    return None
        arrays = {
            name: numpy.memmap(folder / name, kind, "r") if wanted[name]
            else numpy.zeros(0, kind)
            for name, kind in _FILES.items()
        }  # fmt: skip
        return TokenTable(
            arrays["ids.i32"], arrays["learned.u8"], arrays["ends.u64"],
            arrays["facts.i32"].reshape(rows, len(FACTS)), [str(x) for x in manifest["reasons"]],
        )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _sha256(folder: Path, name: str) -> str:
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
