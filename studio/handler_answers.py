"""The status of a handler that refuses: 422, where gradio says 500 whatever it was.

Handlers outside the queue answer directly, on gradio's `run` and `api` routes. Their errors are
sentences for the user by then (`studio.ui.errors`); the page shows them whatever the status.
"""

from __future__ import annotations

import re
from typing import Any

_DIRECT = re.compile(r"/gradio_api/(run|api)/[^/]+/?")
REFUSED = 422


class HandlerAnswers:
    """ASGI middleware, inside the guard."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not _DIRECT.fullmatch(str(scope["path"])):
            await self._app(scope, receive, send)
            return

        async def send_on(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                message = {**message, "status": REFUSED}
            await send(message)

        await self._app(scope, receive, send_on)
