"""The real trainer with only so much memory left once it trains: the system refuses more.

    python -m tests.ui.limited_trainer ROOM_MIB RUN_DIR

From the second step on the process may take ROOM_MIB more than it holds then (RLIMIT_DATA, as
`ulimit -d` sets it), so the outcome does not depend on what torch takes on this machine. A later
run of the same workspace gets the same limit as the first.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from pathlib import Path

import psutil

from studio.backend import trainer
from studio.core.runs import read_json
from studio.hardware.platforms import write_json


def limit(run: Path, room_bytes: int) -> None:
    """Wait for the first step, then leave that much room. Linux."""
    while (read_json(run / "state.json") or {}).get("step", 0) < 1:
        time.sleep(0.01)
    kept = run.parents[1] / "limit.json"
    most = (read_json(kept) or {}).get("bytes")
    if most is None:
        most = psutil.Process().memory_info().data + room_bytes
        write_json(kept, {"bytes": most})
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> int:
    room_mib, folder = sys.argv[1:]
    arguments = (Path(folder), int(room_mib) << 20)
    threading.Thread(target=limit, args=arguments, name="limit", daemon=True).start()
    return trainer.main([folder])


if __name__ == "__main__":
    sys.exit(main())
