"""The messages of the forty faults, as a snapshot: tests/faults/messages.md.

    python -m tests.faults.messages [--write]

Each fault of tests/faults/fault_messages/ is brought about and what the user reads is compared with
the snapshot. A message must say a cause and what to do; where a fault costs the user nothing, the
snapshot holds what can be seen instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.result import Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).with_suffix(".md")
COUNT = 40
# A remedy is an imperative: one of these begins it.
ACTION = re.compile(
    r"\b(Add|Ask|Check|Choose|Close|Delete|delete|Free|Give|Lower|Look|Make|Resume|resume|Save|See|"
    r"Set|Start|Stop|Try|Use|Unset|update|ask|Put|Split|Shorten|raise|Leave|put)\b"
)
HEAD = """# What the user reads at each fault

Written by `python -m tests.faults.messages --write`; a test compares it with what the code says.
Faults that cost the user nothing have no remedy: the table holds what can be seen.

| | fault | where | shown |
|---|---|---|---|
"""


def all_messages() -> dict[int, str]:
    """Bring about every fault, each in a folder of its own."""
    from tests.faults.fault_messages import FAULTS, materials, message_of, runs  # noqa: F401

    found = {}
    for number in sorted(FAULTS):
        with tempfile.TemporaryDirectory() as folder:
            found[number] = message_of(FAULTS[number], Path(folder))
    return found


def page(messages: dict[int, str]) -> str:
    """The snapshot."""
    from tests.faults.fault_messages import FAULTS

    rows = []
    for number, text in messages.items():
        fault, safe = FAULTS[number], text.replace("|", "\\|")
        seen = f"(no harm) {safe}" if fault.quiet else safe
        rows.append(f"| F{number} | {fault.what} | {fault.where} | {seen} |\n")
    return HEAD + "".join(rows)


def problems(messages: dict[int, str], snapshot: str) -> list[str]:
    """What is wrong with the messages."""
    from tests.faults.fault_messages import FAULTS

    missing = sorted(set(range(1, COUNT + 1)) - set(messages))
    found = [f"F{number} is not brought about" for number in missing]
    kept = dict(re.findall(r"^\| F(\d+) (\|.*\|)$", snapshot, re.MULTILINE))
    now = dict(re.findall(r"^\| F(\d+) (\|.*\|)$", page(messages), re.MULTILINE))
    for number, text in messages.items():
        if not FAULTS[number].quiet and not ACTION.search(text):
            found.append(f"F{number} does not say what to do: {text}")
        if "Traceback" in text or "object at 0x" in text or not text:
            found.append(f"F{number} is no sentence: {text}")
        if kept.get(str(number)) != now.get(str(number)):
            found.append(f"F{number} reads otherwise now: {text}")
    return found


def run(trials: int = COUNT, *, seed: int = 0) -> Result:
    """All forty; the seed changes nothing."""
    result = Result("messages of the faults", "40 of 40 with a cause and what to do, as in the "
                    "snapshot")  # fmt: skip
    messages = all_messages()
    result.trials = len(messages)
    result.failures += problems(messages, PAGE.read_text(encoding="utf-8"))
    return result


def in_a_process() -> dict[int, str]:
    """`all_messages` in a process of its own: a test process has threads, hooks and its own log."""
    done = subprocess.run(
        [sys.executable, "-c", "import json; from tests.faults import messages; "
         "print(json.dumps(messages.all_messages()))"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    return {int(n): text for n, text in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make the snapshot anew")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(page(all_messages()), encoding="utf-8")
    result = run()
    result.tell()
    return 0 if result.is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
