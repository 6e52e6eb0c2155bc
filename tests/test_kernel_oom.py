"""The kernel's own out-of-memory killer ends a real trainer: the run names it, and its phase.

Needs the right to make a control group with a memory limit (root, or a delegated group).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import pytest

from studio.core.config_io import build_config
from studio.services import launcher
from studio.services.settings import Settings
from studio.services.studio import build_studio
from tests.waiting import wait_until

GROUPS = Path("/sys/fs/cgroup")
LIMITS = {"memory": "memory.limit_in_bytes", "": "memory.max"}  # version 1, version 2
LIMIT_BYTES = 120 * 2**20  # torch alone needs more
JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


def limited_group() -> Path | None:
    """A new control group whose members may use little memory together."""
    for controller, limit in LIMITS.items():
        group = GROUPS / controller / f"lora-studio-test-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            group.rmdir()
            continue
        with contextlib.suppress(OSError):  # version 2: no way out by swapping
            (group / "memory.swap.max").write_text("0")
        return group
    return None


@pytest.fixture
def small_group():
    """The group, for one test."""
    group = limited_group()
    if group is None:
        pytest.skip("no right to make a control group with a memory limit")
    yield group
    wait_until(lambda: not (group / "cgroup.procs").read_text(), what="the group's end")
    group.rmdir()


def test_killed_by_the_kernel_is_told_with_its_phase(small_group, tmp_path, monkeypatch):
    command = ("sh", "-c", JOIN, str(small_group), *launcher.TRAINER_COMMAND)
    monkeypatch.setattr(launcher, "TRAINER_COMMAND", command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    studio = build_studio(Settings(workspace=tmp_path / "workspace"))
    try:
        config = build_config({"data": {"path": "sample:harbor-style"}})
        run_id = studio.supervisor.start(config, name="x", request_id=os.urandom(4).hex())
        run = wait_until(
            lambda: (r := studio.runs.get(run_id)).error and r, timeout_s=120, what="the reason"
        )
        wait_until(lambda: not studio.supervisor._children, what="the trainer to be reaped")
    finally:
        studio.close()
    assert (run.state, run.error["type"]) == ("interrupted", "OutOfMemoryError")
    assert run.error["what"].startswith(
        "Main memory (RAM) ran out: the container or control group may take 0.1 GiB, and the "
        "system killed the trainer while loading the model"
    )
    memory = run.error["memory"]
    assert (memory["holder"], memory["limit_bytes"]) == ("host", LIMIT_BYTES)
    assert memory["budget_bytes"] == LIMIT_BYTES
