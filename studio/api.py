"""Plain HTTP beside the page: health, runs as JSON, live figures, downloads, plotly's script.

Every route reads files through the services; none changes anything. The guard stands in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import json
import logging
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from studio.core.errors import BusyError, ConfigError, StoreError, StudioError
from studio.data_api import add_data_routes
from studio.live_answers import LiveAnswers
from studio.services.live import follow_run
from studio.services.summary import to_detail, to_row
from studio.ui.doctor_view import doctor_html
from studio.ui.run_memory import memory_html
from studio.viewer import figures_for_viewers, is_viewer

if TYPE_CHECKING:
    from studio.services.studio import Studio

log = logging.getLogger(__name__)

_GZIP_FROM_BYTES = 2048
_STATUS = {ConfigError: 422, BusyError: 409, StoreError: 404}


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Our routes. To be called before Gradio is mounted, which takes every other path."""
    script = PlotlyScript()
    answers = LiveAnswers()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/runs")
    def list_runs() -> dict[str, Any]:
        return {"runs": [to_row(run) for run in studio.runs.list()]}

    @app.get("/api/runs/{run_id}")
    def show_run(run_id: str) -> dict[str, Any]:
        return to_detail(studio.runs.get(run_id))

    @app.get("/api/runs/{run_id}/metrics")
    async def metrics(request: Request, run_id: str, since: str = "") -> Response:
        for_viewers = is_viewer(request)

        def figures() -> bytes:
            run = studio.runs.get(run_id)
            found = follow_run(studio.runs.paths(run_id), run, since)
            return as_json(figures_for_viewers(found) if for_viewers else found)

        if for_viewers:  # there may be many; the owner's page is always told the newest
            return json_answer(request, await answers.get((run_id, since), figures))
        return json_answer(request, await asyncio.to_thread(figures))

    @app.get("/api/runs/{run_id}/memory")
    def run_memory(run_id: str) -> dict[str, str]:
        return {"html": memory_html(studio.measured.of_run(run_id))}

    @app.get("/api/runs/{run_id}/doctor")
    def run_doctor(run_id: str) -> dict[str, str]:
        can_retry = not studio.settings.read_only
        return {"html": doctor_html(studio.doctor.diagnose(run_id), can_retry=can_retry)}

    @app.get("/api/machine")
    def machine() -> dict[str, Any]:
        runs = studio.runs.list()
        shown = studio.supervisor.active() or next(iter(runs), None)
        return {**studio.machine.live(), "run": to_row(shown) if shown else None}

    @app.get("/api/runs/{run_id}/run.zip")
    def run_zip(run_id: str) -> FileResponse:
        return download(studio.runs.zip_run(run_id))

    @app.get("/api/runs/{run_id}/adapter.zip")
    def adapter_zip(run_id: str) -> FileResponse:
        return download(studio.runs.zip_adapter(run_id))

    add_data_routes(app, studio)

    @app.get(f"/static/plotly-{script.version}.min.js")
    def plotly_script(request: Request) -> Response:
        return script.answer(request)

    app.add_exception_handler(StudioError, _on_error)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, StudioError):
        raise error
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": error.to_dict()}, status_code=status)


def as_json(value: Any) -> bytes:
    """JSON as short as can be; no NaN, which browsers cannot read."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def json_answer(request: Request, body: bytes) -> Response:
    """JSON, compressed where that pays."""
    headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if len(body) > _GZIP_FROM_BYTES and accepts_gzip(request):
        body = gzip.compress(body, compresslevel=4, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type="application/json", headers=headers)


def accepts_gzip(request: Request) -> bool:
    """Whether the client takes gzip."""
    return "gzip" in request.headers.get("accept-encoding", "")


def download(file: Path) -> FileResponse:
    """A staged file as a download; it and its folder are removed when it was sent."""
    return OnceFile(file, filename=file.name, media_type="application/zip")


class OnceFile(FileResponse):
    """A file that nobody needs after this answer, also when the download is broken off."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            discard(Path(self.path))


def discard(file: Path) -> None:
    """Remove a staged file and its folder."""
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another download lies there too
        file.parent.rmdir()


class PlotlyScript:
    """plotly.min.js, compressed once (4.8 MB become 1.5 MB) and named by its version."""

    def __init__(self) -> None:
        self.version = metadata.version("plotly")
        self._lock = threading.Lock()
        self._compressed: bytes | None = None

    @property
    def file(self) -> Path:
        """Where the package keeps it; the package itself is not imported."""
        spec = importlib.util.find_spec("plotly")
        if spec is None or not spec.submodule_search_locations:
            raise StoreError("The package plotly is not installed", remedy="Run `make setup`")
        return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"

    def answer(self, request: Request) -> Response:
        """The script; cached by browsers for good, since another version has another name."""
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "Vary": "Accept-Encoding",
        }
        if not accepts_gzip(request):
            return FileResponse(self.file, media_type="text/javascript", headers=headers)
        with self._lock:
            if self._compressed is None:
                self._compressed = gzip.compress(self.file.read_bytes(), compresslevel=6, mtime=0)
        headers["Content-Encoding"] = "gzip"
        return Response(self._compressed, media_type="text/javascript", headers=headers)
