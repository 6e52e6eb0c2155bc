"""A disk that forgets: records calls of `os` below a folder, and gives every state that a power cut
may leave.

The model is a strict one (stricter than ext4): a write is durable only once its file was synced, a
name (created, renamed, removed) only once its folder was; what was not synced may be there or not,
each on its own and in any combination, and a write may be there in half. A rename is atomic.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

EXHAUSTIVE_UP_TO = 12  # un-synced operations
MAX_EXHAUSTIVE_STATES = 50_000
SAMPLES = 1_000
WATCHED = ("open", "write", "fsync", "close", "mkdir", "unlink", "rmdir", "rename", "replace")
ABSENT, WHOLE, TORN = 0, 1, 2

Tree = dict[str, Any]  # name -> bytes of a file or Tree of a folder


@dataclass
class Operation:
    """Something that may or may not have reached the disk."""

    kind: str  # "names" | "write" | "truncate" | "sync" | "note"
    node: int = -1
    offset: int = 0
    data: bytes = b""
    names: tuple[tuple[int, str, int | None], ...] = ()  # (folder, name, node or None: removed)
    note: Any = None  # of "names": bytes or dict where the node is new


@dataclass
class Recording:
    """What happened below `root` since it was begun; `base` was durable before."""

    root: Path
    base: dict[int, Any] = field(default_factory=dict)  # node -> bytes or {name: node}
    log: list[Operation] = field(default_factory=list)
    _live: dict[int, Any] = field(default_factory=dict)
    _open: dict[int, tuple[int, bool, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._scan(self.root)
        self.base = {n: dict(v) if isinstance(v, dict) else v for n, v in self._live.items()}

    def _scan(self, path: Path) -> int:
        node = len(self._live)
        self._live[node] = {} if path.is_dir() else path.read_bytes()
        if path.is_dir():
            self._live[node] = {child.name: self._scan(child) for child in sorted(path.iterdir())}
        return node

    def note(self, value: Any) -> None:
        """Mark a place: from here on `value` was promised."""
        self.log.append(Operation("note", note=value))

    # -- the watched calls -----------------------------------------------------------------------

    def _find(self, path: Any, folder: int | None = None) -> tuple[int, str] | None:
        """(folder's node, name) of a path below root."""
        text = os.fspath(path)
        if folder is not None and not os.path.isabs(text):
            return (self._open[folder][0], text) if folder in self._open else None
        try:
            parts = Path(text).relative_to(self.root).parts
        except ValueError:
            return None
        if not parts:
            return (-1, "")
        node = 0
        for part in parts[:-1]:
            node = self._live[node][part]
        return node, parts[-1]

    def _node(self, place: tuple[int, str]) -> int | None:
        return 0 if place[0] < 0 else self._live[place[0]].get(place[1])

    def _change(self, *names: tuple[int, str, int | None], new: Any = None) -> None:
        for folder, name, node in names:
            if node is None:
                self._live[folder].pop(name, None)
            else:
                self._live[folder][name] = node
        self.log.append(Operation("names", names=names, note=new))

    def _add(self, place: tuple[int, str], value: Any) -> int:
        node = max(self._live) + 1
        self._live[node] = value
        self._change((*place, node), new=type(value))
        return node

    def opened(self, descriptor: int, path: Any, flags: int, folder: int | None) -> None:
        place = self._find(path, folder)
        if place is None:
            return
        node = self._node(place)
        if node is None:
            node = self._add(place, b"")
        elif flags & os.O_TRUNC and self._live[node]:
            self._live[node] = b""
            self.log.append(Operation("truncate", node))
        self._open[descriptor] = (node, bool(flags & os.O_APPEND), [0])

    def written(self, descriptor: int, data: bytes) -> None:
        if descriptor not in self._open:
            return
        node, appends, position = self._open[descriptor]
        offset = len(self._live[node]) if appends else position[0]
        position[0] = offset + len(data)
        self._live[node] = patched(self._live[node], offset, data)
        self.log.append(Operation("write", node, offset, data))

    def synced(self, descriptor: int) -> None:
        if descriptor in self._open:
            self.log.append(Operation("sync", self._open[descriptor][0]))

    def closed(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def made(self, path: Any, folder: int | None) -> None:
        if place := self._find(path, folder):
            self._add(place, {})

    def removed(self, path: Any, folder: int | None) -> None:
        if place := self._find(path, folder):
            self._change((*place, None))

    def renamed(self, source: Any, target: Any) -> None:
        old, new = self._find(source), self._find(target)
        if old and new:
            self._change((*new, self._node(old)), (*old, None))

    def check_complete(self) -> None:
        """Raise unless the model's end equals the real folder: no write went past the recording."""
        if to_tree(self._live) != read_tree(self.root):
            raise RuntimeError("something below the folder was written past the recording")


@contextlib.contextmanager
def recording(root: Path) -> Iterator[Recording]:
    """Record what this process does below root through `os`."""
    log = Recording(root)
    real = {name: getattr(os, name) for name in WATCHED}

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
        log.opened(descriptor, path, flags, dir_fd)
        return descriptor

    def write(descriptor: int, data: Any) -> int:
        count = real["write"](descriptor, data)
        log.written(descriptor, bytes(data)[:count])
        return count

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        log.synced(descriptor)

    def close(descriptor: int) -> None:
        log.closed(descriptor)
        real["close"](descriptor)

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real["mkdir"](path, mode, dir_fd=dir_fd)
        log.made(path, dir_fd)

    def remover(name: str) -> Any:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            real[name](path, dir_fd=dir_fd)
            log.removed(path, dir_fd)

        return remove

    def renamer(name: str) -> Any:
        def rename(source: Any, target: Any) -> None:
            real[name](source, target)
            log.renamed(source, target)

        return rename

    watched = {"open": open_, "write": write, "fsync": fsync, "close": close, "mkdir": mkdir,
               "unlink": remover("unlink"), "rmdir": remover("rmdir"),
               "rename": renamer("rename"), "replace": renamer("replace")}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, call in watched.items():
            stack.enter_context(mock.patch.object(os, name, call))
        yield log
    log.check_complete()


def patched(old: bytes, offset: int, data: bytes) -> bytes:
    """`old` with data at offset; a hole reads as zeros."""
    old = old.ljust(offset, b"\0")
    return old[:offset] + data + old[offset + len(data) :]


def unsynced(log: list[Operation]) -> list[int]:
    """Indices of operations that no later sync made durable."""
    pending: list[int] = []
    folders: dict[int, set[int]] = {}
    for index, operation in enumerate(log):
        if operation.kind in ("write", "truncate", "names"):
            pending.append(index)
            folders[index] = {folder for folder, _, _ in operation.names}
        elif operation.kind == "sync":
            for earlier in list(pending):
                folders[earlier].discard(operation.node)
                same_file = log[earlier].kind != "names" and log[earlier].node == operation.node
                if same_file or (log[earlier].kind == "names" and not folders[earlier]):
                    pending.remove(earlier)
    return pending


def replay(base: dict[int, Any], log: list[Operation], choice: dict[int, int]) -> Tree:
    """The disk after `log`, where each un-synced operation is as chosen."""
    nodes = {n: dict(v) if isinstance(v, dict) else v for n, v in base.items()}
    for index, operation in enumerate(log):
        if operation.kind == "names" and operation.note is not None:
            nodes[operation.names[0][2]] = operation.note()  # it is there, if only without a name
        fate = choice.get(index, WHOLE)
        if fate == ABSENT:
            continue
        if operation.kind == "names":
            for folder, name, node in operation.names:
                if node is None:
                    nodes[folder].pop(name, None)
                else:
                    nodes[folder][name] = node
        elif operation.kind == "truncate":
            nodes[operation.node] = b""
        elif operation.kind == "write":
            half = len(operation.data) // 2
            torn = operation.data[:half] + bytes(len(operation.data) - half)
            data = operation.data if fate == WHOLE else torn
            nodes[operation.node] = patched(nodes[operation.node], operation.offset, data)
    return to_tree(nodes)


def to_tree(nodes: dict[int, Any], node: int = 0) -> Any:
    """Names and contents as seen from the root."""
    value = nodes[node]
    if isinstance(value, dict):
        return {name: to_tree(nodes, inner) for name, inner in sorted(value.items())}
    return value


def read_tree(path: Path) -> Any:
    """A real folder as a tree."""
    if path.is_dir():
        return {child.name: read_tree(child) for child in sorted(path.iterdir())}
    return path.read_bytes()


def write_tree(tree: Tree, path: Path) -> None:
    """A tree as a real folder."""
    path.mkdir()
    for name, value in tree.items():
        if isinstance(value, dict):
            write_tree(value, path / name)
        else:
            (path / name).write_bytes(value)


def crash_choices(
    log: list[Operation], draw: random.Random
) -> tuple[bool, Iterator[dict[int, int]]]:
    """What may have become of the un-synced operations: (exhaustive, choices)."""
    pending = unsynced(log)
    options = [(ABSENT, WHOLE, TORN) if log[i].kind == "write" else (ABSENT, WHOLE)
               for i in pending]  # fmt: skip
    count = 1
    for option in options:
        count *= len(option)
    if len(pending) <= EXHAUSTIVE_UP_TO and count <= MAX_EXHAUSTIVE_STATES:
        every = itertools.product(*options)
        return True, (dict(zip(pending, fates, strict=True)) for fates in every)
    sampled = ([draw.choice(option) for option in options] for _ in range(SAMPLES))
    return False, (dict(zip(pending, fates, strict=True)) for fates in sampled)
