"""Where gradio would answer 500 to what is the caller's slip.

Handlers outside the queue answer directly, on gradio's `run` and `api` routes. Their errors are
sentences for the user by then (`studio.ui.errors`); the page shows them whatever the status. The
page's own address may name a saved state or another page; this studio has neither, and gradio
breaks off at a name that it does not know.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

_DIRECT = re.compile(r"/gradio_api/(run|api)/[^/]+/?")
REFUSED = 422
_PAGES = ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json")
_UNUSED = ("deep_link", "page")


class HandlerAnswers:
    """ASGI middleware, inside the guard."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in _PAGES and scope.get("query_string"):
            scope = {**scope, "query_string": _without_unused(scope["query_string"])}
        if scope["type"] != "http" or not _DIRECT.fullmatch(str(scope["path"])):
            await self._app(scope, receive, send)
            return

        async def send_on(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                message = {**message, "status": REFUSED}
            await send(message)

        await self._app(scope, receive, send_on)


def _without_unused(query: bytes) -> bytes:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([pair for pair in pairs if pair[0] not in _UNUSED]).encode("ascii")
