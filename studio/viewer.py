"""The page of viewers: runs with their curves and figures, and a chat with finished adapters.

A page without Gradio, rendered here: of the studio's handlers none can be reached from it, so that
a viewer's rights are the few routes below (docs/adr/0006). Shows no path, no error text of the
machine, no training row; everything shown is escaped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse

from studio.core.chat_request import parse_chat_request
from studio.core.errors import BusyError, ConfigError, StoreError, StudioError
from studio.core.runs import DONE, STOPPED
from studio.rights import VIEWER
from studio.services.live import follow_run
from studio.viewer_html import chat_page, list_page, run_page

if TYPE_CHECKING:
    from studio.core.chat_request import ChatRequest
    from studio.services.studio import Studio
    from studio.services.summary import RunSummary

ASSETS = Path(__file__).parent / "assets"
ASSET_TYPES = {"view.css": "text/css", "view.js": "text/javascript"}
FINISHED_STATES = (DONE, STOPPED)
MAX_QUESTION_CHARS = 8_000
MAX_ANSWER_TOKENS = 512
MAX_TURNS = 20
_SERIES = ("step", "eval", "device")
_SAMPLE = ("step", "attempt", "prompt_index", "prompt", "answer", "reference", "truncated")
_EVENT = ("which", "delta", "done", "tokens", "truncated", "tokens_per_s", "phase", "message")
_BUSY = "Somebody else is being answered. Ask again in a moment."
_FAILED = "The studio could not answer. Its owner can see why."


def is_viewer(request: Request) -> bool:
    """Whether a viewer asks. The door says so; without one it is the owner."""
    return request.scope.get("studio_role") == VIEWER


def is_published(studio: Studio, run: RunSummary) -> bool:
    """Whether viewers may chat with it: the training is over and left an adapter."""
    return run.state in FINISHED_STATES and studio.runs.paths(run.id).adapter.is_dir()


def figures_for_viewers(figures: dict[str, Any]) -> dict[str, Any]:
    """A run's live figures without what may quote this machine."""
    samples = figures.get("samples") or []
    return {
        **figures,
        "message": None,
        "series": {kind: figures["series"][kind] for kind in _SERIES if kind in figures["series"]},
        "samples": [{name: row.get(name) for name in _SAMPLE} for row in samples],
    }


def add_viewer_routes(app: FastAPI, studio: Studio) -> None:
    """The routes of viewers; the owner may look at them too."""
    one_at_a_time = asyncio.Lock()

    @app.get("/view")
    def view_runs() -> Response:
        return _page(list_page(studio.runs.list()))

    @app.get("/view/assets/{name}")
    def view_asset(name: str) -> Response:
        if name not in ASSET_TYPES:
            raise StoreError("There is no such file", value=name)
        return FileResponse(ASSETS / name, media_type=ASSET_TYPES[name])

    @app.get("/view/runs/{run_id}")
    def view_run(run_id: str) -> Response:
        run = studio.runs.get(run_id)
        figures = follow_run(studio.runs.paths(run.id), run, "")
        return _page(run_page(run, figures["series"], can_chat=is_published(studio, run)))

    @app.get("/view/chat/{run_id}")
    def view_chat(run_id: str) -> Response:
        return _page(chat_page(_published(studio, run_id)))

    @app.post("/view/chat/{run_id}")
    async def ask(request: Request, run_id: str) -> Response:
        run = await asyncio.to_thread(_published, studio, run_id)
        try:
            question = parse_question(await request.body())
        except ConfigError as error:
            return JSONResponse({"error": {"text": str(error)}}, status_code=422)
        if one_at_a_time.locked():
            return JSONResponse({"error": {"text": _BUSY}}, status_code=409)
        return StreamingResponse(
            _answer(studio, run.id, question, one_at_a_time), media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )  # fmt: skip


def parse_question(body: bytes) -> ChatRequest:
    """A viewer's question. Raises ConfigError in one sentence for what is no such thing."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError("The question is not JSON", remedy="Reload the page") from error
    allowed = {"messages", "which", "temperature", "max_tokens", "seed"}
    if not isinstance(values, dict) or not set(values) <= allowed:
        raise ConfigError("The question has unknown parts", allowed=", ".join(sorted(allowed)))
    request = parse_chat_request(values)
    size = sum(len(message["content"]) for message in request.messages)
    if len(request.messages) > MAX_TURNS or size > MAX_QUESTION_CHARS:
        raise ConfigError(
            "The conversation is too long",
            allowed=f"{MAX_TURNS} messages, {MAX_QUESTION_CHARS} characters", remedy="Start anew",
        )  # fmt: skip
    if request.max_tokens > MAX_ANSWER_TOKENS:
        raise ConfigError("max_tokens is too large", allowed=f"up to {MAX_ANSWER_TOKENS}")
    return request


def _published(studio: Studio, run_id: str) -> RunSummary:
    run = studio.runs.get(run_id)
    if not is_published(studio, run):
        raise StoreError(
            "This run has no finished adapter", remedy="Choose a run whose training is over"
        )
    return run


async def _answer(
    studio: Studio, run_id: str, question: ChatRequest, lock: asyncio.Lock
) -> AsyncIterator[str]:
    """The answer's events. The owner's errors stay the owner's: they may name files."""
    async with lock:
        values = question.model_dump(exclude={"messages"})
        try:
            async for event in studio.chat.stream(run_id, question.messages, **values):
                shown = {name: event[name] for name in _EVENT if name in event}
                if "error" in event:
                    shown = {"error": {"text": _FAILED}}
                if shown:
                    yield f"data: {json.dumps(shown)}\n\n"
        except StudioError as error:
            text = _BUSY if isinstance(error, BusyError) else _FAILED
            yield f"data: {json.dumps({'error': {'text': text}})}\n\n"


def _page(text: str) -> HTMLResponse:
    return HTMLResponse(text, headers={"Cache-Control": "no-store"})
