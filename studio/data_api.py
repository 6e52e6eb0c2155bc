"""The rows that a check names, as a CSV file: GET /api/datasets/{id}/checks/{check}.csv.

Reads through the services and changes nothing; the guard stands in front. What needs a tokenizer is
asked of the inspector with the settings in the address.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from studio.core.checks import CHECKS, TOKEN_CHECKS
from studio.core.errors import StoreError
from studio.core.token_stats import cut_at
from studio.hardware.platforms import make_folder, store_error
from studio.services.check_lists import escaped_cell, write_check
from studio.services.dataset_records import DatasetInfo, slug
from studio.services.findings import LISTED
from studio.services.left_out_rows import EXCLUDED, list_excluded
from studio.services.row_places import rows_at

if TYPE_CHECKING:
    from studio.services.studio import Studio

ENDING = ".csv"
_LARGEST = 2**24


def add_data_routes(app: FastAPI, studio: Studio) -> None:
    """Our route. To be called before Gradio is mounted, which takes every other path."""

    @app.get("/api/datasets/{dataset_id}/checks/{name}")
    def check_list(request: Request, dataset_id: str, name: str) -> FileResponse:
        check = name.removesuffix(ENDING)
        if check not in (*CHECKS, EXCLUDED) or not name.endswith(ENDING):
            raise StoreError("There is no such list", value=name[:80], allowed="check.csv")
        info = studio.datasets.get(dataset_id)
        folder = Path(tempfile.mkdtemp(prefix="list-", dir=make_folder(studio.settings.tmp)))
        try:
            target = folder / f"{slug(info.name)}-{check}{ENDING}"
            _write(studio, info, check, target, request.query_params)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return FileResponse(
            target, filename=target.name, media_type="text/csv; charset=utf-8",
            background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
        )  # fmt: skip


def _write(
    studio: Studio, info: DatasetInfo, check: str, target: Path, asked: Mapping[str, str]
) -> None:
    if check in TOKEN_CHECKS:
        rows, count = token_rows(studio, info, check, asked)
        end = (
            f"the list ends here: {len(rows):,} of {count:,} rows"
            if LISTED <= len(rows) < count
            else ""
        )
        _write_rows(target, ("i", "line"), rows, end)
        return
    if check == EXCLUDED:
        hits = list_excluded(studio.datasets, info, 0, LISTED)
        cells = ((hit["i"], hit["line"], hit["detail"], hit["preview"]) for hit in hits)
        _write_rows(target, ("i", "line", "detail", "content"), cells)
        return
    share = _number(asked.get("val_frac"), 0.0, 0.5)
    write_check(info, check, target, val_frac=share, seed=int(_number(asked.get("seed"), 42)))


def token_rows(
    studio: Studio, info: DatasetInfo, check: str, asked: Mapping[str, str]
) -> tuple[list[tuple[int, int | None]], int]:
    """(i, line) of the first rows of a check that the tokenizer decides, and how many there are."""
    options: dict[str, Any] = {"max_length": int(_number(asked.get("max_length"), 512))}
    if asked.get("loss_on"):
        options["loss_on"] = asked["loss_on"]
    options["system_prompt"] = asked.get("system_prompt") or None
    summary = studio.inspector.token_stats(info.folder, asked.get("model") or "starter", options)
    cut = cut_at(summary, int(options["max_length"]))
    count = {"cut": cut.rows_cut, "answer_cut": cut.answer_lost,
             "no_trained_token": cut.no_trained_token}[check]  # fmt: skip
    return rows_at(info, summary.first_rows.get(check, [])), count


def _write_rows(
    target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], end: str = ""
) -> None:
    """A table; `end` is a last line where it is not all."""
    try:
        with target.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([escaped_cell(cell) for cell in row] for row in rows)
            if end:
                writer.writerow([end])
    except OSError as error:
        raise store_error(target, error) from error


def _number(text: str | None, otherwise: float, most: float = _LARGEST) -> float:
    try:
        value = float(text or otherwise)
    except ValueError:
        return otherwise
    return value if 0 <= value <= most else otherwise
