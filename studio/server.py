"""The web server: guard, our routes, Gradio's page mounted last; socket, start and shutdown.

Gradio is imported when the page is built, because it costs seconds. Knows nothing of trainings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from studio.access import TOKEN_PARAMETER, Door
from studio.api import add_routes
from studio.connections import PatientProtocol
from studio.core.errors import StudioError
from studio.guard import MAX_UPLOAD_BYTES, RequestGuard, allowed_hosts
from studio.handler_answers import HandlerAnswers
from studio.hardware.platforms import make_folder
from studio.listening import (
    answering_names,
    check_host,
    check_public_url,
    open_socket,
    shown_url,
)
from studio.memory_api import add_memory_routes
from studio.services.settings import UPLOADS
from studio.tokens import TokenStore
from studio.viewer import add_viewer_routes

if TYPE_CHECKING:
    import socket

    from studio.services.settings import Settings
    from studio.services.studio import Studio

log = logging.getLogger(__name__)

_GRACEFUL_SHUTDOWN_S = 5
NO_TOKEN = (
    "There is no owner's token yet, and this studio is read-only, so it makes none. Make one with: "
    "python -m studio token new --role owner\n"
)
MAX_SESSIONS = 100  # open pages that gradio remembers, some 300 KiB each; its own limit is 10,000
_APP_OPTIONS = {"openapi_url": None, "docs_url": None, "redoc_url": None}


def build_app(studio: Studio, *, on_started: Callable[[], None] | None = None) -> FastAPI:
    """The whole application: routes, page and guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if on_started:
            on_started()
        yield
        studio.close()

    app = FastAPI(title="LoRA Studio", lifespan=lifespan, **_APP_OPTIONS)
    add_routes(app, studio)
    add_viewer_routes(app, studio)
    app = mount_page(app, studio)
    settings = studio.settings
    app.add_middleware(HandlerAnswers)
    app.add_middleware(
        RequestGuard, port=settings.port, allow_hosts=answering_names(settings),
        door=build_door(settings),
    )  # fmt: skip
    return app


def build_door(settings: Settings) -> Door:
    """Who needs a token, and whose is whose."""
    return Door(
        TokenStore(settings.workspace), port=settings.port, login=settings.needs_login,
        local_hosts=allowed_hosts(settings.port, ()), public_url=settings.public_url,
    )  # fmt: skip


def mount_page(app: FastAPI, studio: Studio) -> FastAPI:
    """Gradio's page at /. No telemetry, no run history, nothing that a stranger could call up."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Uploads lie in the workspace: on its disk, in a folder that only this user may enter.
    uploads = make_folder(studio.settings.tmp / UPLOADS)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    import gradio
    from gradio.route_utils import FnIndexInferError

    from studio.ui.memory_bar import Bars
    from studio.ui.page import build_page, mount_options
    from studio.ui.uploads import tidy_uploads

    tidy_uploads(uploads)
    bars = Bars(studio)
    add_memory_routes(app, bars)
    page = build_page(studio, bars)
    page.state_session_capacity = MAX_SESSIONS
    mounted = gradio.mount_gradio_app(
        app, page, path="/", server_name=studio.settings.host,
        server_port=studio.settings.port, footer_links=[], run_history=False,
        enable_monitoring=False, ssr_mode=False, show_error=False, pwa=False, mcp_server=False,
        max_file_size=MAX_UPLOAD_BYTES, app_kwargs=dict(_APP_OPTIONS), **mount_options(),
    )  # fmt: skip
    for route in mounted.routes:  # Gradio answers 500 to the name of a function that is none
        if isinstance(inner := getattr(route, "app", None), gradio.routes.App):
            inner.add_exception_handler(FnIndexInferError, _no_such_function)
    return mounted


async def _no_such_function(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": {"text": "There is no such function."}}, status_code=404)


def serve(settings: Settings, listener: socket.socket, *, browser: bool) -> None:
    """Build the studio on a workspace and serve its page until SIGINT or SIGTERM."""
    from studio.services.studio import build_studio

    studio = build_studio(settings)
    try:
        app = build_app(studio, on_started=lambda: announce(studio.settings, browser))
        uvicorn.Server(server_config(app, settings)).run(sockets=[listener])
    finally:
        studio.close()


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, http=PatientProtocol,
        timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_S,
        # Without a proxy of ours, a header that names the client is the client's invention.
        proxy_headers=settings.public_url is not None,
    )  # fmt: skip


def announce(settings: Settings, browser: bool) -> None:
    """Print where the studio is; the owner's token with it where one is needed.

    A browser is not opened with a token: its address would stand in the process list. A second
    studio on a workspace makes no token there.
    """
    url = shown_url(settings)
    if settings.needs_login or settings.allow_hosts:
        tokens = TokenStore(settings.workspace)
        token = tokens.known_owner_token() if settings.read_only else tokens.owner_token()
        if token is None:
            sys.stdout.write(NO_TOKEN)
            browser = browser and not settings.needs_login
        elif settings.needs_login:
            url, browser = f"{url}/?{TOKEN_PARAMETER}={token}", False
        else:
            sys.stdout.write(f"By another name, once with /?{TOKEN_PARAMETER}={token}\n")
    sys.stdout.write(f"LoRA Studio runs at {url}  (Ctrl-C ends it; trainings go on)\n")
    sys.stdout.flush()
    if browser and _has_display():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _has_display() -> bool:
    """Whether a browser window can appear; without one, text browsers would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"))


def main(settings: Settings, *, port_given: bool, browser: bool) -> int:
    """Listen and serve. Returns the exit code; a problem is one sentence on stderr."""
    import dataclasses

    try:
        check_host(settings.host, listen=settings.listen)
        settings = dataclasses.replace(settings, public_url=check_public_url(settings.public_url))
        listener = open_socket(settings.host, settings.port, exact=port_given)
        port = listener.getsockname()[1]
        if port != settings.port and settings.port != 0:
            sys.stdout.write(f"Port {settings.port} is in use; using {port}.\n")
        serve(dataclasses.replace(settings, port=port), listener, browser=browser)
    except StudioError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:  # uvicorn hands Ctrl-C on after it has closed everything
        return 130
    return 0
