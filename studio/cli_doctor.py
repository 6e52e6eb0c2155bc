"""`python -m studio doctor`: prints the machine's report. Mounted by `studio/cli.py`."""

from __future__ import annotations

import json
from pathlib import Path

from studio.bootstrap import ROOT, read_pins, requirement_files
from studio.hardware import doctor


def run_doctor(workspace: Path, *, as_json: bool) -> str:
    """The report as text or as one JSON object {"checks": [...], "ok": bool}."""
    checks = doctor.report(workspace, pins=read_pins(requirement_files(ROOT, "")))
    if as_json:
        fine = all(check.status != doctor.WARN for check in checks)
        return json.dumps({"ok": fine, "checks": [check.to_dict() for check in checks]})
    return doctor.render(checks)
