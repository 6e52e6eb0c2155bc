"""The attack matrix as a line of the table: tests/test_attack_matrix.py, its cells counted."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.faults.result import Result

FILE = Path(__file__).resolve().parents[1] / "test_attack_matrix.py"
BLOCKED, ALLOWED = "test_attack_ends_at_the_door", "test_legitimate_call_passes"
IN_THE_BROWSER = "test_token_link_on_another_site_logs_in"


class _Count:
    """A plugin that hears how each test ended."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.others: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" and report.passed:
            self.passed.append(name)
        elif report.failed or report.skipped:
            self.others.append(f"{name}: {str(report.longrepr)[-200:]}")


def run(trials: int = 72, *, seed: int = 0) -> Result:
    """60 cells that must be blocked and 12 calls that must pass, one of them in Chromium."""
    result = Result("attack matrix", "60 of 60 blocked, 12 of 12 legitimate calls allowed")
    count = _Count()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, GRADIO_TEMP_DIR=folder),  # here the server does not set it
        contextlib.redirect_stdout(io.StringIO()),
    ):
        pytest.main(
            [str(FILE), "-q", "-p", "no:cacheprovider", "-k",
             f"{BLOCKED} or {ALLOWED} or {IN_THE_BROWSER}"],
            plugins=[count],
        )  # fmt: skip
    blocked = sum(name.startswith(BLOCKED) for name in count.passed)
    allowed = sum(name.startswith((ALLOWED, IN_THE_BROWSER)) for name in count.passed)
    result.trials = len(count.passed) + len(count.others)
    result.count("blocked", blocked)
    result.count("allowed", allowed)
    result.failures += count.others
    result.check(
        (blocked, allowed) == (60, 12), f"{blocked} of 60 blocked, {allowed} of 12 allowed"
    )
    return result


if __name__ == "__main__":
    found = run()
    found.tell()
    sys.exit(0 if found.is_met else 1)
