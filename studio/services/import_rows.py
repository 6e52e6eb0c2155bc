"""Rows of a source on their way into data.jsonl: normalised, stored, counted.

Owns the counts of an import. A row that cannot be used is noted with its
reason and never lost. Knows nothing of how rows are read. Runs in the import children.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from studio.core.errors import DatasetError
from studio.core.examples import RowProblem
from studio.core.formats import normalise
from studio.services.example_file import ExampleFile

MAX_PROBLEMS = 200
MAX_REASONS = 1000
OTHER_REASONS = "other reasons"


@dataclass
class Outcome:
    """What was counted while the examples were written."""

    rows: int = 0
    used: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, line: int | None, problem: RowProblem) -> None:
        """Count one bad row; the first MAX_PROBLEMS are kept with their line."""
        self._count(problem.reason, 1)
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append({
                "line": line, "row": self.rows, "reason": problem.reason, "remedy": problem.remedy,
            })  # fmt: skip

    def append(self, rows: int, problems: list[dict[str, Any]], reasons: dict[str, int]) -> None:
        """Add what was counted in the rows that follow; `rows` is the number of the last."""
        self.rows = rows
        self.problems += problems[: MAX_PROBLEMS - len(self.problems)]
        for reason, count in reasons.items():
            self._count(reason, count)

    def _count(self, reason: str, count: int) -> None:
        self.reasons[reason if len(self.reasons) < MAX_REASONS else OTHER_REASONS] += count


class RowWriter:
    """Takes the rows of a source in their order.

    Args:
        shape: format and mapping. max_bytes: what data.jsonl may hold; `too_big` makes the error.
    """

    def __init__(
        self,
        target: ExampleFile,
        shape: tuple[str, dict[str, str]],
        outcome: Outcome,
        max_bytes: int,
        too_big: Callable[[], DatasetError],
    ) -> None:
        self.target = target
        self.outcome = outcome
        self._format, self._mapping = shape
        self._max_bytes = max_bytes
        self._too_big = too_big

    def take(
        self, line: int | None, row: dict[str, Any] | RowProblem, *, harmless: bool = False
    ) -> None:
        """The next row or what is wrong with it; `harmless` as in core.checks.inspect_row."""
        outcome, target = self.outcome, self.target
        outcome.rows += 1
        try:
            if isinstance(row, RowProblem):
                raise row
            example = normalise(row, self._format, self._mapping, i=outcome.rows, line=line)
        except RowProblem as problem:
            outcome.note(line, problem)
            source = None if isinstance(row, RowProblem) else row
            target.left_out(outcome.rows, line, problem, source)
            return
        target.add(example, harmless=harmless)
        self.check_size()

    def check_size(self) -> None:
        """Raise the error of a file that unpacks to more than its budget."""
        if self.target.data_bytes > self._max_bytes:
            raise self._too_big()
