"""Looks for near-duplicates of a data set in a limited child, and reads what was found.

Owns near_duplicates.npy in a data set's folder: it is there once they were looked for. Up to
AUTOMATIC_ROWS rows that takes seconds and is done unasked; above, when the user asks. Blocks;
called from worker threads and the command line. What a near-duplicate is stands in
services.near_duplicates_child, which alone imports the sketching package.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.hardware.platforms import make_folder, store_error, sync_folder
from studio.services.dataset_records import DatasetInfo
from studio.services.findings import HASHES
from studio.services.import_process import CancelledFn, Job, Limits, ProgressFn, run_job

FOUND_FILE = "near_duplicates.npy"
AUTOMATIC_ROWS = 20_000
ROWS_PER_S = 5_000  # 5,100 to 10,200 measured on one core, busy and idle


def is_automatic(info: DatasetInfo) -> bool:
    """Whether near-duplicates of this data set are looked for unasked."""
    return info.used <= AUTOMATIC_ROWS


def expected_s(info: DatasetInfo) -> float:
    """About how long the search takes, in seconds."""
    return 1.0 + info.used / ROWS_PER_S


def found_near_duplicates(folder: Path) -> NDArray[np.int64] | None:
    """(found, 3): position, position of the earlier row, similarity in thousandths; None where
    nobody has looked yet."""
    try:
        return np.load(folder / FOUND_FILE, allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(folder / FOUND_FILE, error) from error


def find_near_duplicates(
    info: DatasetInfo, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
) -> int:
    """Look for near-duplicates, unless that was done, and return how many there are.

    Raises:
        ImportCancelledError: `cancelled` said so; the data set is as before.
        DatasetError: the search does not fit its limits.
    """
    known = found_near_duplicates(info.folder)
    if known is not None:
        return len(known)
    tmp = make_folder(info.folder.parent.parent / "tmp")
    stage = Path(tempfile.mkdtemp(prefix="near-", dir=tmp))
    try:
        facts = run_job(_job(info, stage), progress=progress, cancelled=cancelled)
        os.replace(stage / FOUND_FILE, info.folder / FOUND_FILE)
        sync_folder(info.folder)
    except OSError as error:
        raise store_error(info.folder / FOUND_FILE, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return int(facts["count"])


def _job(info: DatasetInfo, stage: Path) -> Job:
    hashes = info.folder / HASHES
    request: dict[str, Any] = {
        "data": str(info.data_file),
        "hashes": str(hashes) if hashes.is_file() else None,
        "rows": info.used,
    }
    size_bytes = info.data_file.stat().st_size
    # Word sets take about as much as the text and lie in a mapped file; sketches 144 bytes a row.
    limits = Limits(
        memory_bytes=4 * 2**30 + 2 * size_bytes,
        cpu_s=int(600 + info.used / 500),
        wall_s=1200 + info.used / 250,
    )
    return Job("studio.services.near_duplicates_child", stage, info.name, request, limits)
