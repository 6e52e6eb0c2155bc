"""The parts of `make faults`: what to call, how many trials in full and in the short sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One line of the table. `call` gives a Result; {n} is the trials, {seed} the seed."""

    call: str
    full: int  # trials that must run; with 0 the part has a fixed volume of its own
    short: int
    full_s: int  # about how long on one quiet core; the longest begin first
    limit_s: int
    alone: bool = False  # it measures times: nothing else may run beside it

    @property
    def module(self) -> str:
        return self.call.partition(".")[0]

    def trials(self, *, short: bool) -> int:
        return self.short if short else self.full

    def expression(self, *, short: bool, seed: int) -> str:
        return self.call.format(n=self.trials(short=short), seed=seed)

    def cost(self, short: bool) -> float:
        return self.full_s * (self.short / self.full if short and self.full else 1.0)


PARTS: dict[str, Part] = {
    "store": Part("kill_loop.run({n}, seed={seed})", 1000, 60, 45, 600),
    "trainer": Part("kill_trainer.run({n}, seed={seed})", 300, 10, 950, 2700),
    "fake": Part("kill_fake.run({n}, seed={seed})", 1000, 60, 60, 600),
    "power": Part("power_loss.run(seed={seed})", 0, 0, 12, 600),
    "calls": Part("io_faults.run()", 200, 200, 3, 600),
    "strace": Part("io_faults.run_strace()", 0, 0, 25, 900),
    "trainer_disk": Part("trainer_disk.run({n}, seed={seed})", 60, 6, 120, 1200),
    "histories": Part("histories.run({n})", 500, 40, 150, 1500),
    "hygiene": Part("hygiene.run({n}, seed={seed})", 1000, 40, 200, 900),
    "nan": Part("nan_trials.run({n}, seed={seed})", 100, 6, 120, 1200),
    "stop": Part("stop_trials.run({n}, seed={seed})", 100, 6, 500, 1800, alone=True),
    "door": Part("hostile_calls.run({n}, seed={seed})", 2000, 200, 120, 1200),
    "schema": Part("schema_calls.run({n}, seed={seed})", 200, 20, 120, 900),
    "matrix": Part("attack_matrix.run({n}, seed={seed})", 72, 72, 30, 600),
    "data": Part("hostile_data.run({n}, seed={seed})", 1000, 30, 500, 2400),
    "golden": Part("hostile_data.golden({n}, seed={seed})", 100, 100, 120, 1200),
    "adapters": Part("hostile_adapters.run({n}, seed={seed})", 200, 20, 60, 900),
    "repos": Part("hostile_repos.run({n}, seed={seed})", 25, 25, 60, 900),
    "templates": Part("hostile_templates.run({n}, seed={seed})", 30, 30, 60, 900),
    "messages": Part("messages.run({n}, seed={seed})", 40, 40, 20, 300),
    "outbound": Part("outbound.run({n}, seed={seed})", 1, 1, 60, 900),
    "viewers": Part("viewers.run({n}, seed={seed})", 6, 1, 240, 1200, alone=True),
}
