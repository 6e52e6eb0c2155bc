"""A process of a fork server that has imported gradio already, which costs two to four seconds.

Owns starting it and the methods of subprocess.Popen that tests.ui.conftest.Site calls.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["studio.ui.page", "tests.ui.fake_studio"])


class Forked:
    """`main()` of the fake studio with these arguments, its output in `log`."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._process = _SERVER.Process(target=_serve, args=(arguments, str(log)), daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the fake studio", timeout)
        return self._process.exitcode


def _serve(arguments: list[str], log: str) -> None:
    from tests.ui import fake_studio

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["fake_studio", *arguments]
    fake_studio.main()
