"""Fifty Starts at once, posted to the page's own handler as a browser posts them.

Clicks with one request id (a page, a double click, a repeated post) are one run. Clicks of fifty
pages are fifty runs that somebody wants: they queue, and one trains at a time.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from studio.core.runs import LIVE_STATES, QUEUED
from tests.door import COOKIE, HOME, PORT
from tests.faults.site import serve
from tests.full_house import full_house
from tests.waiting import wait_until

# Gradio's own summary of its queue uses what pandas 3 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
PAGES = 50
WAIT_S = 120.0
START = "Start training"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    with serve(tmp_path_factory.mktemp("starts"), full_house) as one:
        patch.setenv("FAKE_STEPS", "1000000")  # whatever starts now trains until it is ended
        yield one
        patch.undo()


class Page:
    """What a browser knows of the page, and its Start button."""

    def __init__(self, site) -> None:
        self.address = f"http://127.0.0.1:{site.port}"
        self.headers = {
            "host": f"127.0.0.1:{PORT}", "origin": HOME,
            "cookie": f"{COOKIE}={site.house.tokens['owner']}",
        }  # fmt: skip
        config = httpx.get(f"{self.address}/config", headers=self.headers, timeout=WAIT_S).json()
        self.parts = {part["id"]: part for part in config["components"]}
        button = next(i for i, p in self.parts.items() if p["props"].get("value") == START)
        self.start = next(
            call for call in config["dependencies"] if [button, "click"] in call["targets"]
        )
        self.button = button

    def values(self, **wanted: str) -> list[object]:
        """The inputs of the handler as the page has them, some of them changed by their label."""
        props = [self.parts[i]["props"] for i in self.start["inputs"]]
        assert set(wanted) <= {part.get("label") for part in props}
        return [wanted.get(part.get("label"), part.get("value")) for part in props]

    def click(self, session: str, request: str) -> dict:
        """One click, and what the page was told in the end."""
        data = self.values(**{"Request": request, "Training data": "sample:harbor-style"})
        body = {"data": data, "fn_index": self.start["id"], "session_hash": session,
                "trigger_id": self.button, "event_data": None}  # fmt: skip
        with httpx.Client(base_url=self.address, headers=self.headers, timeout=WAIT_S) as client:
            joined = client.post("/gradio_api/queue/join", json=body)
            assert joined.status_code == 200, joined.text
            event = joined.json()["event_id"]
            with client.stream(
                "GET", "/gradio_api/queue/data", params={"session_hash": session}
            ) as lines:
                for line in lines.iter_lines():
                    told = json.loads(line.removeprefix("data:")) if line else {}
                    if told.get("msg") == "process_completed" and told["event_id"] == event:
                        return told
        raise AssertionError("the stream ended without an answer")


def click_at_once(page: Page, clicks: list[tuple[str, str]]) -> list[dict]:
    """All of them in the same instant."""
    together = threading.Barrier(len(clicks))

    def one(click: tuple[str, str]) -> dict:
        together.wait()
        return page.click(*click)

    with ThreadPoolExecutor(len(clicks)) as pool:
        return list(pool.map(one, clicks))


def new_runs(site, before: set[str]) -> list:
    return [run for run in site.house.studio.runs.list() if run.id not in before]


def test_fifty_posts_of_one_click_are_one_run(site):
    before = {run.id for run in site.house.studio.runs.list()}
    told = click_at_once(Page(site), [(f"session{n}", "one-click") for n in range(PAGES)])
    (run,) = new_runs(site, before)
    assert {one["success"] for one in told} == {True}
    assert {one["output"]["data"][0] for one in told} == {run.id}
    assert run.run_record["request_id"] == "one-click"
    # The next Start of each page is another click.
    assert len({one["output"]["data"][1] for one in told} - {"one-click"}) == PAGES


def test_fifty_pages_are_fifty_runs_of_which_one_trains(site):
    studio = site.house.studio
    before = {run.id for run in studio.runs.list()}
    told = click_at_once(Page(site), [(f"other{n}", f"click{n}") for n in range(PAGES)])
    runs = new_runs(site, before)
    assert {one["output"]["data"][0] for one in told} == {run.id for run in runs}
    assert len(runs) == PAGES == len({run.run_record["request_id"] for run in runs})

    def trains() -> list:
        return [run for run in studio.runs.list() if run.state in LIVE_STATES and run.step > 0]

    wait_until(trains, timeout_s=WAIT_S, what="one that trains")
    states = [run.state for run in studio.runs.list()]
    assert sum(state in LIVE_STATES for state in states) == 1
    assert states.count(QUEUED) >= PAGES - 1
    assert site.errors.getvalue().count("Traceback") == 0
