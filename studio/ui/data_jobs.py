"""Long work of the Data tab: in a thread, with progress, cancelled by a button.

Owns the jobs that run and the bar that shows one. A handler starts a job and yields the bar's
value until it is over; so the page is never held up, and a page that is closed loses only the bar.
A newer job of a kind ends the older one of the same page. Knows nothing of data sets.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.ui.header import asset

ProgressFn = Callable[[float | None, str], None]
CancelledFn = Callable[[], bool]
Work = Callable[[ProgressFn, CancelledFn], Any]

POLL_S = 0.25
IDLE = ""  # the bar's value while nothing runs


class Job(threading.Thread):
    """One piece of work. A daemon: a studio that ends does not wait for it."""

    def __init__(self, work: Work, kind: str, page: str, title: str) -> None:
        super().__init__(name=f"data-tab-{kind}", daemon=True)
        self.id = secrets.token_hex(8)
        self.kind, self.page, self.title = kind, page, title
        self.by_user = self.replaced = False
        self.stop = threading.Event()
        self._work = work
        self._told: tuple[float | None, str] = (None, "")
        self._result: list[Any] = []
        self._error: StudioError | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work(self.progress, self.stop.is_set))
        except StudioError as error:
            self._error = error

    def progress(self, share: float | None, text: str) -> None:
        self._told = (share, text)

    def outcome(self) -> Any:
        """What came of it, once it is over. Raises its StudioError."""
        if self._error is not None:
            raise self._error
        if not self._result:  # the thread's own traceback is in the log
            raise RuntimeError(f"{self.name} ended without a result")
        return self._result[0]

    def bar(self) -> str:
        """The bar's value."""
        share, text = self._told
        percent = None if share is None else round(100 * min(1.0, max(0.0, share)), 1)
        return json.dumps({"job": self.id, "title": self.title, "text": text, "percent": percent,
                           "stopping": self.stop.is_set()})  # fmt: skip


class Jobs:
    """The jobs of all pages. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def start(self, work: Work, *, kind: str, page: str | None, title: str) -> Job:
        """Run `work(progress, cancelled)` in a thread."""
        job = Job(work, kind, page or "", title)
        with self._lock:
            self._jobs = {id: old for id, old in self._jobs.items() if old.is_alive()}
            for old in self._jobs.values():
                if (old.kind, old.page) == (kind, job.page):
                    old.replaced = True
                    old.stop.set()
            self._jobs[job.id] = job
            job.start()
        return job

    def cancel(self, id: str) -> None:
        """End a job; one that is over or unknown is left alone."""
        with self._lock:
            job = self._jobs.get(id)
        if job is not None:
            job.by_user = True
            job.stop.set()


def follow(job: Job) -> Iterator[str]:
    """The bar's values until the job is over; nothing for a job that takes no time."""
    last = None
    job.join(POLL_S)
    while job.is_alive():
        told = job.bar()
        if told != last:
            yield told
            last = told
        job.join(POLL_S)


def updates_of(
    job: Job,
    running: Callable[[Any], list[Any]],
    finish: Callable[[Any], list[Any]],
    failed: Callable[[StudioError], list[Any]],
) -> Iterator[list[Any]]:
    """A handler's updates: the bar while the job runs, then what came of it. A job that was
    replaced by a newer one changes nothing more.

    At least one update is made: gradio empties the outputs of a handler that makes none.

    Args:
        running: of the bar's value. finish: of the result. failed: of its error, also where the
            user has cancelled it (`job.by_user`).
    """
    for told in follow(job):
        if not job.replaced:
            yield running(told)
    if job.replaced:
        yield running(gr.skip())
        return
    try:
        result = job.outcome()
    except StudioError as error:
        yield failed(error)
        return
    yield finish(result)


def build_bar(elem_id: str, title: str) -> gr.HTML:
    """A bar with a Cancel button; its event `cancel` carries {job}."""
    return gr.HTML(
        IDLE, html_template=asset("data_job.html").replace("@title", title),
        js_on_load=asset("data_job.js"), elem_id=elem_id, elem_classes="job-box",
    )  # fmt: skip
