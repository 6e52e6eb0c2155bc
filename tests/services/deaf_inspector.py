"""An inspection process that hangs on demand, for the limits of InspectService."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from studio.backend.private_server import build_app, json_body, parse_arguments, serve

DONE = {"done": 0, "total": 10}


async def render(request: Request) -> Response:
    if (await json_body(request))["example"].get("hangs"):
        await asyncio.to_thread(threading.Event().wait)
    return JSONResponse({"pid": os.getpid()})


async def token_stats(request: Request) -> Response:
    DONE["done"] = 3  # it began, and never goes on
    await asyncio.to_thread(threading.Event().wait)
    return JSONResponse({})


async def progress(request: Request) -> Response:
    return JSONResponse(DONE)


ROUTES = [
    Route("/render", render, methods=["POST"]),
    Route("/token_stats", token_stats, methods=["POST"]),
    Route("/progress", progress),
    Route("/cancel", progress),
]

if __name__ == "__main__":
    sys.exit(serve(build_app(ROUTES, lambda: {"phase": "ready"}), parse_arguments()))
