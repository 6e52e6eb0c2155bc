"""A real training that runs out of memory in the middle, and "Apply and retry" to its end.

The system itself refuses the memory: the trainer's launcher sets a limit on the process. Linux.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.core.config_io import build_config
from studio.services.runs import create_run
from studio.services.settings import Settings
from studio.services.studio import build_parts
from tests.ui.conftest import Site, Watched, serve_real
from tests.ui.test_end_to_end import stop_run
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's"),
]

ROWS, LONG_ROW, STEPS, BATCH = 80, 40, 8, 16
ROOM_MIB = 700  # the long row's batch takes two or three times as much
SEED = 9  # with it the long row comes in the third step
SERVE = """
import sys
from studio.services import launcher
launcher.TRAINER_COMMAND = (sys.executable, "-m", "tests.ui.limited_trainer", sys.argv.pop(1))
from app import main
sys.exit(main())
"""


@pytest.fixture
def limited_site(tmp_path: Path) -> Iterator[Site]:
    """The studio as a user starts it, whose trainers get only so much memory."""
    with serve_real(tmp_path, "-c", SERVE, str(ROOM_MIB)) as site:
        yield site


def queue_run(workspace: Path, folder: Path) -> str:
    """A run of short rows and a long one, for the studio of the workspace to train."""
    long = " ".join(f"word{i % 90}" for i in range(220))
    rows = [
        {"instruction": f"How far is house {i}?",
         "output": long if i == LONG_ROW else f"It is {i} minutes away."}
        for i in range(ROWS)
    ]  # fmt: skip
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config({
        "data": {"path": str(file), "val_frac": 0.0}, "lora": {"r": 8},
        "train": {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "max_length": 512,
                  "gradient_accumulation_steps": 1, "save_steps": 1, "seed": SEED,
                  "group_by_length": False},
    })  # fmt: skip
    return create_run(build_parts(Settings(workspace=workspace)), config, name="Too much").id


def test_apply_and_retry_goes_on_from_the_last_checkpoint_to_done(
    watched: Watched, limited_site: Site, tmp_path: Path
) -> None:
    workspace = tmp_path / "w"
    run_id = queue_run(workspace, tmp_path)
    runs = [run_id]
    try:
        watched.open(limited_site.url)
        watched.tab("Train")
        watched.wait_state("failed", timeout_s=240)
        panel = watched.page.locator("#live .l-doctor")
        panel.locator(".doc-option").first.wait_for(timeout=240_000)
        text = panel.inner_text()
        end = json.loads((workspace / "runs" / run_id / "exit.json").read_text())
        fault = end["error"]["memory"]
        assert fault["asked_bytes"] > (fault["free_bytes"] or 0) and fault["limit_bytes"]
        assert (fault["phase"], fault["step"]) == ("training", 2)
        assert "ran out of memory in training after step 2" in text and "was asked for" in text
        assert (
            "weights of step 2, the last checkpoint, and trains the 6 steps that are left" in text
        )
        panel.get_by_role("button", name="Apply and retry").click()
        watched.page.locator("#live .l-name", has_text="Too much, ").wait_for()
        wait_until(lambda: len(limited_site.json("/api/runs")["runs"]) == 2, what="the new run")
        (new,) = {run["id"] for run in limited_site.json("/api/runs")["runs"]} - {run_id}
        runs.append(new)
        watched.wait_state("done", timeout_s=300)
        assert watched.text("run-step") == str(STEPS - 2)
        assert not panel.is_visible()
        record = json.loads((workspace / "runs" / new / "run.json").read_text())
        assert (record["warm_start"]["run"], record["warm_start"]["step"]) == (run_id, 2)
        before, after = end["error"]["memory"]["budget_bytes"], limited_site.json(
            f"/api/runs/{new}")["peak_bytes"]  # fmt: skip
        assert after < before
        assert watched.problems == []
    finally:
        for each in runs:
            stop_run(limited_site, each, workspace)
