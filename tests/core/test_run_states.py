"""The state of a run, derived from its folder."""

from __future__ import annotations

import json

import pytest

from studio.core.runs import RunPaths, derive_state, is_run_id, new_run_id, pending_commands

PROCESS = {"process.json": {"attempt": 1}}
RUNNING = {**PROCESS, "state.json": {"state": "running"}}
PAUSED = {**PROCESS, "exit.json": {"state": "paused"}}
STOP, PAUSE = {"commands/0001-stop.json": {}}, {"commands/0001-pause.json": {}}

CASES = [
    # files, alive, state
    ({}, False, "queued"),
    (STOP, False, "stopped"),
    ({}, True, "starting"),
    (PROCESS, True, "starting"),
    (RUNNING, True, "running"),
    ({**RUNNING, **STOP}, True, "stopping"),
    ({**RUNNING, "commands/0001-stop_now.json": {}}, True, "stopping"),
    ({**RUNNING, **PAUSE}, True, "pausing"),
    ({**RUNNING, **PAUSE, "commands/0001-pause.ack": {}}, True, "running"),
    ({**RUNNING, "commands/0001-save.json": {}}, True, "running"),
    (RUNNING, False, "interrupted"),
    (PROCESS, False, "interrupted"),
    ({**RUNNING, **STOP}, False, "interrupted"),
    (PAUSED, False, "paused"),
    ({**PROCESS, "exit.json": {"state": "done"}}, False, "done"),
    ({**PROCESS, "exit.json": {"state": "failed"}}, False, "failed"),
    ({**PROCESS, "exit.json": {"state": "nonsense"}}, False, "interrupted"),
    ({**PAUSED, "resume.json": {}}, False, "queued"),
    ({**PAUSED, "resume.json": {}, "state.json": {"state": "running"}}, True, "running"),
    ({"imported.json": {}}, False, "interrupted"),
    ({"imported.json": {}, "resume.json": {}}, False, "interrupted"),
    ({"imported.json": {}, "exit.json": {"state": "done"}}, False, "done"),
]


@pytest.mark.parametrize(("files", "alive", "state"), CASES)
def test_state_follows_from_the_files(tmp_path, files, alive, state):
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    assert derive_state(RunPaths(tmp_path), alive=alive) == state


def test_commands_wait_in_order_until_they_are_answered(tmp_path):
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in ("0002-save.json", "0010-stop.json", "0001-pause.json", "0001-pause.ack",
                 "0003-explode.json", "junk.json"):  # fmt: skip
        (folder / name).write_text("{}")
    assert [verb for _, verb in pending_commands(RunPaths(tmp_path))] == ["save", "stop"]


def test_run_ids_are_folder_names_and_nothing_else():
    assert is_run_id(new_run_id()) and new_run_id() != new_run_id()
    for text in ("", ".", "..", "a/b", "a\\b", "A", "a.b", "a" * 81, "-a", "a\n", "con:"):
        assert not is_run_id(text)
