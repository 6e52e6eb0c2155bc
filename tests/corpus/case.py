"""One nasty data file with what must become of it, and the check that it does.

A file is either refused, with its name, a stable piece of the reason and a remedy, or accepted
with exact counts: rows, rows used, rows left out by reason. Nothing in between.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from studio.core.errors import StudioError
from studio.services import source_file
from studio.services.dataset_records import DatasetInfo
from studio.services.datasets import DatasetStore

MAX_S = 45.0  # the clock's limit of a small file is up to 35 s; most take less than one
Content = bytes | str | Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: the file's name, different for each case; its beginning names what is nasty.
        content: its bytes, or what makes them.
        refused: stable piece of the message, or empty where the file is accepted.
        line: line that the message must name.
        rows, used: counts where it is accepted.
        left_out: piece of a reason to number of rows.
        last: the last text of the last example used.
        note: piece of a note that must be there.
        make: makes something else than a file of this content; returns what is imported.
        meanwhile: done to the path after it was opened and before it is copied.
        shown_as: how messages call the file; None: the message names no file.
    """

    name: str
    content: Content = b""
    refused: str = ""
    line: int | None = None
    rows: int = 0
    used: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    last: str | None = None
    note: str = ""
    make: Callable[[Path], Any] | None = None
    meanwhile: Callable[[Path], None] | None = None
    shown_as: str | None = ""
    slow: bool = False

    def write(self, folder: Path) -> Any:
        """Make it in a folder; returns what to import."""
        if self.make is not None:
            return self.make(folder)
        content = self.content() if callable(self.content) else self.content
        path = folder / self.name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def refuse(
    name: str, content: Content, reason: str, line: int | None = None, **more: Any
) -> Case:  # fmt: skip
    """A file that must be refused."""
    return Case(name, content, refused=reason, line=line, **more)


def keep(
    name: str, content: Content, rows: int, left_out: Mapping[str, int] | None = None, **more: Any
) -> Case:
    """A file that must be accepted, with what is left out of it."""
    gone = dict(left_out or {})
    return Case(name, content, rows=rows, used=rows - sum(gone.values()), left_out=gone, **more)


def table(*rows: Sequence[str], delimiter: str = ",", header: bool = True) -> str:
    """A table of questions and answers."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerows(([("question", "answer")] if header else []) + list(rows))
    return out.getvalue()


def lines(*rows: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int) -> list[dict[str, str]]:
    """Good rows."""
    return [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(1, count + 1)]


def verdict(case: Case, folder: Path) -> list[str]:
    """Import the file the way the studio does; what is wrong with what came of it."""
    source = folder / "source"
    source.mkdir(parents=True)
    reference = case.write(source)
    store = DatasetStore(folder / "workspace")
    began = time.monotonic()
    info, error = None, None
    with _changed(case, reference):
        try:
            info = store.import_file(reference)
        except StudioError as caught:
            error = caught
    took_s = time.monotonic() - began
    wrong = [f"took {took_s:.0f} s"] if took_s > MAX_S else []
    wrong += _of_error(case, error) if info is None else _of_rows(case, info, store)
    staged = folder / "workspace" / "tmp"
    if staged.is_dir() and any(staged.iterdir()):
        wrong.append("something was left in the staging folder")
    return wrong


@contextmanager
def _changed(case: Case, reference: Any) -> Iterator[None]:
    """Do `meanwhile` at the moment between opening and copying."""
    if case.meanwhile is None:
        yield
        return

    def free_bytes(path: Path) -> None:
        case.meanwhile(reference)  # type: ignore[misc]

    with mock.patch.object(source_file, "free_bytes", free_bytes):
        yield


def _of_error(case: Case, error: StudioError | None) -> list[str]:
    text = str(error)
    if not case.refused:
        return [f"refused: {text}"]
    wrong = problems_of_message(error)
    if case.refused not in text:
        wrong.append(f"wanted {case.refused!r}: {text}")
    name = case.shown_as if case.shown_as != "" else case.name
    if name is not None and name not in text:
        wrong.append(f"the message does not name the file: {text}")
    if case.line is not None and f"{name}, line {case.line}: " not in text:
        wrong.append(f"the message does not name line {case.line}: {text}")
    return wrong


def problems_of_message(error: StudioError | None) -> list[str]:
    """What no message may be: without a remedy, of several lines, long, or a traceback."""
    text = str(error)
    wrong = []
    if not error or not (error.remedy or error.allowed):
        wrong.append(f"the message says nothing about what to do: {text}")
    if not text.isprintable() or len(text) > 1200:
        wrong.append(f"the message is no plain sentence: {text[:2000]!r}")
    for mark in ("Traceback", "Error:", "Exception", "reading it failed"):
        if mark in text:
            wrong.append(f"the message speaks of {mark}: {text}")
    return wrong


def _of_rows(case: Case, info: DatasetInfo, store: DatasetStore) -> list[str]:
    if case.refused:
        return [f"accepted with {info.used} of {info.rows} rows as {info.format}"]
    wrong = []
    counts = (info.rows, info.used, info.left_out)
    if counts != (case.rows, case.used, case.rows - case.used):
        wrong.append(f"rows, used, left out are {counts}: {info.problem_reasons}")
    for piece, count in case.left_out.items():
        found = sum(n for reason, n in info.problem_reasons.items() if piece in reason)
        if found != count:
            wrong.append(f"{piece!r} {found} times: {info.problem_reasons}")
    if sum(info.problem_reasons.values()) != info.left_out:
        wrong.append(f"the reasons do not add up: {info.problem_reasons}")
    if any(not problem["remedy"] or not problem["row"] for problem in info.problems):
        wrong.append(f"a row left out has no number or no remedy: {info.problems[:3]}")
    if case.note not in " ".join(info.notes):
        wrong.append(f"no note with {case.note!r}: {info.notes}")
    examples = store.rows(info.id, 0, info.used)
    if len(examples) != info.used:
        wrong.append(f"{len(examples)} examples can be read")
    if case.last is not None and _last_text(examples) != case.last:
        wrong.append(f"the last text is {_last_text(examples)[:200]!r}")
    return wrong


def _last_text(examples: list[dict[str, Any]]) -> str:
    last = examples[-1] if examples else {}
    return last.get("text") or (last.get("messages") or [{}])[-1].get("content", "")
