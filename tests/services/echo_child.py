"""A child without torch for the tests of ChildServer: echoes, refuses, streams, dies on request."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.private_server import build_app, json_body, parse_arguments, serve
from studio.core.errors import ConfigError, TargetModulesError


async def echo(request: Request) -> Response:
    return JSONResponse({"echo": await json_body(request), "pid": os.getpid()})


async def refuse(request: Request) -> Response:
    if (await json_body(request)).get("config"):
        raise ConfigError("lora.r=0 is not allowed", issues={"lora.r": "choose 1 to 512"})
    raise TargetModulesError("No module matches", value="x_proj", allowed="q_proj")


async def crash(request: Request) -> Response:
    print("RuntimeError: the last words", flush=True)
    os._exit(3)


async def broken(request: Request) -> Response:
    raise RuntimeError("a bug")


async def count(request: Request) -> Response:
    body = await json_body(request)
    trace = Path(body["trace"])

    async def events():
        try:
            for number in range(body["n"]):
                yield f"data: {json.dumps({'n': number})}\n\n"
                await asyncio.sleep(0.005)
        finally:
            trace.write_text("ended")

    return StreamingResponse(events(), media_type="text/event-stream")


ROUTES = [
    Route(f"/{handler.__name__}", handler, methods=["POST"])
    for handler in (echo, refuse, crash, broken, count)
]

if __name__ == "__main__":
    if os.environ.get("ECHO_FAILS"):
        sys.exit("cannot start: no such library")
    sys.exit(serve(build_app(ROUTES, lambda: {"phase": "idle"}), parse_arguments()))
