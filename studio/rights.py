"""Who may call which route: one table, and what is not in it is refused.

`tests/test_access.py` holds the table against `app.routes`: a new route, ours or Gradio's, fails
that test until it is written down here. Knows nothing of tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, VIEWER, OWNER, CLOSED = "open", "viewer", "owner", "closed"
ROLES = (VIEWER, OWNER)

# Closed: parts of Gradio that the page does not use (own login, proxy, monitoring, code editor).
_TABLE = """
open    GET       /healthz
viewer  GET       /view
viewer  GET       /view/assets/{name}
viewer  GET       /view/runs/{run_id}
viewer  GET       /view/chat/{run_id}
viewer  POST      /view/chat/{run_id}
viewer  GET       /api/runs
viewer  GET       /api/runs/{run_id}/metrics
owner   GET       /api/runs/{run_id}
owner   GET       /api/runs/{run_id}/memory
owner   GET       /api/runs/{run_id}/doctor
owner   GET       /api/machine
owner   GET       /api/memory/{key}
owner   GET       /api/datasets/{dataset_id}/checks/{name}
owner   GET       /api/runs/{run_id}/run.zip
owner   GET       /api/runs/{run_id}/adapter.zip
owner   GET       /
owner   GET       /config
owner   GET       /svelte/{path:path}
owner   GET       /static/{path:path}
owner   GET       /assets/{path:path}
owner   GET       /favicon.ico
owner   GET       /theme.css
owner   GET       /robots.txt
owner   GET       /manifest.json
owner   GET       /pwa_icon
owner   GET       /pwa_icon/{size}
owner   GET       /gradio_api/user
owner   GET       /gradio_api/login_check
owner   GET       /gradio_api/app_id
owner   GET       /gradio_api/info
owner   GET       /gradio_api/openapi.json
owner   GET       /gradio_api/theme.css
owner   GET       /gradio_api/startup-events
owner   GET       /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}
owner   GET       /gradio_api/file={path_or_url:path}
owner   GET       /gradio_api/file/{path:path}
owner   GET       /gradio_api/heartbeat/{session_hash}
owner   GET       /gradio_api/queue/data
owner   GET       /gradio_api/queue/status
owner   GET       /gradio_api/upload_progress
owner   GET       /gradio_api/call/{api_name}/{event_id}
owner   POST      /gradio_api/queue/join
owner   POST      /gradio_api/call/{api_name}
owner   POST      /gradio_api/api/{api_name}
owner   POST      /gradio_api/run/{api_name}
owner   POST      /gradio_api/cancel
owner   POST      /gradio_api/reset
closed  POST      /gradio_api/component_server
owner   POST      /gradio_api/upload
closed  POST      /gradio_api/call/v2/{api_name}
closed  GET       /gradio_api/call/v2/{api_name}/{event_id}
closed  POST      /login
closed  GET       /logout
closed  GET       /monitoring
closed  GET       /monitoring/{key}
closed  GET       /gradio_api/deep_link
closed  GET       /gradio_api/token
closed  GET       /gradio_api/dev/reload
closed  GET       /gradio_api/runs
closed  GET       /gradio_api/proxy={url_path:path}
closed  GET       /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
closed  GET       /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
closed  GET       /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file
closed  POST      /gradio_api/stream/{event_id}
closed  POST      /gradio_api/stream/{event_id}/close
closed  POST      /gradio_api/process_recording
closed  POST      /gradio_api/vibe-edit
closed  POST      /gradio_api/undo-vibe-edit
closed  GET,POST  /gradio_api/vibe-code
closed  POST      /gradio_api/vibe-starter-queries
"""


@dataclass(frozen=True)
class Right:
    """A line of the table."""

    least: str  # OPEN, VIEWER, OWNER or CLOSED
    methods: tuple[str, ...]
    template: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What the template matches; as in Starlette, `:path` crosses slashes. No control codes."""
        pieces = re.split(r"(\{[^}]*\})", self.template)
        matched = (
            re.escape(piece) if not piece.startswith("{")
            else r"[^\x00-\x1f\x7f]*" if piece.endswith(":path}") else r"[^/\x00-\x1f\x7f]+"
            for piece in pieces
        )  # fmt: skip
        end = "" if self.template == "/" else "/?"  # Gradio has most routes with and without
        return re.compile("".join(matched) + end)


def _read(table: str) -> tuple[Right, ...]:
    lines = (line.split() for line in table.strip().splitlines())
    return tuple(Right(least, tuple(methods.split(",")), path) for least, methods, path in lines)


RIGHTS = _read(_TABLE)
_COMPILED = tuple((right, right.pattern) for right in RIGHTS)
_PAGE = re.compile(r"/|/view(/runs/[^/]+|/chat/[^/]+)?/?")


def least_role(method: str, path: str) -> str:
    """The least role that may call; CLOSED for what nobody may, known or not."""
    method = "GET" if method == "HEAD" else method
    for right, pattern in _COMPILED:
        if method in right.methods and pattern.fullmatch(path):
            return right.least
    return CLOSED


def may(role: str | None, least: str) -> bool:
    """Whether a caller of that role (None: nobody yet) reaches a route."""
    if least == OPEN:
        return True
    return role == OWNER and least in ROLES or role == VIEWER == least


def is_page(path: str) -> bool:
    """Whether a link on another site may lead here."""
    return bool(_PAGE.fullmatch(path))
