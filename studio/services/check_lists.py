"""Reads what the checks of a data set found: summaries, rows of one check, lists to download.

Owns nothing on disk; the files are written by services.findings and services.near_duplicates.
Data sets imported before there were checks have none of these files: for them there is nothing to
show until they are imported again. Thread safe.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.core.checks import CHECKS, LEFT_OUT_CHECKS, TOKEN_CHECKS, turns_of
from studio.core.errors import DatasetError
from studio.core.examples import Example
from studio.hardware.platforms import store_error
from studio.services.dataset_records import DatasetInfo
from studio.services.findings import (
    BIT,
    FINDINGS,
    FIRST,
    FLAGS,
    HASHES,
    LEFT_OUT,
    NO_LINE,
    PLACES,
    summary,
)
from studio.services.near_duplicates import found_near_duplicates
from studio.services.set_checks import Matches, held_out_overlap, overlap

DOWNLOAD_KINDS = ("csv", "jsonl")
# A spreadsheet runs a cell that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check_summaries(
    info: DatasetInfo, *, val_frac: float | None = None, seed: int = 42
) -> list[dict[str, Any]]:
    """The checks that found something, worst first, as dataset.json keeps them.

    Near-duplicates are added once they were looked for, and the overlap of held-out rows where
    `val_frac` is given: both depend on more than the file.
    """
    entries = {entry["id"]: entry for entry in info.checks}
    near = found_near_duplicates(info.folder)
    if near is not None and len(near):
        entries["near_duplicate"] = _computed(info, "near_duplicate", _near_matches(near))
    if val_frac is not None and (info.folder / HASHES).is_file():
        matches = _overlap(info, val_frac, seed)
        if len(matches):
            entries["held_out_overlap"] = _computed(info, "held_out_overlap", matches)
    return [entries[check] for check in CHECKS if check in entries]


def rows_of_check(
    info: DatasetInfo, check: str, *, val_frac: float | None = None, seed: int = 42
) -> list[int]:
    """All rows that a check names, by `i`, for an exclude step; not bounded by the lists."""
    positions = _positions(info, check, val_frac, seed)
    return _load(info, PLACES)[positions, 0].tolist()


def list_check(
    info: DatasetInfo,
    check: str,
    start: int = 0,
    count: int = 50,
    *,
    val_frac: float | None = None,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Hits of a check from number `start`: {"i", "line", "detail"}; left-out rows have reason,
    remedy and preview besides."""  # fmt: skip
    hits = _hits(info, check, val_frac, seed)
    return list(islice(hits, start, start + count))


def write_check(
    info: DatasetInfo,
    check: str,
    target: Path,
    *,
    val_frac: float | None = None,
    seed: int = 42,
) -> int:
    """Write the rows of a check to a .csv or .jsonl file for download; returns their number.

    A row is its number, line, what was found and its texts. In CSV, cells that a spreadsheet would
    run as formulas get an apostrophe in front.
    """  # fmt: skip
    kind = target.suffix.removeprefix(".").lower()
    if kind not in DOWNLOAD_KINDS:
        raise DatasetError("Unknown kind of list", value=kind, allowed=", ".join(DOWNLOAD_KINDS))
    rows = _full_rows(info, check, val_frac, seed)
    try:
        with target.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            return _write_csv(file, rows) if kind == "csv" else _write_jsonl(file, rows)
    except OSError as error:
        raise store_error(target, error) from error


def _write_jsonl(file: Any, rows: Iterator[dict[str, Any]]) -> int:
    number = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        number += 1
    return number


def _write_csv(file: Any, rows: Iterator[dict[str, Any]]) -> int:
    writer = csv.writer(file)
    number, columns = 0, None
    for row in rows:
        cells = {key: value for key, value in row.items() if key not in ("messages", "text")}
        cells["content"] = _as_text(row)
        if columns is None:
            columns = list(cells)
            writer.writerow(columns)
        writer.writerow([escaped_cell(cells.get(column)) for column in columns])
        number += 1
    return number


def escaped_cell(value: Any) -> str:
    """A value as a cell of a CSV file that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _as_text(row: dict[str, Any]) -> str:
    if "messages" not in row and "text" not in row:
        return ""
    turns = turns_of(Example.from_dict(row))
    return "\n\n".join(f"{role}: {text}" if role else text for role, text in turns)


def _full_rows(
    info: DatasetInfo, check: str, val_frac: float | None, seed: int
) -> Iterator[dict[str, Any]]:
    """The hits of a check, each with the row's messages or text."""
    hits = _hits(info, check, val_frac, seed)
    if check in LEFT_OUT_CHECKS:
        yield from hits
        return
    details = {hit["i"]: hit for hit in hits}
    wanted = set(_positions(info, check, val_frac, seed).tolist())
    with info.data_file.open("rb") as file:
        for position, line in enumerate(file):
            if position in wanted:
                record = json.loads(line)
                detail = details.get(record["i"], {}).get("detail")
                head = {"i": record["i"], "line": record.get("line"), "detail": detail}
                yield {**head, **{k: v for k, v in record.items() if k not in head}}


# ------------------------------------------------------------------------------------ inside


def _hits(
    info: DatasetInfo, check: str, val_frac: float | None, seed: int
) -> Iterator[dict[str, Any]]:
    _require(check)
    if check == "near_duplicate":
        near = found_near_duplicates(info.folder)
        return _match_hits(info, check, _near_matches(near)) if near is not None else iter(())
    if check == "held_out_overlap":
        return _match_hits(info, check, _overlap(info, val_frac or 0.0, seed))
    name = LEFT_OUT if check in LEFT_OUT_CHECKS else FINDINGS
    return _listed(info.folder / name, check)


def _listed(path: Path, check: str) -> Iterator[dict[str, Any]]:
    begin = '{"check": ' + json.dumps(check) + ","
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.startswith(begin):
                    record = json.loads(line)
                    del record["check"]
                    if "reason" in record:
                        record["detail"] = record["reason"]
                    yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(path, error) from error


def _positions(
    info: DatasetInfo, check: str, val_frac: float | None, seed: int
) -> NDArray[np.int64]:
    """Positions in data.jsonl of all rows that a check names."""
    _require(check)
    if check in LEFT_OUT_CHECKS or check in TOKEN_CHECKS:
        raise DatasetError(
            "The rows of this check are not kept with the data set", value=check,
            allowed=", ".join(sorted([*BIT, "near_duplicate", "held_out_overlap"])),
        )  # fmt: skip
    if check == "near_duplicate":
        near = found_near_duplicates(info.folder)
        return np.empty(0, np.int64) if near is None else np.sort(near[:, 0])
    if check == "held_out_overlap":
        return _overlap(info, val_frac or 0.0, seed).rows
    return np.flatnonzero(_load(info, FLAGS) & BIT[check])


def _near_matches(near: NDArray[np.int64]) -> Matches:
    near = near[np.argsort(near[:, 0], kind="stable")]
    return Matches(near[:, 0], near[:, 1])


def _overlap(info: DatasetInfo, val_frac: float, seed: int) -> Matches:
    """By the rows held out by choice, where the data set says so, else by the drawn share."""
    hashes = _load(info, HASHES)
    chosen = (info.held_out or {}).get("rows")
    if chosen is None:
        return held_out_overlap(hashes, val_frac, seed)
    held_out = np.asarray(chosen, np.int64)
    train = np.setdiff1d(np.arange(len(hashes)), held_out, assume_unique=True)
    return overlap(hashes, train, held_out)


def _match_hits(info: DatasetInfo, check: str, matches: Matches) -> Iterator[dict[str, Any]]:
    places = _load(info, PLACES)
    near = found_near_duplicates(info.folder) if check == "near_duplicate" else None
    alike = {} if near is None else dict(zip(near[:, 0].tolist(), near[:, 2].tolist(), strict=True))
    for row, other in zip(matches.rows.tolist(), matches.others.tolist(), strict=True):
        i, line = places[row].tolist()
        to = f"row {places[other, 0]:,}"
        if near is not None:
            detail = f"{alike[row] / 10:.0f} % the word pairs of {to}"
        else:
            detail = f"the same as {to}, which trains"
        yield {"i": i, "line": None if line == NO_LINE else line, "detail": detail}


def _computed(info: DatasetInfo, check: str, matches: Matches) -> dict[str, Any]:
    first = list(islice(_match_hits(info, check, matches), FIRST))
    return summary(CHECKS[check], len(matches), first)


def _load(info: DatasetInfo, name: str) -> NDArray[Any]:
    path = info.folder / name
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DatasetError(
            "This data set was imported before there were checks", value=info.name,
            remedy="Import its file again",
        ) from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The data set's {name} is damaged", value=info.name, remedy="Import its file again"
        ) from error


def _require(check: str) -> None:
    if check not in CHECKS:
        raise DatasetError("There is no such check", value=check, allowed=", ".join(CHECKS))
