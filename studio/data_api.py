"""The rows that a check names, as a CSV file: GET /api/datasets/{id}/checks/{check}.csv.

Reads through the services and changes nothing; the guard stands in front. What needs a tokenizer is
asked of the inspector with the settings in the address.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from studio.core.checks import CHECKS, TOKEN_CHECKS
from studio.core.errors import StoreError
from studio.hardware.platforms import make_folder, store_error
from studio.services.check_lists import escaped_cell, write_check
from studio.services.dataset_records import DatasetInfo, slug
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
        if check not in CHECKS or not name.endswith(ENDING):
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
        _write_token_rows(target, token_rows(studio, info, check, asked))
        return
    share = _number(asked.get("val_frac"), 0.0, 0.5)
    write_check(info, check, target, val_frac=share, seed=int(_number(asked.get("seed"), 42)))


def token_rows(
    studio: Studio, info: DatasetInfo, check: str, asked: Mapping[str, str]
) -> list[tuple[int, int | None]]:
    """(i, line) of the first rows of a check that the tokenizer decides."""
    options: dict[str, Any] = {"max_length": int(_number(asked.get("max_length"), 512))}
    if asked.get("loss_on"):
        options["loss_on"] = asked["loss_on"]
    options["system_prompt"] = asked.get("system_prompt") or None
    summary = studio.inspector.token_stats(info.folder, asked.get("model") or "starter", options)
    return rows_at(info, summary.first_rows.get(check, []))


def _write_token_rows(target: Path, rows: list[tuple[int, int | None]]) -> None:
    try:
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["i", "line"])
            writer.writerows([escaped_cell(i), escaped_cell(line)] for i, line in rows)
    except OSError as error:
        raise store_error(target, error) from error


def _number(text: str | None, otherwise: float, most: float = _LARGEST) -> float:
    try:
        value = float(text or otherwise)
    except ValueError:
        return otherwise
    return value if 0 <= value <= most else otherwise
