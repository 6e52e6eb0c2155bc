"""The web server: guard, our routes, Gradio's page mounted last; socket, start and shutdown.

Gradio is imported when the page is built, because it costs seconds. Knows nothing of trainings.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from studio.api import add_routes
from studio.core.errors import BusyError, ConfigError, StudioError
from studio.guard import MAX_UPLOAD_BYTES, RequestGuard
from studio.hardware.platforms import make_folder
from studio.services.settings import UPLOADS

if TYPE_CHECKING:
    from studio.services.settings import Settings
    from studio.services.studio import Studio

log = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
PORTS_TRIED = 20
_GRACEFUL_SHUTDOWN_S = 5
_APP_OPTIONS = {"openapi_url": None, "docs_url": None, "redoc_url": None}


def check_host(host: str) -> None:
    """Raise ConfigError unless only this machine can reach the address."""
    if host not in LOOPBACK_HOSTS:
        raise ConfigError(
            "--host is not a loopback address: anybody in the network could use this studio",
            value=host, allowed=", ".join(LOOPBACK_HOSTS),
            remedy="Keep 127.0.0.1 and reach it from elsewhere through an SSH tunnel",
        )  # fmt: skip


def open_socket(host: str, port: int, *, exact: bool) -> socket.socket:
    """A bound socket on `port`, or on the next free one unless the port was asked for.

    Raises:
        BusyError: the port (or each of the ports tried) is in use.
        ConfigError: the port cannot be used at all.
    """
    if not 0 <= port <= 65535:
        raise ConfigError("There is no such port", value=port, allowed="0 to 65535")
    candidates = [port] if exact or port == 0 else range(port, min(port + PORTS_TRIED, 65536))
    for candidate in candidates:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # on Windows it would let two servers share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
            found.listen(256)
        except OSError as error:
            found.close()
            if error.errno not in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", None)):
                raise ConfigError(
                    f"The studio cannot listen on {host}:{candidate} ({error.strerror})",
                    remedy="Choose another --port",
                ) from error
            continue
        return found
    tried = str(port) if len(candidates) == 1 else f"{port} to {candidates[-1]}"
    raise BusyError(
        f"Port {tried} is in use", remedy="Choose another --port or end what listens there"
    )


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
    app = mount_page(app, studio)
    settings = studio.settings
    app.add_middleware(RequestGuard, port=settings.port, allow_hosts=settings.allow_hosts)
    return app


def mount_page(app: FastAPI, studio: Studio) -> FastAPI:
    """Gradio's page at /. No telemetry, no run history, nothing that a stranger could call up."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Uploads lie in the workspace: on its disk, in a folder that only this user may enter.
    os.environ["GRADIO_TEMP_DIR"] = str(make_folder(studio.settings.tmp / UPLOADS))
    import gradio

    from studio.ui.page import build_page, mount_options

    return gradio.mount_gradio_app(
        app, build_page(studio), path="/", server_name=studio.settings.host,
        server_port=studio.settings.port, footer_links=[], run_history=False,
        enable_monitoring=False, ssr_mode=False, show_error=True, pwa=False, mcp_server=False,
        max_file_size=MAX_UPLOAD_BYTES, app_kwargs=dict(_APP_OPTIONS), **mount_options(),
    )  # fmt: skip


def serve(settings: Settings, listener: socket.socket, *, browser: bool) -> None:
    """Build the studio on a workspace and serve its page until SIGINT or SIGTERM."""
    from studio.services.studio import build_studio

    studio = build_studio(settings)
    try:
        app = build_app(studio, on_started=lambda: _announce(settings.url, browser))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_S,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        studio.close()


def _announce(url: str, browser: bool) -> None:
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
        check_host(settings.host)
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
