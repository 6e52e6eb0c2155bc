"""Start, stop and kill a thousand times: what is left behind?

    python -m tests.faults.hygiene --trials 1000

Each cycle starts a trainer without torch (tests/fakes/trainer.py) as the launcher starts the real
one, and ends it: by a command, at its own end, by SIGKILL, after its page was killed, or hanging
before it began. One cycle in twenty starts a child server instead and stops it, kills it, or kills
the process that started it. This process adopts what loses its parent, so nothing can hide: after
each cycle no process, zombie, held lock or open descriptor may be there that was not before, the
status must be the truth, and at the end no file in the temp folder or the workspace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from studio.core.config_io import build_config
from studio.core.errors import StudioError
from studio.core.runs import LIVE_STATES, RunPaths
from studio.hardware.platforms import is_locked
from studio.services.child import ChildServer
from studio.services.launcher import LocalLauncher, recorded_process
from studio.services.supervisor import Supervisor
from tests.fakes.parts import build_parts
from tests.faults.result import Result, run_from_command_line
from tests.waiting import wait_until

FAKE_TRAINER = Path(__file__).parents[1] / "fakes" / "trainer.py"
CYCLE_LIMIT_S, ADOPT_LIMIT_S = 60.0, 15.0
SERVER_EVERY, REAL_SERVER_EVERY = 20, 50
LISTED_RUNS = 10  # older ones are deleted, so that a cycle costs the same at the end
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
ECHO, REAL = "tests.services.echo_child", "studio.backend.inspector"


def adopt_orphans() -> None:
    """Linux: whoever loses its parent below us becomes our child instead of init's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


class Page:
    """A workspace and a supervisor whose rounds are driven by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = build_parts(root)
        self.supervisor = self.another()
        self.runs: list[str] = []

    def another(self) -> Supervisor:
        """A page with empty memory on the same workspace."""
        launcher = LocalLauncher((sys.executable, str(FAKE_TRAINER)))
        return Supervisor(self.parts, launcher=launcher, stop_grace_s=0.2)

    def begin(self, *, steps: int = 10**6, mode: str = "") -> RunPaths:
        os.environ.update(FAKE_STEPS=str(steps), FAKE_STEP_S="0.002", FAKE_MODE=mode)
        config = build_config({"data": {"path": "tiny.jsonl"}})
        self.runs.append(self.supervisor.start(config, request_id=os.urandom(6).hex()))
        return self.parts.runs.paths(self.runs[-1])

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Rounds of the supervisor until something holds."""

        def one_round() -> object:
            self.supervisor.tick()
            return reached()

        wait_until(one_round, timeout_s=CYCLE_LIMIT_S, what=what)

    def until_step(self, paths: RunPaths) -> None:
        self.until(lambda: self.state(paths) == "running" and self.parts.runs.get(paths.id).step,
                   "the first step")  # fmt: skip

    def state(self, paths: RunPaths) -> str:
        return self.parts.runs.get(paths.id).state

    def until_ended(self, paths: RunPaths) -> None:
        self.until(
            lambda: (
                self.state(paths) not in (*LIVE_STATES, "queued") and not self.supervisor._children
            ),
            "the end",
        )

    def forget_old(self) -> None:
        while len(self.runs) > LISTED_RUNS:
            self.parts.runs.delete(self.runs.pop(0))
        shutil.rmtree(self.parts.runs.trash, ignore_errors=True)
        self.parts.runs.trash.mkdir(mode=0o700)


# -- how a cycle goes: each returns the state that must be shown -----------------------------------


def by_command(page: Page, draw: random.Random) -> tuple[RunPaths, str]:
    paths, verb = page.begin(), draw.choice(["stop", "pause", "stop_now"])
    if draw.random() < 0.5:
        page.until_step(paths)
    else:
        page.supervisor.tick()
    page.supervisor.command(paths.id, verb)
    return paths, "paused" if verb == "pause" else "stopped"


def to_its_end(page: Page, draw: random.Random) -> tuple[RunPaths, str]:
    return page.begin(steps=draw.randint(1, 5)), "done"


def killed(page: Page, draw: random.Random) -> tuple[RunPaths, str]:
    paths = page.begin()
    page.until_step(paths)
    time.sleep(draw.uniform(0.0, 0.01))
    if identity := recorded_process(paths):
        os.kill(identity.pid, signal.SIGKILL)
    return paths, "interrupted"


def page_killed(page: Page, draw: random.Random) -> tuple[RunPaths, str]:
    """The page that launched it gets SIGKILL; another finds the run and ends it."""
    paths = page.begin()
    pid = os.fork()
    if not pid:
        try:
            while True:
                page.supervisor.tick()
                time.sleep(0.005)
        finally:
            os._exit(9)
    wait_until(lambda: page.state(paths) == "running", timeout_s=CYCLE_LIMIT_S, what="the trainer")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    page.supervisor = page.another()
    page.supervisor.tick()
    active = page.supervisor.active()
    if active is None or active.id != paths.id:
        raise AssertionError("the new page does not see the run")
    verb = draw.choice(["stop", "stop_now"])
    page.supervisor.command(paths.id, verb)
    return paths, "stopped"


def hangs(page: Page, draw: random.Random) -> tuple[RunPaths, str]:
    """It never takes its lock; only a signal ends it."""
    paths = page.begin(mode="hang")
    page.supervisor.tick()
    time.sleep(draw.uniform(0.0, 0.2))
    page.supervisor.command(paths.id, "stop")
    return paths, "stopped"


WAYS = (by_command, by_command, to_its_end, killed, killed, page_killed, hangs)


def server_cycle(module: str, folder: Path, draw: random.Random) -> None:
    """A child server: stopped, killed, or left by a parent that was killed."""
    server = ChildServer(module, name="child", folder=folder)
    how = draw.choice(["stop", "kill", "orphan"])
    if how != "orphan":
        server.ensure()
        if how == "kill":
            os.kill(server.pid or 0, signal.SIGKILL)
        server.stop()
        return
    pid = os.fork()
    if not pid:
        try:
            server.ensure()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(9)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        raise AssertionError("the child server did not start")


# -- what may not be left --------------------------------------------------------------------------


def reap_adopted(mine: set[int]) -> list[str]:
    """Wait until no process is below us but `mine`; adopted ones are reaped as init would."""
    deadline = time.monotonic() + ADOPT_LIMIT_S
    while True:
        left = [p for p in psutil.Process().children(recursive=True) if p.pid not in mine]
        for process in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        if not left:
            return []
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return [f"process {p.pid} is left" for p in left]
        time.sleep(0.01)


def zombies(page: Page) -> list[str]:
    """Trainers that the supervisor let go without reaping them."""
    launched = {child.handle.pid for child in page.supervisor._children.values()}
    return [f"zombie {p.pid}" for p in psutil.Process().children()
            if p.status() == psutil.STATUS_ZOMBIE and p.pid not in launched]  # fmt: skip


def open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def held_locks(root: Path) -> list[str]:
    return [f"lock {p.relative_to(root)} is held" for p in root.rglob("*.lock") if is_locked(p)]


def strays(root: Path) -> list[str]:
    """Half-written files and staging folders in the workspace."""
    found = [p for p in root.rglob(".*") if p.suffix == ".tmp" or p.name.startswith(".staging")]
    found += (root / "tmp").iterdir()
    return [f"{p.relative_to(root)} is left" for p in found]


def one_cycle(
    page: Page, way: Callable[..., tuple[RunPaths, str]], draw: random.Random
) -> list[str]:
    found: list[str] = []
    paths, wanted = way(page, draw)
    page.until_ended(paths)
    if way is not page_killed:  # there init is the parent, and here we stand in for it
        found += zombies(page)
    if (shown := page.state(paths)) != wanted:
        found.append(f"shown as {shown}, is {wanted}")
    page.supervisor.tick()
    return found


def run(cycles: int, *, seed: int = 0) -> Result:
    """`cycles` cycles in one workspace."""
    result = Result("starts, stops and kills", "0 orphans, zombies, held locks, open descriptors "
                    "or temp files left; every status true")  # fmt: skip
    draw = random.Random(seed)
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder, "workspace"))
        temp_before, descriptors = set(os.listdir(tempfile.gettempdir())), 0
        for cycle in range(cycles):
            mine, found = {p.pid for p in psutil.Process().children(recursive=True)}, []
            real = cycle % REAL_SERVER_EVERY == 1
            way = WAYS[cycle % len(WAYS)]
            name = "server" if real or cycle % SERVER_EVERY == 1 else way.__name__
            try:
                if name == "server":
                    server_cycle(REAL if real else ECHO, page.root / "run", draw)
                else:
                    found += one_cycle(page, way, draw)
            except (AssertionError, StudioError) as error:
                found.append(str(error))
            found += reap_adopted(mine)
            found += held_locks(page.root)
            page.forget_old()
            if cycle < len(WAYS):
                descriptors = max(descriptors, open_descriptors())  # what stays open on purpose
            elif open_descriptors() > descriptors:
                found.append(f"{open_descriptors() - descriptors} more descriptors are open")
            result.trials += 1
            result.count(name.replace("_", " "))
            result.check(not found, f"seed {seed}, cycle {cycle}, {name}: {'; '.join(found)}")
        result.check(not (left := strays(page.root)), f"in the workspace: {left[:5]}")
        new = set(os.listdir(tempfile.gettempdir())) - temp_before
        result.check(not new, f"in the temp folder: {sorted(new)[:5]}")
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=1000)


if __name__ == "__main__":
    raise SystemExit(main())
