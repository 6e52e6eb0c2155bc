"""Paths that are no plain files, files that change meanwhile, and names made to confuse."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, keep, lines, pairs, refuse

ROWS = lines(*pairs(3))
ADDRESS = "never fetched from an address"
ADDRESSES = (
    "http://127.0.0.1:9/rows.csv", "https://example.org/rows.csv", "s3://bucket/rows.csv",
    "hf://datasets/owner/name/rows.csv", "file:///etc/passwd", "FTP://host/rows.csv",
    "gs://bucket/rows.csv", "\\\\server\\share\\rows.csv", "  http://127.0.0.1:9/rows.csv",
    "jar:file:///x!/rows.csv", "http:/127.0.0.1/rows.csv",
)  # fmt: skip


def _in(folder: Path, name: str = "rows.jsonl", text: str = ROWS) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def made(name: str, make: Callable[[Path], Any], reason: str, **more: Any) -> Case:
    """Something that is no file and must be refused."""
    return Case(name, refused=reason, make=make, **{"shown_as": None, **more})


def _folder(folder: Path) -> Path:
    (folder / "folder.csv").mkdir()
    return folder / "folder.csv"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.csv")
    return folder / "pipe.csv"


def _socket(folder: Path) -> Path:
    # Bound by its name alone: the full path may be longer than a socket's name can be.
    here = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.csv")
    finally:
        os.chdir(here)
    return folder / "socket.csv"


def _link(folder: Path, target: Path | str) -> Path:
    (folder / "link.csv").symlink_to(target)
    return folder / "link.csv"


def _loop(folder: Path) -> Path:
    (folder / "other.csv").symlink_to(folder / "link.csv")
    return _link(folder, folder / "other.csv")


def _sparse(size_bytes: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with (folder / "sparse.csv").open("wb") as file:
            file.truncate(size_bytes)
        return folder / "sparse.csv"

    return make


def _grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(ROWS)


def _cut(path: Path) -> None:
    os.truncate(path, 20)


def _rewrite(path: Path) -> None:
    """Other content of the same length, written in place."""
    path.write_text(ROWS.replace("What", "When"))
    os.utime(path, ns=(1, 1))


NO_FILES = [
    made("folder", _folder, "folder.csv: the folder holds no data file"),
    made("pipe", _pipe, "pipe.csv is a named pipe"),
    made("socket", _socket, "socket.csv is a socket"),
    made("device-zero", lambda folder: "/dev/zero", "zero is a device"),
    made("device-null", lambda folder: "/dev/null", "null is a device"),
    made("link-to-device", lambda folder: _link(folder, "/dev/zero"), "link.csv is a device"),
    made("link-to-pipe", lambda folder: _link(folder, _pipe(folder)), "link.csv is a named pipe"),
    made("link-to-nothing", lambda folder: _link(folder, "nothing"), "There is no such file"),
    made("link-to-itself", _loop, "link.csv cannot be opened"),
    made("missing", lambda folder: folder / "nothing.csv", "There is no such file"),
    made("below-a-file", lambda folder: _in(folder) / "x.csv", "cannot be opened"),
    made("nul-in-path", lambda folder: str(_in(folder)) + "\0.csv", "no path of a file"),
    made("empty-path", lambda folder: "", "no path of a file"),
    made("path-of-9000-letters", lambda folder: "x" * 9000, "cannot be opened"),
    made("user-that-is-not-there", lambda folder: "~nobody-here/x.csv", "There is no such file"),
    made("proc-file", lambda folder: "/proc/self/environ", "the file is empty"),
    made("sparse-10-tb", _sparse(10**13), "No space to import the file"),
    made("sparse-64-mib", _sparse(2**26), "a binary file", shown_as="sparse.csv"),
]
CHANGING = [
    made("growing", _in, "was changed while it was copied", meanwhile=_grow, shown_as="rows.jsonl"),
    made("cut", _in, "was changed while it was copied", meanwhile=_cut, shown_as="rows.jsonl"),
    made("rewritten", _in, "was changed while it was copied", meanwhile=_rewrite,
         shown_as="rows.jsonl"),
    Case("vanishing", make=_in, meanwhile=Path.unlink, rows=3, used=3, last="It is 3."),
]  # fmt: skip
NAMES = [
    Case("link-outside", make=lambda folder: _link(folder, _in(folder.parent)), rows=3, used=3),
    keep("n" * 249 + ".jsonl", ROWS, 3),
    keep("two\nlines.jsonl", ROWS, 3),
    keep("txt.\u202elnosj.jsonl", ROWS, 3),
    keep("..rows...jsonl", ROWS, 3),
    keep("-rf --version;$(id).jsonl", ROWS, 3),
    keep("<img src=x onerror=alert(1)>.jsonl", ROWS, 3),
    keep("CON.jsonl", ROWS, 3),
    keep("caf\u0065\u0301.jsonl", ROWS, 3),
    Case("broken-name", rows=3, used=3,
         make=lambda folder: _in(folder, os.fsdecode(b"caf\xe9.jsonl"))),
    refuse("two\nlines\x1b[31m.csv", b"question,answer\n", "two?lines?[31m.csv: the file",
           shown_as=None),
    refuse("\u202egpj.csv", b"question,answer\n", "?gpj.csv: the file has no rows", shown_as=None),
]  # fmt: skip
REMOTE = [
    made(f"address-{number}", lambda folder, text=text: text, ADDRESS)
    for number, text in enumerate(ADDRESSES)
]

CASES: list[Case] = [*NO_FILES, *CHANGING, *NAMES, *REMOTE]
