"""The page's edge for errors: a StudioError becomes its sentence, everything else one plain one.

`shows_errors` is the only place of the UI that catches `Exception`: the traceback goes to the log,
never into the page.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.ui.text import escape

log = logging.getLogger(__name__)

UNEXPECTED = (
    "Something went wrong inside the studio. Nothing was lost; the studio's log (in the terminal "
    "it was started from) has the details."
)
SHOWN_S = 30


def shown(error: BaseException) -> gr.Error:
    """The message box for an error. Gradio renders it as HTML, so the text is escaped."""
    text = str(error) if isinstance(error, StudioError) else UNEXPECTED
    title = "That does not work" if isinstance(error, StudioError) else "Unexpected problem"
    return gr.Error(escape(text), duration=SHOWN_S, title=title, print_exception=False)


def warn(error: StudioError) -> None:
    """The same message box for a handler that goes on, because it shows the sentence itself too."""
    gr.Warning(escape(str(error)), duration=SHOWN_S, title="That does not work")


def _translate(error: Exception, name: str) -> Exception:
    if isinstance(error, gr.Error):
        return error
    if not isinstance(error, StudioError):
        log.error("handler %s failed", name, exc_info=error)
    return shown(error)


def shows_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler (plain, generator, coroutine or async generator)."""
    name = handler.__qualname__

    if inspect.isasyncgenfunction(handler):

        @functools.wraps(handler)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            try:
                async for item in handler(*args, **kwargs):
                    yield item
            except Exception as error:  # noqa: BLE001 - the page's edge
                raise _translate(error, name) from None

        return stream

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the page's edge
                raise _translate(error, name) from None

        return generate

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the page's edge
            raise _translate(error, name) from None

    return call


def event_text(event: gr.EventData, name: str) -> str:
    """A text field of an event that our own JavaScript sent; "" where it is absent or no text."""
    value = (event._data or {}).get(name) if isinstance(event._data, dict) else None
    return value if isinstance(value, str) else ""
