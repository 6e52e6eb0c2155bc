"""`make faults`: every line of the table, measured against wanted.

    python -m tests.faults [--short] [--only PART ...] [--results FILE [--continue]] [--write]

Two parts run at a time, each on a core of its own; those that measure times run alone at the end.
Each has a process, a temp folder and a time limit of its own: one that ends without a result, too
late, or leaves a file behind falls short. Exits non-zero if any line does. --results keeps each
line as it comes; --continue goes on with what the file lacks; --write puts the table into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.faults.parts import PARTS, Part
from tests.faults.report import Line, headline, read_lines, table, write_page
from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]
# pytest and torch keep one folder a user there on purpose.
KEPT_ON_PURPOSE = ("pytest-of-", "torchinductor_")


def measure(name: str, *, short: bool, seed: int, core: int | None) -> Result:
    """One part in a process of its own, on one core where one is given."""
    part = PARTS[name]
    pin = f"import os; os.sched_setaffinity(0, {{{core}}}); " if core is not None else ""
    code = f"{pin}from tests.faults import {part.module}; " \
           f"print({part.expression(short=short, seed=seed)}.to_json())"  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        cache, temp = Path(folder, "cache"), Path(folder, "tmp")
        cache.mkdir()
        temp.mkdir()
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(temp),
                       "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        result = _result_of(code, part, environment)
        left = [p.name for p in temp.iterdir() if not p.name.startswith(KEPT_ON_PURPOSE)]
        if not result.skipped:
            result.check(not left, f"left in the temp folder: {sorted(left)[:5]}")
    if not result.name or result.skipped:
        result.name, result.wanted = result.name or name, result.wanted or "a result"
    asked = part.trials(short=short)
    if not result.skipped:
        result.check(result.trials >= asked, f"only {result.trials} of {asked} trials ran")
    return result


def _result_of(code: str, part: Part, environment: dict[str, str]) -> Result:
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=part.limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Result("", "", skipped=f"no result within {part.limit_s} s")
    lines = out.splitlines()
    if process.returncode or not lines:
        return Result("", "", skipped=f"ended with {process.returncode}: {err[-300:]}")
    return Result.from_json(lines[-1])


class Run:
    """The parts that are to be measured, taken by two lanes; then those that need quiet."""

    def __init__(self, options: argparse.Namespace, names: list[str]) -> None:
        self.options = options
        self.lines: list[Line] = []
        self._lock = threading.Lock()
        together = [name for name in names if not PARTS[name].alone]
        self._waiting = sorted(together, key=lambda name: PARTS[name].cost(options.short))
        self._alone = [name for name in names if PARTS[name].alone]

    def all(self) -> None:
        """Measure everything."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        lanes: list[int | None] = [*cores[:2]] if len(cores) > 1 else [None]
        threads = [threading.Thread(target=self._lane, args=(core,)) for core in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in self._alone:
            self._one(name, None)

    def _lane(self, core: int | None) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                name = self._waiting.pop()  # the longest first
            self._one(name, core)

    def _one(self, name: str, core: int | None) -> None:
        began = time.monotonic()
        options = self.options
        result = measure(name, short=options.short, seed=options.seed, core=core)
        result.tell()
        line = Line(name, result, options.short, time.monotonic() - began, options.seed)
        with self._lock:
            self.lines.append(line)
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(line.to_json() + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a small sample of each part")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--results", type=Path, help="a file that keeps each line as it comes")
    parser.add_argument("--continue", dest="goes_on", action="store_true",
                        help="measure only what --results has not met yet")  # fmt: skip
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if options.goes_on and not options.results:
        parser.error("--continue needs --results")
    known = read_lines(options.results) if options.goes_on else {}
    known = {n: k for n, k in known.items() if k.short == options.short and n in PARTS}
    missing = [n for n in options.only if n not in known or not known[n].result.is_met]
    run = Run(options, missing)
    began = time.monotonic()
    run.all()
    lines = {**known, **{line.part: line for line in run.lines}}
    ordered = [lines[name] for name in PARTS if name in lines]
    text = [headline(ordered, time.monotonic() - began), "", *table(ordered)]
    print("\n".join(text))
    if options.write:
        write_page(text)
    wanted = set(PARTS) if options.goes_on else set(options.only)
    met = {line.part for line in ordered if line.result.is_met}
    return 0 if wanted <= met else 1


if __name__ == "__main__":
    raise SystemExit(main())
