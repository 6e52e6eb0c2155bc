"""Runs the checks over the stored rows of a data set, in a process with limits.

    python -m studio.services.check_again_child REQUEST.json

Owns what it leaves in the request's folder: the files of services.findings, result.json and
progress.json. Of the rows that were left out only those that dataset.json lists are known again;
all of them are counted.

REQUEST.json: {data, rows, problems, problem_reasons, name, folder, limits}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from studio.core.examples import Example, RowProblem
from studio.services.findings import Findings
from studio.services.job_child import run_child
from studio.services.progress_file import ProgressFile


def check_rows(request: dict[str, Any]) -> dict[str, Any]:
    """The `checks` of dataset.json; the files lie in the request's folder."""
    folder = Path(request["folder"])
    told = ProgressFile(folder)
    with contextlib.closing(Findings(folder)) as findings:
        with Path(request["data"]).open("rb") as file:
            for done, line in enumerate(file):
                told.tell(done / max(1, request["rows"]), f"{done:,} rows checked")
                findings.row(Example.from_dict(json.loads(line)))
        _count_left_out(findings, request)
        return {"checks": findings.finish()}


def _count_left_out(findings: Findings, request: dict[str, Any]) -> None:
    counts = dict(request["problem_reasons"])
    for problem in request["problems"]:
        reason = problem["reason"]
        counts[reason] = counts.get(reason, 1) - 1
        findings.left_out(
            problem["row"], problem["line"], RowProblem(reason, problem["remedy"]), None
        )
    for reason, count in counts.items():
        findings.count_left_out(RowProblem(reason, ""), max(0, count))


if __name__ == "__main__":
    sys.exit(run_child(sys.argv, check_rows))
