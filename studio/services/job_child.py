"""What every limited child of services.import_process does around its work.

Owns reading REQUEST.json, the limits that a child sets on itself, and result.json in the request's
folder: the facts of the work, or the error that ended it. A file that eats memory, time or disk
ends the child and nothing else. Knows nothing of the work.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.core.errors import DatasetError, StudioError
from studio.services.source_bytes import file_error

ADDRESS_ROOM_BYTES = 2 * 2**30

Work = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Words:
    """How the errors of a work are said.

    Attributes:
        doing: what needs more memory than it has. smaller: what to do then.
        refused: what the disk refuses, where that is not reading the file.
    """

    doing: str = "reading it"
    smaller: str = "Split the file or its longest rows"
    refused: str | None = None


READING = Words()


class ReportedError(Exception):
    """Another child of the same work left this `error` in its result."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("what"))
        self.error = error


def set_limits(limits: dict[str, int]) -> None:
    """Limit this process. Windows has no such limits: there the parent alone watches.

    Memory is limited by what is allocated (RLIMIT_DATA); the address space gets room on top for
    libraries and thread stacks, which reserve far more than they use.
    """
    if os.name == "nt":
        return
    import resource  # noqa: PLC0415 - POSIX only

    for kind, amount in (
        (resource.RLIMIT_DATA, limits["memory_bytes"]),
        (resource.RLIMIT_AS, limits["memory_bytes"] + ADDRESS_ROOM_BYTES),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        soft = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS; parent watches
            resource.setrlimit(kind, (soft, hard))


def run_child(argv: list[str], work: Work, words: Words = READING, *, limited: bool = True) -> int:
    """The main function of a child.

    Args:
        limited: set the limits of the request; else the process has them from its parent.
    """
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    if limited:
        set_limits(request["limits"])
    result = run(request, work, words)
    target = Path(request["folder"]) / "result.json"
    # A name out of the file may hold half a character; nothing of it may end the child here.
    target.write_bytes(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
    return 0


def run(request: dict[str, Any], work: Work, words: Words = READING) -> dict[str, Any]:
    """Do the request; every expected failure becomes an `error` in the result."""
    name = request["name"]
    try:
        return {"facts": work(request)}
    except ReportedError as error:
        return {"error": error.error}
    except StudioError as error:
        return {"error": {**error.to_dict(), "columns": getattr(error, "columns", None)}}
    except MemoryError:
        limit_gib = request["limits"]["memory_bytes"] / 2**30
        failed = file_error(
            name, f"{words.doing} needs more than {limit_gib:.1f} GiB of memory",
            remedy=words.smaller,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        failed = file_error(
            name, f"a character is broken near byte {error.start} of a block ({error.encoding})",
            remedy="Save the file as UTF-8",
        )  # fmt: skip
    except RecursionError:
        failed = file_error(name, "it is nested too deeply", remedy="Write flat rows")
    except OSError as error:
        failed = _disk_error(name, error, words)
    return {"error": failed.to_dict()}


def _disk_error(name: str, error: OSError, words: Words) -> DatasetError:
    if words.refused is not None:
        return file_error(
            name, f"{words.refused}: {error.strerror or error}",
            remedy="Check the free space of the workspace's disk",
        )  # fmt: skip
    if error.errno == errno.EFBIG:
        return file_error(name, "its rows are too many to store", remedy="Split the file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return file_error(
            name, "no space is left on the workspace's disk",
            remedy="Free some space or choose another --workspace",
        )  # fmt: skip
    return file_error(name, f"it cannot be read: {error.strerror or error}")
