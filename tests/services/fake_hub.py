"""A model hub on loopback for tests: the few endpoints a download needs, with faults on request.

Content comes from a second port, as on the real hub, so that a token sent there shows.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.services.loopback_hub import COMMIT, HubHandler, serving


@dataclass
class FakeModel:
    """A model of the fake hub. `cuts`: bytes after which connections break, once each."""

    files: dict[str, bytes]
    gated: bool = False
    allowed_token: str | None = None
    licence: str | None = "apache-2.0"
    commit: str = COMMIT
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    corrupt: set[str] = field(default_factory=set)
    stated_sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeHub:
    """What the server knows, and what it was asked."""

    models: dict[str, FakeModel] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    content_tokens: list[str | None] = field(default_factory=list)
    endpoint: str = ""
    content: str = ""
    hold: threading.Event = field(default_factory=threading.Event)
    holding: threading.Event = field(default_factory=threading.Event)


def listing(model_id: str, model: FakeModel) -> dict[str, Any]:
    siblings = []
    for name, data in model.files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": model.stated_sizes.get(name, len(data))}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"size": entry["size"], "sha256": hashlib.sha256(data).hexdigest()}
        else:
            head = f"blob {len(data)}\0".encode()
            entry["blobId"] = hashlib.sha1(head + data, usedforsecurity=False).hexdigest()
        siblings.append(entry)
    return {
        "id": model_id, "sha": model.commit, "gated": "manual" if model.gated else False,
        "cardData": {"license": model.licence}, "siblings": siblings,
    }  # fmt: skip


def _handler(hub: FakeHub) -> type[HubHandler]:
    class Handler(HubHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization")
            if path.startswith("/content/"):
                hub.content_tokens.append(token)
                self.give(path.removeprefix("/content/"))
                return
            hub.asked.append((path, token, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else None)
            elif len(parts) == 5 and parts[2] == "resolve":
                self.resolve("/".join(parts[:2]), parts[3], parts[4], token)
            else:
                self.answer(404, X_Error_Code="EntryNotFound")

        def describe(self, model_id: str, revision: str | None) -> None:
            model = hub.models.get(model_id)
            if model is None:
                self.answer(401, b'{"error":"Invalid username or password."}',
                            X_Error_Code="RepoNotFound")  # fmt: skip
            elif revision not in (None, "main", model.commit):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            else:
                self.answer(200, json.dumps(listing(model_id, model)).encode())

        def resolve(self, model_id: str, commit: str, name: str, token: str | None) -> None:
            model = hub.models[model_id]
            if model.gated and token != f"Bearer {model.allowed_token}":
                self.answer(403 if token else 401, b"Access restricted", X_Error_Code="GatedRepo")
            elif commit != model.commit or name not in model.files:
                self.answer(404, X_Error_Code="EntryNotFound")
            else:
                self.answer(302, Location=f"{hub.content}/content/{model_id}/{name}")

        def give(self, path: str) -> None:
            owner, name, file = path.split("/")
            model = hub.models[f"{owner}/{name}"]
            data = model.files[file]
            if file in model.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = 0
            wanted = self.headers.get("Range")
            if wanted and model.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            rest = data[start:]
            if file.endswith(".safetensors") and model.cuts:
                self.wfile.write(rest[: model.cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            if hub.holding.is_set() and file.endswith(".safetensors"):
                self.wfile.write(rest[:1000])
                self.wfile.flush()
                hub.hold.wait(30)
                rest = rest[1000:]
            self.wfile.write(rest)

    return Handler


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run the hub on two loopback ports."""
    hub = FakeHub()
    with serving(_handler(hub), hub.hold, count=2) as (endpoint, content):
        # Another host name as well: a token may follow a redirect to another port of one host.
        hub.endpoint, hub.content = endpoint, content.replace("127.0.0.1", "localhost")
        yield hub
