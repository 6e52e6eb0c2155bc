"""The memory bar while a slider is dragged: GET /api/memory/{key}?r=..&batch=..&length=..

Gradio takes a tenth of a second to hand a page's values to a handler; this answers from a question
that the page asked before, with the moved knobs laid over it. Reads and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Query

if TYPE_CHECKING:
    from studio.ui.memory_bar import Bars

_LARGEST = 2**31


def add_memory_routes(app: FastAPI, bars: Bars) -> None:
    """Our route. To be called before Gradio is mounted, which takes every other path."""

    @app.get("/api/memory/{key}")
    def moved(
        key: str,
        r: int = Query(le=_LARGEST),
        batch: int = Query(le=_LARGEST),
        length: int = Query(le=_LARGEST),
    ) -> dict[str, Any]:
        knobs = {"lora.r": r, "train.per_device_train_batch_size": batch,
                 "train.max_length": length}  # fmt: skip
        return bars.moved(key, knobs)
