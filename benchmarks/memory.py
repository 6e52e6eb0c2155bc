"""The estimate of memory against everything it can be held against; writes docs/memory.md.

    make memory                      all parts (about 20 minutes on two cores)
    make memory ARGS="--only published rss"
    make memory ARGS="--only none"   the page from the recorded results alone

Parts: `exact` (countable terms, to the byte), `steps` (what a step holds, on real tensors),
`published` (measurements of others), `rss` (runs on this CPU). Results are kept in
benchmarks/results/memory.json, a part at a time. Ends with 1 where a number is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory_page import summary, write_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"


def exact() -> list[dict[str, Any]]:
    """Countable numbers of eight architectures."""
    from tests.memory.exact import compare_trained, compare_weights
    from tests.memory.models import ALL

    found = []
    for kind in ALL:
        rows = [*compare_weights(kind), *compare_trained(kind)]
        wrong = [row.what for row in rows if not row.is_exact]
        found.append({"kind": kind, "numbers": len(rows), "wrong": wrong})
    return found


def steps() -> list[dict[str, Any]]:
    """What a step holds, predicted and real."""
    from tests.memory.steps import compare_all

    return [
        {"what": str(combination), "predicted": predicted, "real": real}
        for combination, predicted, real in compare_all()
    ]


def published() -> list[dict[str, Any]]:
    """Measurements of others, in 10^9 bytes."""
    from tests.memory.published import predicted_gb, rows

    return [
        {"model": row.model, "method": row.method, "batch": row.batch, "tokens": row.tokens,
         "measured": row.peak_gb, "predicted": round(predicted_gb(row), 2), "source": row.source,
         "note": row.note}
        for row in rows()
    ]  # fmt: skip


def rss() -> list[dict[str, Any]]:
    """Peak resident memory of runs on this CPU, in bytes."""
    from benchmarks.memory_rss import RUNS, describe

    found = []
    for number, run in enumerate(RUNS):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory_rss", "--one", str(number)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        record = json.loads(done.stdout.splitlines()[-1])
        found.append({"what": describe(run), "predicted": record["said"]["total"]["expected"],
                      "measured": record["high_water_bytes"]})  # fmt: skip
    return found


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "exact": exact, "steps": steps, "published": published, "rss": rss,
}  # fmt: skip


def main() -> int:
    """Run the parts, keep their results, write the page, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "none"], default=list(PARTS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in options.only:
        if name in PARTS:
            kept[name] = PARTS[name]()
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_page(ROOT, kept)
    lines = summary(kept)
    for line in lines:
        print(f"{'ok  ' if line.is_met else 'MISS'}  {line.what}: {line.figure} ({line.wanted})")
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
