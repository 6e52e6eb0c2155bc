"""`make faults`: every line of the table, measured against wanted.

    python -m tests.faults [--short] [--write]

Each part runs in a process of its own with a time limit; one that ends without a result, or too
late, falls short. Exits non-zero if any line does. --write puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

# Expression that gives a Result, limit in seconds. {n} is the number of trials.
PARTS: dict[str, tuple[str, int]] = {
    "store": ("kill_loop.run({n}, seed={seed})", 1200),
    "trainer": ("kill_trainer.run({n}, seed={seed})", 3600),
    "power": ("power_loss.run()", 1200),
    "calls": ("io_faults.run()", 1200),
    "strace": ("io_faults.run_strace()", 1800),
    "histories": ("histories.run({n})", 1800),
}
FULL = {"store": 1000, "trainer": 300, "histories": 500}
SHORT = {"store": 60, "trainer": 12, "histories": 100}


def measure(name: str, trials: int, seed: int) -> Result:
    """One part in a process of its own."""
    expression, limit_s = PARTS[name]
    module = expression.partition(".")[0]
    code = f"from tests.faults import {module}; " \
           f"print({expression.format(n=trials, seed=seed)}.to_json())"  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1",
                       "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=limit_s,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Result(name, "", skipped=f"no result within {limit_s} s")
    if done.returncode:
        return Result(name, "", skipped=f"ended with {done.returncode}: {done.stderr[-300:]}")
    return Result.from_json(done.stdout.splitlines()[-1])


def table(results: list[Result]) -> list[str]:
    """Measured against wanted, as Markdown."""
    rows = ["| what | measured | wanted | met |", "|---|---|---|---|"]
    for result in results:
        met = "yes" if result.is_met else "**no**"
        measured = result.measured().replace("|", "/").replace("\n", " ")
        rows.append(f"| {result.name} | {measured} | {result.wanted} | {met} |")
    return rows


def origin() -> str:
    """When, at which commit and where the table was measured."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " with changes" if ask("status", "--porcelain", "studio", "tests/faults") else ""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {ask('rev-parse', '--short', 'HEAD')}"
        f"{changed}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {load} at the end"
    )


def write_page(lines: list[str]) -> None:
    """Replace the table in the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(head + "\n".join([BEGIN, "", *lines, "", END]) + tail, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a twentieth of the volume")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    volumes, results = (SHORT if options.short else FULL), []
    for name in options.only:
        results.append(measure(name, volumes.get(name, 0), options.seed))
        ran, asked = results[-1].trials, volumes.get(name, 0)
        results[-1].check(ran >= asked, f"only {ran} of {asked} trials ran")
        results[-1].tell()
    full = ", ".join(f"{count:,} for {name}" for name, count in FULL.items())
    volume = f"A short sample; the full volumes are {full}." if options.short else "Full volumes."
    lines = [f"{origin()}, seed {options.seed}. {volume}", "", *table(results)]
    print("\n".join(lines))
    if options.write:
        write_page(lines)
    return 0 if all(result.is_met for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
