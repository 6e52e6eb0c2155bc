"""What `train` and `runs resume` say of a run that ran out of memory: what would fit, in one line.

Owns wiring the doctor for a command that has no studio around it. Used by `studio/cli.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from studio.services.memory_doctor import Diagnosis
    from studio.services.summary import RunSummary


def diagnose(workspace: Path, run: RunSummary) -> Diagnosis | None:
    """None for a run that ended otherwise. The first time for a model it takes seconds."""
    from studio.core.errors import StudioError
    from studio.services.memory import MemoryService
    from studio.services.memory_doctor import MemoryDoctor
    from studio.services.settings import Settings
    from studio.services.studio import build_parts
    from studio.services.supervisor import Supervisor

    if not isinstance(run.error, dict) or not run.error.get("memory"):
        return None
    parts = build_parts(Settings(workspace=workspace))
    memory = MemoryService(workspace, parts.models, parts.machine)
    try:
        return MemoryDoctor(parts, memory, Supervisor(parts)).diagnose(run.id)
    except StudioError:  # the run's own error is told all the same
        return None
    finally:
        memory.close()


def advice(found: Diagnosis) -> str:
    """One line: what would fit, and what to add to the command for the best of it."""
    from studio.core.rescue import value_text
    from studio.services.memory_doctor import advice_line

    line = advice_line(found)
    if not found.options:
        return line
    best = found.options[0].values
    added = [f"--set {path}={value_text(value)}" for path, value in best.items()]
    added += [f"--warm-start {found.run_id}@{found.step}"] if found.step else []
    return f"{line} For the first, train again with {' '.join(added)}"


def with_advice(record: dict[str, Any], found: Diagnosis | None) -> dict[str, Any]:
    """The command's result with the doctor's answer in its error."""
    from studio.services.memory_doctor import to_dict

    if found is None or not isinstance(record.get("error"), dict):
        return record
    told = {**to_dict(found), "advice": advice(found)}
    return {**record, "error": {**record["error"], "doctor": told}}
