"""A workspace on a mount that takes no writes: it is listed and shown, and nothing else happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from studio.core.config_io import build_config
from studio.services.runs import create_run
from tests.fakes.parts import build_parts

# A namespace of its own, so that the mount ends with the command.
MOUNTED = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def on_a_read_only_mount(folder, *command, **options):
    """Run a command that sees `folder` read-only."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, "sh",
         str(folder), *command],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


@pytest.fixture
def mounted(tmp_path):
    folder = tmp_path / "workspace"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    tried = on_a_read_only_mount(folder, "touch", str(folder / "x"))
    if "Read-only" not in tried.stderr:
        pytest.skip(f"this user may not mount: {tried.stderr[:200]}")
    return folder


def test_runs_are_listed_and_shown_and_nothing_is_written(mounted, repo_root):
    parts = build_parts(mounted)
    config = build_config({"data": {"path": "tiny.jsonl"}})
    run_id = create_run(parts, config, name="Mine").id
    before = sorted(str(path) for path in mounted.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}

    def studio(*arguments):
        return on_a_read_only_mount(
            mounted, sys.executable, "-m", "studio", *arguments, "--workspace", str(mounted),
            cwd=repo_root, env=environment,
        )  # fmt: skip

    listed = studio("runs", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [run["id"] for run in json.loads(listed.stdout)["runs"]] == [run_id]
    assert "cannot be written to; it is shown read-only" in listed.stderr
    shown = studio("runs", "show", run_id, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["name"] == "Mine"
    refused = studio("runs", "delete", run_id)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "read-only" in refused.stderr and "Traceback" not in refused.stderr
    assert sorted(str(path) for path in mounted.rglob("*")) == before
