"""A studio that only looks: which methods of the services write, and their refusal.

A second studio on a workspace may read and chat. What a service can do is named here by method;
`tests/services/test_read_only.py` fails for a public method that stands in neither list.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from studio.core.errors import BusyError

T = TypeVar("T")

WRITING: Mapping[str, frozenset[str]] = {
    "supervisor": frozenset({"start", "resume", "command", "warm_start"}),
    "runs": frozenset({
        "rename", "set_notes", "delete", "undo_delete", "open_zip", "note_problem",
        "forget_problem",
    }),
    "datasets": frozenset({
        "import_file", "import_sample", "import_hub", "remap", "resolve", "check_again",
    }),
    "edits": frozenset({"apply", "undo", "redo", "collect_garbage"}),
    "models": frozenset({"download", "fetch", "cancel", "set_token"}),
}  # fmt: skip


def holder_record(url: str) -> dict[str, Any]:
    """What the studio that holds a workspace writes of itself."""
    return {
        "pid": os.getpid(), "host": socket.gethostname(), "url": url,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def holder_words(record: Mapping[str, Any]) -> str:
    """Who holds the workspace, as far as it is known."""
    known = [f"process {record.get('pid') or 'unknown'}"]
    if record.get("host"):
        known[0] += f" on {record['host']}"
    since = _local_time(record.get("since"))
    known += [f"since {since}"] if since else []
    known += [f"at {record['url']}"] if record.get("url") else []
    return f"Another studio ({', '.join(known)}) holds this workspace"


def _local_time(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).astimezone().strftime("%d %b %H:%M")
    except ValueError:
        return ""


def refusal(holder: str) -> BusyError:
    """The one sentence for everything that would write."""
    return BusyError(
        f"This studio is read-only. {holder}", remedy="Use that one, or start this one with "
        "another --workspace",
    )  # fmt: skip


class Guarded:
    """A service whose writing methods refuse; everything else is the service's own."""

    def __init__(self, service: Any, writing: frozenset[str], holder: str) -> None:
        self._service = service
        self._writing = writing
        self._holder = holder

    def __getattr__(self, name: str) -> Any:
        return self._refuse if name in self._writing else getattr(self._service, name)

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise refusal(self._holder)


def guard(kind: str, service: T, holder: str | None) -> T:
    """The service as it is, or guarded where another studio holds the workspace."""
    return service if holder is None else cast(T, Guarded(service, WRITING[kind], holder))
