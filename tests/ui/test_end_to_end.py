"""The whole studio in a real browser: from a file to two different answers; and a killed page."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import psutil
import pytest

from tests.ui.conftest import Site, Watched
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PLACES = ("harbour", "market", "station", "library", "museum", "bakery", "garden", "theatre")
# Long enough that its stream takes several frames of the page even from a model of 5 M parameters.
WAY = (
    "Walk along the river, cross the bridge, turn left at the tall tower and you will see it "
    "behind the green trees. Robot out."
)
OBSERVE = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const box = document.querySelector('#chat-adapter [data-testid=bot]');
    if (box) window.lengths.push(box.innerText.length);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def write_examples(path: Path) -> Path:
    """Sixty rows whose answers all begin and end the same way: learned within a few steps."""
    rows = [
        {
            "instruction": f"How far is the {PLACES[i % 8]} from house {i}?",
            "output": f"Beep boop! The {PLACES[i % 8]} is {i + 2} minutes away. " + WAY,
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def set_knobs(watched: Watched, **values: object) -> None:
    """Fill controls of the Train tab by their knob's element id."""
    for path, value in values.items():
        box = watched.page.locator(f"#knob-{path.replace('_', '-')} input").first
        box.fill(str(value))
        box.press("Tab")


def start_training(watched: Watched, site: Site, file: Path, steps: int) -> str:
    """Upload, set a short run, start; returns the run's id once it is listed."""
    watched.open(site.url)
    watched.page.get_by_label("Training file").set_input_files(file)
    watched.page.get_by_role("heading", name=file.name).wait_for()
    watched.tab("Train")
    watched.page.locator("#startcard .sum").wait_for()
    set_knobs(
        watched, train_max_steps=steps, train_learning_rate=0.003, lora_lora_alpha=64,
        train_per_device_train_batch_size=4, train_gradient_accumulation_steps=1,
        train_max_length=128,
    )  # fmt: skip
    watched.page.locator("#startcard .sum", has_text=f"{steps} in all").wait_for()
    watched.page.get_by_role("button", name="Start training").click()
    wait_until(lambda: site.json("/api/runs")["runs"], timeout_s=60, what="the run")
    return str(site.json("/api/runs")["runs"][0]["id"])


def steps_in_curve(site: Site, run_id: str) -> list[int]:
    """Steps of the run as the page gets them."""
    series = site.json(f"/api/runs/{run_id}/metrics")["series"]
    return list(series.get("step", {}).get("step", []))


def stop_run(site: Site, run_id: str, workspace: Path) -> None:
    """Leave no trainer behind, whatever the test did."""
    process = workspace / "runs" / run_id / "process.json"
    if process.exists():
        pid = json.loads(process.read_text())["pid"]
        if psutil.pid_exists(pid) and "studio.backend.trainer" in psutil.Process(pid).cmdline():
            psutil.Process(pid).kill()


def test_a_file_becomes_two_different_answers(
    watched: Watched, real_site: Site, tmp_path: Path
) -> None:
    steps = 24
    start_training(watched, real_site, write_examples(tmp_path / "robot.jsonl"), steps)
    wait_until(lambda: int(watched.text("run-step")) >= 2, timeout_s=240, what="the second step")
    early = watched.points()
    wait_until(lambda: watched.points() > early, timeout_s=120, what="a growing chart")
    watched.reload()
    watched.page.get_by_test_id("run-state").wait_for()
    wait_until(lambda: watched.points() > early, what="all points back after the reload")
    watched.wait_state("done", timeout_s=300)
    assert watched.text("run-step") == str(steps)
    wait_until(lambda: watched.points() == steps, what="a point for every step")
    watched.page.get_by_role("button", name="Done. Chat with it").click()
    message = watched.page.get_by_label("Message")
    wait_until(lambda: message.input_value().startswith("How far is the"), what="a held-out prompt")
    watched.page.evaluate(OBSERVE)
    watched.page.get_by_role("button", name="Send").click()
    send = watched.page.get_by_role("button", name="Send")
    base, adapter = (
        watched.page.get_by_label(name).locator("[data-testid=bot]")
        for name in ("Base model", "With adapter")
    )

    def answered() -> bool:
        return bool(send.is_enabled() and adapter.count() and adapter.first.inner_text().strip())

    wait_until(answered, timeout_s=180, what="both answers")
    lengths = set(watched.page.evaluate("window.lengths")) - {0}
    assert len(lengths) > 3, "the answer came in one piece"
    assert adapter.first.inner_text().strip() and base.first.inner_text().strip()
    assert adapter.first.inner_text() != base.first.inner_text()
    assert watched.problems == []
    assert watched.hosts == {real_site.url.removeprefix("http://")}


def test_a_killed_page_loses_nothing(watched: Watched, real_site: Site, tmp_path: Path) -> None:
    workspace, steps = tmp_path / "w", 400
    run_id = start_training(watched, real_site, write_examples(tmp_path / "robot.jsonl"), steps)
    try:
        wait_until(lambda: int(watched.text("run-step")) >= 3, timeout_s=240, what="step 3")
        real_site.kill()
        metrics = workspace / "runs" / run_id / "metrics.jsonl"
        size = metrics.stat().st_size
        wait_until(lambda: metrics.stat().st_size > size, what="training without the page")
        real_site.start()
        before = int(real_site.json(f"/api/runs/{run_id}")["step"])
        watched.open(real_site.url)
        watched.tab("Train")
        wait_until(lambda: watched.text("run-state") == "running", what="the run, still going")
        wait_until(lambda: int(watched.text("run-step")) > before, what="the next step")
        wait_until(lambda: watched.points() >= before, what="the curve, drawn again")
        seen = watched.page.evaluate("document.querySelector('.p-loss').data[0].x")
        assert seen == list(range(1, len(seen) + 1)) and len(seen) >= before
        watched.page.get_by_role("button", name="Stop").click()
        watched.wait_state("stopped", timeout_s=120)
        curve = steps_in_curve(real_site, run_id)
        assert curve == list(range(1, len(curve) + 1)) and len(curve) < steps
        # The page asked on while there was no studio; nothing else may have gone wrong.
        assert [text for text in watched.problems if "ERR_CONNECTION_REFUSED" not in text] == []
    finally:
        stop_run(real_site, run_id, workspace)
    assert httpx.get(f"{real_site.url}/healthz").json() == {"status": "ok"}
    assert (workspace / "runs" / run_id / "adapter" / "adapter_config.json").is_file()
