"""Commands to a trainer: one exclusively created file each, answered by the trainer with `.ack`.

Used by the page and the command line alike. Knows the files only; signals belong to the supervisor.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from studio.core.errors import BusyError, ConfigError
from studio.core.runs import COMMANDS, LIVE_STATES, QUEUED, RunPaths, derive_state, pending_commands
from studio.hardware.platforms import create_exclusive, make_folder

_MAX_COMMANDS = 10_000


def send_command(paths: RunPaths, verb: str, state: str) -> None:
    """Write one command for a run that is in `state`. The same one twice is written once.

    Raises:
        ConfigError: there is no such command.
        BusyError: the run is in no state to take it.
    """
    if verb not in COMMANDS:
        raise ConfigError("There is no such command", value=verb, allowed=", ".join(COMMANDS))
    stops = verb in ("stop", "stop_now")
    if state == QUEUED and stops and paths.resume_json.exists():
        paths.resume_json.unlink(missing_ok=True)  # back to what it was before Resume
        if derive_state(paths, alive=False) != QUEUED:
            return  # else it never ran, and its earlier stop was answered by Resume
    if state not in LIVE_STATES and not (state == QUEUED and stops):
        remedy = "Stop it instead" if state == QUEUED else None
        raise BusyError(f"The run is {state}, so it cannot {verb}", value=paths.id, remedy=remedy)
    if verb in {waiting for _, waiting in pending_commands(paths)}:
        return
    write_command(paths, verb)


def write_command(paths: RunPaths, verb: str) -> None:
    """Create the next command file."""
    make_folder(paths.commands)
    body = json.dumps({"verb": verb, "time": datetime.now(UTC).isoformat()}).encode()
    number = len(list(paths.commands.glob("*.json"))) + 1
    while not create_exclusive(paths.commands / f"{number:04d}-{verb}.json", body):
        number += 1
        if number > _MAX_COMMANDS:
            raise BusyError("The run has too many unanswered commands", value=paths.id)


def retire_commands(paths: RunPaths) -> None:
    """Answer what an earlier attempt left unanswered, so that the next one does not obey it."""
    for file, _ in pending_commands(paths):
        create_exclusive(file.with_suffix(".ack"), b'{"superseded": true}\n')


def asks_stop_now(paths: RunPaths) -> bool:
    """Whether this attempt was told to stop now, acknowledged or not."""
    try:
        began = paths.process_json.stat().st_mtime
        asked = [f.stat().st_mtime for f in paths.commands.glob("*-stop_now.json")]
    except OSError:
        return False
    return any(time_ >= began for time_ in asked)
