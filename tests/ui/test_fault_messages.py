"""Every fault is told in the page: what happened, and what to do now. On folders as faults leave
them, in a real browser."""

from __future__ import annotations

import errno
import json
import os
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from studio.backend.failures import error_record, out_of_memory, paused_by
from studio.core.config import RunConfig
from studio.core.endings import Evidence, OomKills, explain
from studio.core.errors import DivergedError, StoreError
from studio.core.runs import RunPaths
from studio.hardware.platforms import held_lock, store_error
from studio.services.commands import write_command
from studio.services.read_only import holder_words
from studio.tokens import TokenStore
from tests.ui.conftest import Site, Watched, open_page, serve_fake
from tests.ui.fake_runs import finish, make_run, write_step
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
HOLDER = holder_words({"pid": 4711, "host": "attic", "url": "http://127.0.0.1:7860",
                       "since": "2026-11-22T01:00:00+00:00"})  # fmt: skip


@pytest.fixture(scope="module")
def watched(browser: Any, site: Site) -> Iterator[Watched]:
    """One page for all faults of the first studio."""
    with open_page(browser) as page:
        page.open(site.url)
        page.page.set_default_timeout(20_000)
        yield page


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> RunPaths:
    """A run of three steps, under a name of its own."""
    name = re.sub(r"\W+", " ", request.node.name)
    paths = make_run(folder / "w" / "runs", RunConfig(), name)
    for step in range(4):
        write_step(paths, step, 9)
    return paths


def end(paths: RunPaths, state: str, error: Any = None, **more: Any) -> None:
    finish(paths, 3, 9, state)
    record = json.loads(paths.exit_json.read_text())
    record |= {"error": error, "verdict": (error or {}).get("text", ""), **more}
    paths.exit_json.write_text(json.dumps(record))


def choose(watched: Watched, paths: RunPaths) -> Any:
    """Choose the run in the Runs tab; its panel."""
    page = watched.page
    watched.tab("Runs")
    page.get_by_role("button", name="Refresh", exact=True).click()
    page.locator(f"button[data-run='{paths.id}']").click()
    panel = page.locator("#run-panel")
    panel.locator("code", has_text=paths.id).wait_for()
    return panel


def told(watched: Watched, paths: RunPaths, *words: str) -> None:
    """The words stand in the Runs tab and, once opened, in the live view, and are visible."""
    panel = choose(watched, paths)
    for word in words:
        panel.get_by_text(word).first.wait_for()
    panel.get_by_role("button", name="Open", exact=True).click()
    live = watched.page.locator("#live")
    for word in words:
        live.get_by_text(word).first.wait_for()


def allocator_error() -> RuntimeError:
    return RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 24 GiB in all.")


def of_cuda_memory(paths: RunPaths) -> tuple[str, ...]:
    config = RunConfig.model_validate({"runtime": {"device": "cuda:0"}})
    error = out_of_memory(allocator_error(), "first_step", config)
    end(paths, "failed", error_record(error, "first_step"))
    return "The GPU ran out of", "in the first step", "train.per_device_train_batch_size"


def of_host_kill(paths: RunPaths) -> tuple[str, ...]:
    seen = Evidence(phase="eval", step=3, exit_code=-9, kills_before=OomKills(2, 2),
                    kills_after=OomKills(3, 3), rss_bytes=15e9, available_bytes=1e8,
                    total_bytes=16e9)  # fmt: skip
    record = {"attempt": 1, **explain(seen).to_dict()}
    (paths.root / "vanished.json").write_text(json.dumps(record))
    return "main memory (RAM)", "in an evaluation", "Close other programs"


def of_nan(paths: RunPaths) -> tuple[str, ...]:
    error = DivergedError(
        "The loss is no longer a finite number at step 4, with learning rate 0.01",
        value=float("nan"), remedy="Start again with train.learning_rate=0.0025 or lower",
    )  # fmt: skip
    end(paths, "failed", error_record(error, "training"))
    return "no longer a finite number at step 4", "train.learning_rate=0.0025"


def of_full_disk(paths: RunPaths) -> tuple[str, ...]:
    error = paused_by(store_error(paths.checkpoints, OSError(errno.ENOSPC, "No space left")), 3)
    end(paths, "paused", error_record(error, "saving"))
    return "No space left on the disk", "iB free", "Then resume the run"


def of_a_lock(paths: RunPaths) -> tuple[str, ...]:
    remedy = "Check that the folder exists and that you may write to it"
    error = StoreError(f"Cannot write or read {paths.lock}: Permission denied", remedy=remedy)
    end(paths, "failed", error_record(error, "start"))
    return "trainer.lock: Permission denied", "that you may write to it"


@pytest.mark.parametrize("fault", [of_cuda_memory, of_host_kill, of_nan, of_full_disk, of_a_lock])
def test_ended_run_says_why_and_what_to_do(watched: Watched, run: RunPaths, fault: Any) -> None:
    told(watched, run, *fault(run))


def test_damaged_run_says_what_is_lost_and_offers_nothing(watched: Watched, run: RunPaths) -> None:
    end(run, "done", adapter_dir="adapter")
    run.run_json.write_text('{"config": ')
    panel = choose(watched, run)
    panel.get_by_text("run.json cannot be read, so its settings").wait_for()
    panel.get_by_text("delete the run or put the file back").wait_for()
    assert panel.get_by_role("link").count() == 0
    for name in ("Chat", "Use these settings again"):
        wait_until(panel.get_by_role("button", name=name).is_disabled, what=f"{name} disabled")
    assert panel.locator(".pill").inner_text() == "damaged"


def test_refused_resume_offers_a_new_run_from_its_weights(watched: Watched, run: RunPaths) -> None:
    error = StoreError(
        "The data set changed since checkpoint step 3 was made, so the run cannot be resumed",
        remedy=f"Start a new run; it can begin with the weights: --warm-start {run.id}@3",
    )
    end(run, "failed", error_record(error, "loading"))
    told(watched, run, "The data set changed since checkpoint step 3")
    page = watched.page
    button = page.get_by_role("button", name="Start a new run from its weights")
    button.wait_for()
    assert page.get_by_role("button", name="Resume").is_disabled()
    button.click()
    page.locator("#live .l-name", has_text="From its weights").wait_for()


def test_stalled_run_says_since_when_and_what_to_do(watched: Watched, run: RunPaths) -> None:
    state = json.loads(run.state_json.read_text())
    since = datetime.now(UTC) - timedelta(seconds=83)
    state |= {"progress_time": since.isoformat(), "time": datetime.now(UTC).isoformat()}
    run.state_json.write_text(json.dumps(state))
    with held_lock(run.lock):
        clock = since.astimezone().strftime("%H:%M:%S")
        told(watched, run, f"Stalled since {clock} (", "Stop now ends it in any case")
        assert watched.text("run-state") == "stalled"
        assert watched.page.get_by_role("button", name="Stop now").is_enabled()


def test_stop_is_counted_down_and_stop_now_is_a_button_of_its_own(
    watched: Watched, run: RunPaths
) -> None:
    with held_lock(run.lock):
        watched.tab("Runs")
        choose(watched, run).get_by_role("button", name="Open", exact=True).click()
        stop = watched.page.get_by_role("button", name="Stop", exact=True)
        wait_until(stop.is_enabled, what="Stop")
        stop.click()
        line = watched.page.locator("#live .l-ending")
        counted = re.compile(r"Stops after the current step and saves, at most (\d+) s more")
        seconds: set[int] = set()

        def counts() -> bool:
            if found := counted.search(line.inner_text()):
                seconds.add(int(found[1]))
            return len(seconds) > 1

        wait_until(counts, what="the countdown")
        assert max(seconds) <= 15 and not stop.is_enabled()
        (order,) = run.commands.glob("*-stop.json")
        os.utime(order, (order.stat().st_mtime - 20,) * 2)
        line.get_by_text("It did not end within 15 s. Stop now ends it at once").wait_for()
        write_command(run, "stop_now")
        line.get_by_text("it is killed in").wait_for()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.docx", b"PK\x03\x04", ("cannot read files of the kind .docx", "Save it as CSV")),
        ("empty.csv", b"", ("the file is empty", "Choose a file with rows")),
        ("rows.jsonl", b'{"question": "a\n' * 3, ("rows.jsonl",)),
    ],
)
def test_bad_data_file(
    watched: Watched, tmp_path: Path, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content)
    watched.tab("Data")
    watched.page.locator("#upload input[type=file]").set_input_files(tmp_path / name)
    sentence = watched.page.locator("#data-view .failure")
    for word in words:
        sentence.get_by_text(word).wait_for()
    remove = watched.page.locator("#upload button[aria-label*=lear], #upload .icon-button")
    if remove.count():
        remove.first.click()


def test_hostile_run_zip_is_refused_with_the_reason(
    watched: Watched, tmp_path: Path, run: RunPaths
) -> None:
    file = tmp_path / "gift.zip"
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.write(run.run_json, f"{run.id}/run.json")
        bundle.writestr(f"{run.id}/adapter/adapter_config.json", '{"auto_map": {"x": "evil.Y"}}')
    watched.tab("Runs")
    with watched.page.expect_file_chooser() as chooser:
        watched.page.get_by_role("button", name="Open a run zip").click()
    chooser.value.set_files(file)
    toast = watched.page.locator(".toast-body", has_text="The zip was not opened")
    toast.get_by_text(re.compile("foreign code")).wait_for()


def test_hub_that_nobody_reaches(watched: Watched) -> None:
    page = watched.page
    watched.tab("Train")
    box = page.locator("#model input")
    box.fill("Qwen/Qwen3-0.6B")
    box.press("Enter")
    page.get_by_role("button", name="Download this model").click()
    told = page.locator(".fetch .warn")
    told.get_by_text(re.compile("127.0.0.1 cannot be reached|switched off by HF_HUB")).wait_for()
    assert re.search("Check the connection|Unset it", told.inner_text())
    assert page.get_by_role("button", name="Download this model").is_visible()


def test_second_studio_asks_for_a_token_says_who_holds_it_and_starts_nothing(
    browser: Any, folder: Path
) -> None:
    token = TokenStore(folder / "w").owner_token()
    with serve_fake(folder, "0.4", HOLDER) as second, open_page(browser) as watched:
        page = watched.page
        page.goto(f"{second.url}/?token=wrong")
        page.get_by_text("That token opens nothing here").wait_for()
        watched.open(f"{second.url}/?token={token}")
        for word in ("process 4711 on attic", "http://127.0.0.1:7860", "this one is read-only"):
            page.get_by_text(word).first.wait_for()
        assert page.get_by_role("button", name="Train a model in 60 seconds").is_disabled()
        watched.tab("Train")
        start = page.get_by_role("button", name="Start training")
        start.wait_for()
        assert start.is_disabled()
        watched.tab("Runs")
        page.locator("button[data-run]").first.click()
        page.get_by_role("button", name="Open", exact=True).wait_for()
        for name in ("Delete", "Rename"):
            assert page.get_by_role("button", name=name, exact=True).is_disabled()
