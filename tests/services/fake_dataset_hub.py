"""A hub of data sets on loopback: what the `datasets` library asks for repositories of files."""

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
class FakeDatasetHub:
    """Its repositories (name to files), what is gated, and what it was asked.

    `hold`: files named here are not answered before the event is set.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    hold: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""


def _entry(path: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return {"type": "file", "oid": digest, "size": len(data), "path": path}


def _handler(hub: FakeDatasetHub) -> type[HubHandler]:
    class Handler(HubHandler):
        def handle_any(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            about = parts[:2] == ["api", "datasets"]
            repository = "/".join(parts[2:4] if about else parts[1:3])
            files = hub.repositories.get(repository)
            if files is None:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif repository in hub.gated:
                self.answer(403, b"{}", X_Error_Code="GatedRepo")
            elif about:
                self.tell(repository, files, parts[4:], asked)
            else:
                self.give(files, "/".join(parts[5:]))

        do_GET = do_HEAD = do_POST = handle_any

        def tell(
            self, repository: str, files: dict[str, bytes], rest: list[str], asked: bytes
        ) -> None:  # fmt: skip
            if rest[:1] == ["tree"]:
                under = "/".join(rest[2:])
                found = [_entry(p, d) for p, d in files.items() if p.startswith(under)]
                self.answer(200, json.dumps(found).encode())
            elif rest[:1] == ["paths-info"]:
                wanted = json.loads(asked)["paths"]
                found = [_entry(p, d) for p, d in files.items() if p in wanted]
                self.answer(200, json.dumps(found).encode())
            else:
                siblings = [{"rfilename": p, "size": len(d)} for p, d in files.items()]
                known = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
                self.answer(200, json.dumps(known).encode())

        def give(self, files: dict[str, bytes], name: str) -> None:
            data = files.get(name)
            if data is None:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            if name in hub.held and self.command == "GET":
                hub.hold.wait(30)
            start, end = 0, len(data)
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(end, int(last) + 1 if last else end)
            about = {"ETag": f'"{_entry(name, data)["oid"]}"', "X_Repo_Commit": COMMIT,
                     "Accept_Ranges": "bytes"}  # fmt: skip
            if wanted:
                about["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self.answer(206 if wanted else 200, data[start:end], **about)

    return Handler


@contextmanager
def fake_dataset_hub() -> Iterator[FakeDatasetHub]:
    """Run it."""
    hub = FakeDatasetHub()
    with serving(_handler(hub), hub.hold) as (endpoint,):
        hub.endpoint = endpoint
        yield hub
