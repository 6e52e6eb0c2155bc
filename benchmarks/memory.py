"""The estimate of memory against everything it can be held against; writes docs/memory.md.

    make memory                      all parts (about 40 minutes on two cores)
    make memory ARGS=--resume        goes on where the last one was broken off
    make memory ARGS="--only published rss"
    make memory ARGS="--only none"   the page from the recorded results alone

Parts: `exact` (countable terms, to the byte), `steps` (what a step holds, on real tensors),
`published` (measurements of others), `rss` (runs on this CPU). Results are kept in
benchmarks/results/memory.json as they come. Ends with 1 where a number is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory_page import summary, write_page
from benchmarks.memory_rss import RESULTS, RUNS, in_its_own_process, predict, this_machine
from studio.backend.loading import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent


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


def rss(done: list[dict[str, Any]], keep: Keep) -> list[dict[str, Any]]:
    """Peak resident memory of runs on this CPU, in bytes; what is `done` is not run again, but
    predicted again. Rows without the peaks by phase are of an earlier state of the trainer: they
    stay until they are run anew."""
    known = {row["what"]: row for row in done}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, run in enumerate(RUNS):
            row = known.get(str(run))
            if row is None or "measured_phases" not in row:
                row = in_its_own_process(number, folder)
            known.pop(str(run), None)
            rows.append({**row, "fitted": run.fitted})
            keep([*rows, *known.values()])
            print(f"      {run}: {row['measured'] / 2**30:.2f} GiB", flush=True)
        said = predict(RUNS, folder)
    return [{**row, **said[row["what"]]} for row in rows]


Keep = Callable[[list[dict[str, Any]]], None]
PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "exact": exact, "steps": steps, "published": published,
}  # fmt: skip
NAMES = (*PARTS, "rss")


def _recorded() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def _record(kept: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def run_part(name: str, kept: dict[str, Any], *, resume: bool) -> None:
    """Put the results of a part into `kept` and its file; `resume` takes those that are there."""
    begun = time.perf_counter()

    def keep(rows: list[dict[str, Any]]) -> None:
        # Another part may be measured beside this one; its rows stay as they are by now.
        others = _recorded()
        kept.clear()
        kept.update({**others, name: rows})
        _record(kept)

    if name == "rss":
        keep(rss(kept.get(name, []) if resume else [], keep))
    elif not (resume and kept.get(name)):
        keep(PARTS[name]())
    print(f"      {name}: {time.perf_counter() - begun:.0f} s", flush=True)


def main() -> int:
    """Run the parts, keep their results, write the page, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[*NAMES, "none"], default=list(NAMES))
    parser.add_argument("--resume", action="store_true", help="take results that are there")
    options = parser.parse_args()
    quiet_libraries()
    kept = _recorded()
    wanted = [name for name in NAMES if name in options.only]
    if wanted and not options.resume:
        kept = {name: rows for name, rows in kept.items() if name not in wanted}
    if wanted:
        kept["machine"] = this_machine()
        _record(kept)
    for name in wanted:
        run_part(name, kept, resume=options.resume)
    write_page(ROOT, kept)
    lines = summary(kept)
    for line in lines:
        print(f"{'ok  ' if line.is_met else 'MISS'}  {line.what}: {line.figure} ({line.wanted})")
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
