"""The whole studio behind its door, for attacks: real services, every tab, a trainer without torch.

`tests/door.py` has the small one, around a page of four components.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.core.config_io import build_config
from studio.hardware.platforms import ProcessIdentity
from studio.services.settings import PROJECT_ROOT, Settings
from studio.tokens import TokenStore
from tests.door import PORT, WRONG, House, unlimited_door
from tests.waiting import wait_until

FAKE_TRAINER = (sys.executable, str(PROJECT_ROOT / "tests" / "fakes" / "trainer.py"))


@contextlib.contextmanager
def full_house(workspace: Path, *, port: int = PORT) -> Iterator[House]:
    """A studio with two finished runs; both are called what the small house calls them."""
    from studio.server import build_app
    from studio.services.studio import build_studio

    patch = pytest.MonkeyPatch()
    patch.setattr("studio.services.launcher.TRAINER_COMMAND", FAKE_TRAINER)
    if not hasattr(sys.modules.get("studio.ui.page"), "__file__"):  # the small house's
        patch.delitem(sys.modules, "studio.ui.page", raising=False)
    patch.setattr("studio.server.build_door", unlimited_door)
    patch.setenv("XDG_CACHE_HOME", str(workspace.parent / "cache"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.delenv("HF_TOKEN", raising=False)
    studio = build_studio(Settings(workspace=workspace, port=port, listen=True))
    try:
        runs = {name: finished_run(studio, name) for name in ("done", "waiting")}
        store = TokenStore(workspace)
        tokens = {"owner": store.owner_token(), "viewer": store.new_viewer("Vera"), "wrong": WRONG}
        yield House(build_app(studio), studio, tokens, runs, [])
    finally:
        studio.close()
        end_trainers(studio)
        patch.undo()


def end_trainers(studio: Any) -> None:
    """End and reap what the closed supervisor let go: it is no page's child, but it is ours."""
    for child in studio.supervisor._children.values():
        if identity := ProcessIdentity.of(child.handle.pid):
            identity.kill()
        child.handle.wait(timeout=20)


def finished_run(studio: Any, name: str) -> str:
    """A run of the sample set that the pretended trainer has ended."""
    config = build_config({"data": {"path": "sample:harbor-style"}})
    run_id = studio.supervisor.start(config, name=name, request_id=name)
    wait_until(lambda: studio.runs.get(run_id).state == "done", timeout_s=120, what=name)
    return str(run_id)
