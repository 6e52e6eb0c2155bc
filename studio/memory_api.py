"""The memory bar while a hand is at a knob: GET /api/memory/{key}?lora.r=8&train.packing=true

Gradio takes a tenth of a second and more to hand a page's values to a handler; this answers from a
question that the page asked before, with the knobs that have changed since laid over it: their
paths, and what stands in their fields. Reads and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from studio.core.errors import ConfigError

if TYPE_CHECKING:
    from studio.ui.memory_bar import Bars

MAX_CHARS = 2000  # of a question: every knob at once takes fewer


def add_memory_routes(app: FastAPI, bars: Bars) -> None:
    """Our route. To be called before Gradio is mounted, which takes every other path."""

    @app.get("/api/memory/{key}")
    def moved(key: str, request: Request) -> dict[str, Any]:
        if len(request.url.query) > MAX_CHARS:
            raise ConfigError(
                "The question is too long", value=f"{len(request.url.query):,} characters",
                allowed=f"{MAX_CHARS:,}",
            )  # fmt: skip
        return bars.moved(key, dict(request.query_params))
