"""Checks a data set that was imported before there were checks.

Owns nothing of its own: adds the files of services.findings to the data set's folder and `checks`
to its dataset.json; the rows stay as they are. hashes.npy comes last, so a data set has either all
of it or is checked another time. Blocks; called from worker threads and the command line.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from studio.core.runs import read_json
from studio.hardware.platforms import make_folder, store_error, sync_folder, write_json
from studio.services.dataset_records import DatasetInfo
from studio.services.findings import FINDINGS, FLAGS, HASHES, LEFT_OUT, PLACES
from studio.services.import_process import CancelledFn, Job, Limits, ProgressFn, run_job

RECORD = "dataset.json"


def needs_checks(info: DatasetInfo) -> bool:
    """Whether the rows of a data set were never checked."""
    return not (info.folder / HASHES).is_file()


def check_again(
    info: DatasetInfo, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
) -> None:
    """Check all rows.

    Raises:
        ImportCancelledError: `cancelled` said so; the data set is as before.
        DatasetError: its rows cannot be read.
    """
    stage = Path(tempfile.mkdtemp(prefix="check-", dir=make_folder(_tmp_of(info))))
    try:
        facts = run_job(_job(info, stage), progress=progress, cancelled=cancelled)
        for name in (FINDINGS, LEFT_OUT, PLACES, FLAGS):
            os.replace(stage / name, info.folder / name)
        record = read_json(info.folder / RECORD) or {}
        write_json(info.folder / RECORD, {**record, "checks": facts["checks"]})
        os.replace(stage / HASHES, info.folder / HASHES)
        sync_folder(info.folder)
    except OSError as error:
        raise store_error(info.folder, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _tmp_of(info: DatasetInfo) -> Path:
    return info.folder.parent.parent / "tmp"


def _job(info: DatasetInfo, stage: Path) -> Job:
    request = {
        "data": str(info.data_file), "rows": info.used,
        "problems": info.problems, "problem_reasons": info.problem_reasons,
    }  # fmt: skip
    limits = Limits(cpu_s=int(300 + info.used / 2000), wall_s=600 + info.used / 500)
    return Job("studio.services.check_again_child", stage, info.name, request, limits)
