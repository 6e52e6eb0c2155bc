"""The page's edge for errors: a StudioError becomes its sentence, everything else one plain one.

`shows_errors` and `CheckedBlocks` are the only places of the UI that catch `Exception`: around our
handlers, and around what gradio does with the values before them. The traceback goes to the log,
never into the page.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.core.errors import ConfigError, StudioError
from studio.ui.text import escape

log = logging.getLogger(__name__)

UNEXPECTED = (
    "Something went wrong inside the studio. Nothing was lost; the studio's log (in the terminal "
    "it was started from) has the details."
)
SHOWN_S = 30
_PLAIN = (
    gr.Textbox, gr.Number, gr.Slider, gr.Radio, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup,
)  # fmt: skip
LARGEST = 2**53  # of JavaScript's whole numbers


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


class CheckedBlocks(gr.Blocks):
    """Blocks that answer a value which its control cannot hold with a sentence.

    Gradio would send the exception's own words, which name folders and types.
    """

    async def process_api(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().process_api(*args, **options)
        except gr.Error as error:
            error.print_exception = False  # a sentence for the user is no news for the log
            raise

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        if block_fn.fn is None:  # runs in the browser alone
            raise shown(ConfigError("The page asked for a function that is none"))
        try:
            check_values(inputs)
            check_kinds(block_fn.inputs, inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except gr.Error as error:  # of a control: "Value 9 is greater than maximum value 8."
            raise shown(ConfigError(str(error.message).rstrip("."))) from None
        except Exception as error:  # noqa: BLE001 - the page's edge
            log.info("%s got values that are none: %s", block_fn.name, type(error).__name__)
            problem = ConfigError(
                "The page sent a value that the studio does not take",
                remedy="Reload the page and try again",
            )
            raise shown(problem) from None


def check_values(value: Any) -> None:
    """Raise ConfigError for what no control of a page holds: half characters, NUL, huge numbers."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str) and not is_text(found):
            raise ConfigError("The text has characters that no file or name can hold")
        if isinstance(found, int | float) and not abs(found) <= LARGEST:
            raise ConfigError("The number is too large", allowed=f"up to {LARGEST}")
        if isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list | tuple):
            waiting += found


def check_kinds(controls: Any, values: Any) -> None:
    """Raise ConfigError where a text box, a number or a choice is said to be a file."""
    for control, value in zip(controls, values, strict=False):
        if not isinstance(control, _PLAIN):
            continue
        parts = value if isinstance(value, list) else [value]
        if (
            isinstance(control, gr.Textbox)
            and parts is value
            or any(isinstance(part, dict | list) for part in parts)
        ):
            raise ConfigError("That is no value of the control", value=control.label)


def is_text(value: str) -> bool:
    """Whether a text can be written anywhere: no NUL, no half of a surrogate pair."""
    return "\x00" not in value and not any("\ud800" <= one <= "\udfff" for one in value)


def event_text(event: gr.EventData, name: str) -> str:
    """A text field of an event that our own JavaScript sent; "" where it is absent or no text."""
    value = (event._data or {}).get(name) if isinstance(event._data, dict) else None
    return value if isinstance(value, str) and is_text(value) else ""
