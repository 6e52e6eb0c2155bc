"""The table of `make faults`: its lines as JSON, as Markdown, and in docs/reliability.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " with changes" if ask("status", "--porcelain", "studio", "tests/faults") else ""
    return ask("rev-parse", "--short", "HEAD") + changed


def load() -> float:
    """How busy the machine is, over the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


@dataclass
class Line:
    """One measured part: where, when and how long."""

    part: str
    result: Result
    short: bool
    seconds: float
    seed: int
    commit: str = field(default_factory=commit)
    when: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M}")
    load: float = field(default_factory=load)

    def to_json(self) -> str:
        return json.dumps({**vars(self), "result": self.result.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Line:
        values = json.loads(text)
        return cls(**{**values, "result": Result.from_json(values["result"])})


def read_lines(file: Path | None) -> dict[str, Line]:
    """The newest line of each part in a file of results; a torn last line is passed over."""
    found: dict[str, Line] = {}
    text = file.read_text(encoding="utf-8") if file and file.exists() else ""
    for row in text.split("\n")[:-1]:
        line = Line.from_json(row)
        found[line.part] = line
    return found


def headline(lines: list[Line], wall_s: float) -> str:
    """When, at which commit, on what machine, how long."""
    if not lines:
        return "Nothing was measured."
    times = sorted({line.when for line in lines})
    when = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
    commits = ", ".join(sorted({line.commit for line in lines}))
    seeds = ", ".join(sorted({str(line.seed) for line in lines}))
    kinds = {line.short for line in lines}
    volume = {(True,): "A short sample.", (False,): "Full volumes."}.get(
        tuple(kinds), "Full volumes and short samples mixed."
    )
    busiest = max(line.load for line in lines)
    return (
        f"{when} UTC, commit {commits}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, load up to {busiest}, seed {seeds}. {volume} All parts together "
        f"{sum(line.seconds for line in lines) / 60:.1f} minutes, of this run {wall_s / 60:.1f} "
        "minutes by the clock (two parts at a time)."
    )


def table(lines: list[Line]) -> list[str]:
    """Measured against wanted, as Markdown."""
    rows = ["| what | measured | wanted | took | met |", "|---|---|---|---|---|"]
    for line in lines:
        result = line.result
        met = "yes" if result.is_met else "**no**"
        measured = result.measured().replace("|", "/").replace("\n", " ")
        if result.failures:
            first = result.failures[0].replace("|", "/").replace("\n", " ")
            measured += f"; the first: {first[:200]}"
        wanted = result.wanted.replace("|", "/")
        rows.append(f"| {result.name} | {measured} | {wanted} | {line.seconds:.0f} s | {met} |")
    return rows


def write_page(lines: list[str]) -> None:
    """Replace the table in the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(head + "\n".join([BEGIN, "", *lines, "", END]) + tail, encoding="utf-8")
