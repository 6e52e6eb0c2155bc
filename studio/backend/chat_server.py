"""The chat process: one model, streamed answers with and without its adapter.

Run as `python -m studio.backend.chat_server --socket PATH --parent-pid PID`. Answers `/healthz`
before the libraries are loaded, so that the page can say what it waits for. One worker thread does
everything with the model; the event loop only carries bytes.

    POST /load {"run_dir"[, "model_path"]} or {"model_path"}
    POST /chat {"messages", "which", "temperature", "top_p", "max_tokens", "seed"}
         -> text/event-stream: {"which","delta"} | {"which","done","tokens","truncated",
            "tokens_per_s"} | {"error"}
    POST /unload
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.private_server import (
    build_app,
    end_process,
    error_dict,
    json_body,
    parse_arguments,
    serve,
)
from studio.core.chat_request import ChatRequest, parse_chat_request
from studio.core.errors import BusyError, ConfigError, StudioError

if TYPE_CHECKING:
    from studio.backend.chat_model import ChatModel
    from studio.backend.decode import Answer

T = TypeVar("T")
Event = dict[str, Any]


class Conversation:
    """The answers to one question, growing one token each in turn. Used from the worker thread."""

    def __init__(self, model: ChatModel, answers: dict[str, Answer]) -> None:
        self._model = model
        self._answers = dict(answers)
        self._turn = list(answers)

    def advance(self) -> list[Event] | None:
        """Generate one token of the side whose turn it is; None when all is said.

        One token a call: whoever stops calling has stopped the work.
        """
        if not self._turn:
            return None
        side = self._turn.pop(0)
        answer = self._answers[side]
        try:
            delta = self._model.advance(side, answer)
        except StudioError as error:
            self.close()
            return [{"error": error_dict(error)}]
        events: list[Event] = [{"which": side, "delta": delta}] if delta else []
        if answer.is_done:
            events.append({
                "which": side, "done": True, "tokens": len(answer.tokens),
                "truncated": answer.truncated, "tokens_per_s": round(answer.tokens_per_s, 1),
            })  # fmt: skip
            del self._answers[side]
        else:
            self._turn.append(side)
        return events

    def close(self) -> None:
        """Drop what is unfinished and its caches. Idempotent, from any thread."""
        self._turn = []
        self._answers = {}


class Engine:
    """What is loaded now. All methods but `status` and `run` run in the worker thread."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._model: ChatModel | None = None
        self._phase = "idle"

    def status(self) -> dict[str, Any]:
        """For `/healthz`: idle, importing, loading or ready, and what is loaded."""
        model = self._model
        return {"phase": self._phase, "loaded": model.info if model is not None else None}

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call in the worker thread: all work with the model goes one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    def load(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replace what is loaded. Raises StudioError; then nothing is loaded."""
        run_dir, model_path = _folder(body, "run_dir"), _folder(body, "model_path")
        if run_dir is None and model_path is None:
            raise ConfigError("There is nothing to load", allowed="run_dir or model_path")
        self.unload()
        self._phase = "importing"
        try:
            from studio.backend.chat_model import load_plain, load_run
            from studio.backend.loading import quiet_libraries

            self._phase = "loading"
            quiet_libraries()
            if run_dir is not None:
                self._model = load_run(run_dir, model_path)
            elif model_path is not None:
                self._model = load_plain(model_path)
        finally:
            self._phase = "ready" if self._model is not None else "idle"
        return {"ok": True, **self.status()}

    def unload(self) -> dict[str, Any]:
        """Free the model. Conversations that still run end with a BusyError event."""
        model, self._model = self._model, None
        self._phase = "idle"
        if model is not None:
            model.close()
        return {"ok": True}

    def open(self, request: ChatRequest) -> Conversation:
        """Start answering. Raises StudioError: nothing loaded, or the question does not fit."""
        if self._model is None:
            raise BusyError("No model is loaded", remedy="Load a run first")
        return Conversation(self._model, self._model.open_answers(request))


def _folder(body: dict[str, Any], key: str) -> Path | None:
    value = body.get(key)
    if value is None:
        return None
    path = Path(str(value))
    if not path.is_absolute() or not path.is_dir():
        raise ConfigError(f"{key} is not a folder", value=str(value), allowed="an existing folder")
    return path


def build_routes(engine: Engine) -> list[Route]:
    """The endpoints of an engine."""

    async def load(request: Request) -> Response:
        return JSONResponse(await engine.run(engine.load, await json_body(request)))

    async def unload(_: Request) -> Response:
        return JSONResponse(await engine.run(engine.unload))

    async def chat(request: Request) -> Response:
        question = parse_chat_request(await json_body(request))
        conversation = await engine.run(engine.open, question)
        return StreamingResponse(_lines(engine, conversation), media_type="text/event-stream")

    return [
        Route("/load", load, methods=["POST"]),
        Route("/unload", unload, methods=["POST"]),
        Route("/chat", chat, methods=["POST"]),
    ]


async def _lines(engine: Engine, conversation: Conversation) -> AsyncIterator[str]:
    """Events as they come. A cut connection ends this generator, and with it the work."""
    try:
        while (events := await engine.run(conversation.advance)) is not None:
            for event in events:
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
    finally:
        conversation.close()


def main() -> int:
    """Serve until the parent ends."""
    options = parse_arguments()
    engine = Engine()
    return serve(build_app(build_routes(engine), engine.status), options)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    end_process(status)
