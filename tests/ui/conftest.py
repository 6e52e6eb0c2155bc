"""A browser and served pages for the tests in this folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser_setup import find_chromium
from tests.conftest import ROOT
from tests.ui.forked import Forked
from tests.waiting import wait_until

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 90_000  # a loaded machine is ten times slower than a quiet one


@dataclass
class Site:
    """A studio in a process of its own."""

    command: list[str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | Forked | None = None

    def launch(self) -> subprocess.Popen[bytes] | Forked:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def start(self) -> Site:
        """Start it and wait until it answers."""
        self.process = self.launch()
        wait_until(self.answers, timeout_s=120, what=f"{self.url} to answer")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the studio ended: {self.log.read_text()[-2000:]}")
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def json(self, path: str) -> Any:
        """A JSON answer of the studio."""
        return httpx.get(f"{self.url}{path}", timeout=30).json()


class FakeSite(Site):
    """`command`: the arguments of tests.ui.fake_studio."""

    def launch(self) -> Forked:
        return Forked(self.command, self.log)


@dataclass
class Watched:
    """A browser page with what went wrong on it and whom it asked."""

    page: Any
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    asked: deque[str] = field(default_factory=lambda: deque(maxlen=40))

    def evidence(self) -> str:
        """What a person would look at after a failure: the page's words and its last requests."""
        from playwright.sync_api import Error as PlaywrightError

        try:
            words = self.page.inner_text("body", timeout=5000)
        except PlaywrightError as error:  # the page itself may be what failed
            words = f"no words of the page: {error}"
        return "\n".join([words[:3000], *self.problems[:10], *self.asked])

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def open(self, url: str) -> None:
        """Load the page and wait until it is alive."""
        self.page.goto(url)
        self.page.get_by_role("tab", name="Runs", exact=True).wait_for()

    def reload(self) -> None:
        """Load the page again. What the old page says of the requests that this breaks off is no
        problem of the studio's."""
        before = len(self.problems)
        self.page.reload()
        broken_off = ("AbortError", "Unexpected error Connection errored out")
        self.problems[before:] = [
            said for said in self.problems[before:] if not said.startswith(broken_off)
        ]

    def text(self, testid: str) -> str:
        return str(self.page.get_by_test_id(testid).inner_text())

    def wait_state(self, state: str, timeout_s: float = 90) -> None:
        wait_until(lambda: self.text("run-state") == state, timeout_s=timeout_s, what=state)

    def points(self) -> int:
        """Loss points in the chart."""
        return int(
            self.page.evaluate("document.querySelector('[data-points]')?.dataset.points || 0")
        )


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium a module: Playwright's event loop runs as long as it lives, and no other test
    could call asyncio.run meanwhile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def open_page(browser: Any, **options: Any) -> Iterator[Watched]:
    """A page with an empty profile that notes console errors, refusals and hosts."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    watched = Watched(context.new_page())
    watched.page.set_default_timeout(WAIT_MS)
    problems = watched.problems
    watched.page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    watched.page.on("pageerror", lambda error: problems.append(str(error)))

    def note(request: Any) -> None:
        watched.hosts.add(request.url.split("/")[2])
        if request.resource_type in ("fetch", "xhr", "eventsource", "document"):
            watched.asked.append(f"{request.method} {request.url.split('/', 3)[-1][:120]}")

    watched.page.on("request", note)
    watched.page.on(
        "response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None
    )
    yield watched
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, Any, Any]:
    """A failed browser test shows what stood in the page: a report from elsewhere is all we get."""
    report = yield
    watched = getattr(item, "funcargs", {}).get("watched")
    if watched is not None and report.when == "call" and report.failed:
        report.sections.append(("the page", watched.evidence()))
    return report


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    with open_page(browser) as page:
        yield page


@contextlib.contextmanager
def serve_fake(folder: Path, step_s: str, holder: str = "") -> Iterator[Site]:
    """The page on a fake studio whose training takes `step_s` a step.

    With a `holder` it is the second studio on its workspace.
    """
    port = free_port()
    arguments = [str(folder / "w"), str(port), step_s, holder]
    site = FakeSite(arguments, f"http://127.0.0.1:{port}", folder / f"fake-{port}.log")
    try:
        yield site.start()
    finally:
        site.stop()


@pytest.fixture
def fake_site(tmp_path: Path) -> Iterator[Site]:
    """A training of 30 steps takes 12 s."""
    with serve_fake(tmp_path, "0.4") as site:
        yield site


@pytest.fixture
def slow_site(tmp_path: Path) -> Iterator[Site]:
    """A training that is still going when a slow machine comes to the point."""
    with serve_fake(tmp_path, "4") as site:
        yield site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the studio that all tests of a module share; its workspace is `w` in it."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    """A studio for all tests of a module, which lay run folders into its workspace."""
    with serve_fake(folder, "0.4") as started:
        yield started


@contextlib.contextmanager
def serve_real(folder: Path, *program: str) -> Iterator[Site]:
    """The studio as a user starts it, on an empty workspace; `program` starts it as app.py."""
    port = free_port()
    command = [
        sys.executable, *program, "--no-browser", "--port", str(port),
        "--workspace", str(folder / "w"),
    ]  # fmt: skip
    site = Site(command, f"http://127.0.0.1:{port}", folder / "studio.log")
    try:
        yield site.start()
    finally:
        site.stop()


@pytest.fixture
def real_site(tmp_path: Path) -> Iterator[Site]:
    """The studio as a user starts it, on an empty workspace."""
    with serve_real(tmp_path, "app.py") as site:
        yield site
