"""Where the rows of a data set stand: from a row's number in its source to its place and back.

The page and the checks name a row by `i`, its number in the source file, which no change to the
data set moves; data.jsonl and the tokens know places (from 0). Owns nothing; reads places.npy and
flags.npy of services.findings. Data sets from before there were checks are read row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from studio.core.errors import DatasetError
from studio.hardware.platforms import store_error
from studio.services.dataset_records import DatasetInfo
from studio.services.findings import FLAGS, NO_LINE, PLACES


def position_of(info: DatasetInfo, i: int) -> int:
    """The place of row `i`.

    Raises:
        DatasetError: no row of this number can be used.
    """
    found = np.flatnonzero(numbers_of(info) == i)
    if not len(found):
        raise DatasetError(
            "There is no such row among those that can be used", value=i,
            allowed=f"1 to {info.rows:,}, without those left out",
            remedy="Type another row's number",
        )  # fmt: skip
    return int(found[0])


def nearest_position(info: DatasetInfo, i: int) -> int:
    """The place of row `i`, or of the first row behind it that can be used."""
    numbers = numbers_of(info)
    exact = np.flatnonzero(numbers == i)
    if len(exact):
        return int(exact[0])
    later = np.flatnonzero(numbers > i)
    return int(later[0]) if len(later) else max(0, len(numbers) - 1)


def rows_at(info: DatasetInfo, positions: Sequence[int]) -> list[tuple[int, int | None]]:
    """(i, line) of the rows at these places; places of no row are passed over."""
    places = _places(info)
    chosen = [position for position in positions if 0 <= position < len(places)]
    return [(i, None if line == NO_LINE else line) for i, line in places[chosen].tolist()]


def next_flagged(info: DatasetInfo, position: int) -> int | None:
    """The place of the next row behind `position` that a check names, from the top again at the
    end; None where no check names any."""
    try:
        flags = np.load(info.folder / FLAGS, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError):
        return None
    flagged = np.flatnonzero(flags)
    if not len(flagged):
        return None
    later = flagged[flagged > position]
    return int(later[0] if len(later) else flagged[0])


def numbers_of(info: DatasetInfo) -> NDArray[np.int64]:
    """The rows that can be used, by `i`, in the order of data.jsonl."""
    return _places(info)[:, 0]


def _places(info: DatasetInfo) -> NDArray[np.int64]:
    path = info.folder / PLACES
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return _read_places(info)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The data set's {PLACES} is damaged", value=info.name, remedy="Import its file again"
        ) from error


def _read_places(info: DatasetInfo) -> NDArray[np.int64]:
    try:
        with info.data_file.open("rb") as file:
            records = (json.loads(line) for line in file)
            found = [(r["i"], NO_LINE if r.get("line") is None else r["line"]) for r in records]
    except OSError as error:
        raise store_error(info.data_file, error) from error
    return np.array(found, np.int64).reshape(-1, 2)
