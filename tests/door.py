"""The application behind its door, for tests: a studio on fakes, tokens, a client per caller."""

from __future__ import annotations

import json
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from studio.access import Door, Rates
from studio.core.config_io import build_config
from studio.guard import allowed_hosts
from studio.services.runs import create_run
from studio.services.settings import Settings
from studio.services.supervisor import Supervisor
from studio.tokens import TokenStore
from tests.fakes.parts import build_parts

PORT = 7860
HOME = f"http://127.0.0.1:{PORT}"
COOKIE = f"lora_studio_{PORT}"
WRONG = "w" * 43
UNLIMITED = Rates(per_s=1e9, burst=1e9, stranger_per_s=1e9, stranger_burst=1e9)


class FakeChat:
    """Answers with two words, then breaks off with an error that names a file."""

    def __init__(self, secret: str) -> None:
        self.asked: list[Any] = []
        self.secret = secret

    async def stream(self, run_id: str, messages: Any, **options: Any) -> AsyncIterator[Any]:
        self.asked.append((run_id, messages, options))
        yield {"phase": "loading", "message": "Loading the model..."}
        yield {"notice": f"The base lies in {self.secret}"}
        yield {"which": "base", "delta": "hello <b>"}
        yield {"error": {"text": f"Cannot read {self.secret}"}}


@dataclass
class House:
    """A studio that listens for others: its application, its tokens, its files."""

    app: FastAPI
    studio: Any
    tokens: dict[str, str]
    runs: dict[str, str]
    clicks: list[str]

    @property
    def workspace(self) -> Path:
        return self.studio.settings.workspace

    def client(self, role: str = "none", base_url: str = HOME) -> TestClient:
        """A client with the cookie of a role: none, wrong, viewer, owner."""
        client = TestClient(self.app, base_url=base_url, follow_redirects=False,
                            raise_server_exceptions=False)  # fmt: skip
        if role != "none":
            client.cookies.set(COOKIE, self.tokens[role])
        return client


def build_house(workspace: Path, monkeypatch: Any, *, port: int = PORT) -> House:
    """A studio with a finished run and a waiting one, around a page of a few components."""
    import sys

    import gradio

    from studio.server import build_app

    clicks: list[str] = []

    def build_page(*_: Any) -> Any:
        with gradio.Blocks() as page:
            number = gradio.Number(1, minimum=0, maximum=9)
            text = gradio.Textbox("x")
            choice = gradio.Dropdown(["a", "b"], value="a")
            file = gradio.File()
            button = gradio.Button("Start training")
            button.click(lambda *values: clicks.append(str(values)),
                         [number, text, choice, file], api_name="start")  # fmt: skip
        return page

    page = types.SimpleNamespace(build_page=build_page, mount_options=dict)
    monkeypatch.setitem(sys.modules, "studio.ui.page", page)
    parts = build_parts(workspace)
    given = Settings(workspace=workspace, port=port, listen=True)
    studio = types.SimpleNamespace(
        settings=given, runs=parts.runs, machine=parts.machine, parts=parts,
        supervisor=Supervisor(parts), chat=FakeChat(str(workspace / "models")),
        close=lambda: None,
    )  # fmt: skip
    config = build_config({"data": {"path": "/srv/secret/tiny.jsonl"}})
    done, waiting = create_run(parts, config), create_run(parts, config)
    done.adapter.mkdir()
    (done.adapter / "adapter_config.json").write_text("{}")
    done.exit_json.write_text(json.dumps({"state": "done", "steps": 3, "total_steps": 3}))
    store = TokenStore(workspace)
    tokens = {"owner": store.owner_token(), "viewer": store.new_viewer("Vera"), "wrong": WRONG}
    monkeypatch.setattr("studio.server.build_door", unlimited_door)
    return House(
        build_app(studio), studio, tokens, {"done": done.id, "waiting": waiting.id}, clicks
    )


def unlimited_door(settings: Settings) -> Door:
    """The studio's door without rates: tests are faster than people."""
    return Door(
        TokenStore(settings.workspace), port=settings.port, login=settings.needs_login,
        local_hosts=allowed_hosts(settings.port, ()), public_url=settings.public_url,
        rates=UNLIMITED,
    )  # fmt: skip


def every_route(routes: Any, prefix: str = "") -> Any:
    """(method, template) of all routes, those of mounted apps and included routers too."""
    for route in routes:
        path = prefix + (getattr(route, "path", None) or "")
        inner = getattr(route, "original_router", route)
        if nested := getattr(inner, "routes", None):
            yield from every_route(nested, path.rstrip("/"))
        for method in getattr(route, "methods", None) or ():
            yield method, path


def files_of(workspace: Path) -> dict[str, bytes]:
    """Every file of a workspace, but for downloads that are just being sent."""
    return {
        path.relative_to(workspace).as_posix(): path.read_bytes()
        for path in sorted(workspace.rglob("*"))
        if path.is_file() and path.name != "lock" and not path.parent.name.startswith("zip-")
    }
