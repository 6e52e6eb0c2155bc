"""One line of the table of faults: what was tried how often, what failed, what is wanted."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field


@dataclass
class Result:
    """Measured against wanted. `trials` counts what really ran, time-outs included."""

    name: str
    wanted: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)  # shown beside the trials
    skipped: str = ""  # why nothing ran; a skipped line falls short
    began: float = field(default_factory=time.monotonic, repr=False)

    def check(self, ok: bool, problem: str) -> bool:
        """Note a failure unless `ok`."""
        if not ok:
            self.failures.append(problem)
        return ok

    def count(self, fact: str, amount: int = 1) -> None:
        """Add to a figure that is shown."""
        self.facts[fact] = self.facts.get(fact, 0) + amount

    @property
    def is_met(self) -> bool:
        return not self.failures and not self.skipped and self.trials > 0

    def measured(self) -> str:
        """The cell of the table."""
        if self.skipped:
            return f"not run: {self.skipped}"
        facts = "".join(f", {amount:,} {name}" for name, amount in self.facts.items())
        return f"{self.trials:,} trials{facts}, {len(self.failures)} failures"

    def to_json(self) -> str:
        """For the process that asked; see `from_json`."""
        values = asdict(self) | {"began": time.monotonic() - self.began}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The inverse of `to_json`; `began` keeps the duration."""
        values = json.loads(text)
        values["began"] = time.monotonic() - values["began"]
        return cls(**values)

    def tell(self) -> None:
        """A line on stderr, and up to five failures with what repeats them."""
        seconds = time.monotonic() - self.began
        print(f"{self.name}: {self.measured()} ({seconds:.0f} s)", file=sys.stderr)
        for problem in self.failures[:5]:
            print(f"  failed: {problem}", file=sys.stderr)


def run_from_command_line(run: Callable[..., Result], about: str | None, *, trials: int) -> int:
    """`main` of a part that takes --trials and --seed. Returns the exit code: 0 where it is met."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    result = run(options.trials, seed=options.seed)
    result.tell()
    print(result.to_json())
    return 0 if result.is_met else 1
