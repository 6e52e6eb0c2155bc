"""Rows from one JSON document: an array, objects one after another, or an object that wraps them.

Owns: deciding where the rows are (also which of several splits) and reading them. Streams; a break
inside the document makes the rest unreadable, so it is an error of the file, with its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from studio.core.examples import shown
from studio.core.turns import is_turn
from studio.services.json_rows import JsonText, NumberedRow, Opener
from studio.services.source_bytes import file_error

SPLIT_NAMES = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
WRAPPER_NAMES = ("data", "rows", "examples", "items", "records", "samples", "instances")


@dataclass(frozen=True)
class JsonShape:
    """How a JSON document holds its rows.

    Attributes:
        kind: array, objects (one or several, one after another), wrapped (an array under `key`)
            or columns (an object of equally long lists).
        note: what the user should know about the choice.
    """

    kind: str
    key: str | None = None
    note: str | None = None


@dataclass
class _Entry:
    key: str
    n_items: int = -1  # -1: not a list
    first: Any = None


def find_shape(open_text: Opener, name: str, *, split: str | None = None) -> JsonShape:
    """Look through a document once and decide where its rows are.

    Args:
        split: the list of rows that is wanted, where the document holds several.

    Raises:
        DatasetError: it cannot be told which list is meant, or there is none of that name.
    """
    with open_text() as stream:
        text = JsonText(stream, name)
        entries = [] if text.peek() == "[" else _entries(text)
        if split is not None:
            return _wanted_table(entries, split, name)
        if text.peek() == "[":
            return JsonShape("array")
        if text.peek():
            return JsonShape("objects")
    tables = [e for e in entries if e.n_items > 0 and isinstance(e.first, dict)]
    if any(is_turn(entry.first) for entry in tables):
        return JsonShape("objects")
    if tables:
        return _choose_table(tables, name)
    lengths = {entry.n_items for entry in entries}
    if len(lengths) == 1 and lengths.pop() > 0:
        return JsonShape("columns")
    return JsonShape("objects")


def is_list_of_turns(text: str) -> bool:
    """Whether a JSON list is one conversation."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(value) and isinstance(value, list) and is_turn(value[0])


def _entries(text: JsonText) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return []
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise text.error("not valid JSON: a key is not a text")
        text.take(":")
        if key in entries:
            raise text.error(f"the key {key[:40]!r} stands twice")
        entry = _Entry(key)
        if text.peek() == "[":
            entry.n_items = 0
            for _, value in text.elements():
                entry.first = value if entry.n_items == 0 else entry.first
                entry.n_items += 1
        else:
            text.value()
        entries[key] = entry
        if text.take(",}") == "}":
            return list(entries.values())


def _wanted_table(entries: list[_Entry], split: str, name: str) -> JsonShape:
    tables = [e for e in entries if e.n_items > 0 and isinstance(e.first, dict)]
    names = [entry.key for entry in tables if not is_turn(entry.first)]
    key = next((found for found in names if found.lower() == split.lower()), None)
    if key is None:
        raise file_error(
            name, "there is no such split in it", value=split,
            allowed=", ".join(shown(found[:40]) for found in names) or "none: it has no splits",
            remedy="Choose one of its splits",
        )  # fmt: skip
    return _choose_table([entry for entry in tables if entry.key == key], name, of=tables)


def _choose_table(
    tables: list[_Entry], name: str, *, of: list[_Entry] | None = None
) -> JsonShape:  # fmt: skip
    """The first usual one of `tables`; the others `of` the document are named as not used."""
    names = [entry.key for entry in tables]
    for wanted in (*SPLIT_NAMES, *WRAPPER_NAMES):
        key = next((found for found in names if found.lower() == wanted), None)
        if key is not None or len(names) == 1:
            key = key or names[0]
            others = [f"{shown(e.key[:40])} ({e.n_items} rows)" for e in of or tables
                      if e.key != key]  # fmt: skip
            note = f"the rows are those under {key!r}"
            return JsonShape(
                "wrapped", key, note + (f"; not used: {', '.join(others)}" if others else "")
            )
    raise file_error(
        name, "it holds several lists of rows", value=", ".join(names),
        remedy="Save the one to train on as a file of its own",
    )  # fmt: skip


def read_json(open_text: Opener, name: str, shape: JsonShape) -> Iterator[NumberedRow]:
    """The rows of a document whose shape is known."""
    with open_text() as stream:
        text = JsonText(stream, name)
        if shape.kind == "array":
            yield from text.rows()
            if text.peek():
                raise text.error("there is more text after the end of the array")
        elif shape.kind == "objects":
            while text.peek():
                line = text.line
                yield line, text.row()
        elif shape.kind == "columns":
            table = text.value()
            for cells in zip(*table.values(), strict=True):
                yield None, dict(zip(table, cells, strict=True))
        else:
            yield from _wrapped_rows(text, shape.key)


def _wrapped_rows(text: JsonText, wanted: str | None) -> Iterator[NumberedRow]:
    """Rows of the array under one key; what stands before it is stepped over."""
    text.take("{")
    while True:
        key = text.value()
        text.take(":")
        if key == wanted:
            yield from text.rows()
            return
        if text.peek() == "[":
            for _ in text.elements():
                pass
        else:
            text.value()
        text.take(",}")
