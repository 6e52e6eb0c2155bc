"""Hypothesis drives a workspace; after each step no run is lost and each status is the truth.

HISTORIES in the environment sets how many (a short sample without it; `make faults` asks for more).
"""

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.faults.state_machine import DAMAGES, HOW, Workspace

HISTORIES = int(os.environ.get("HISTORIES", "25"))
STEPS = 40


class Histories(RuleBasedStateMachine):
    begun = 0
    steps = 0

    def __init__(self):
        super().__init__()
        Histories.begun += 1
        self.root = Path(tempfile.mkdtemp(prefix="history-"))
        self.workspace = Workspace(self.root / "workspace")

    def teardown(self):
        self.workspace.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def has_runs(self):
        return bool(self.workspace.runs)

    def pick(self, data):
        return data.draw(st.sampled_from(list(self.workspace.runs)))

    @rule(request=st.sampled_from("abcd"))
    def start(self, request):
        self.workspace.start(request)

    @rule()
    def tick(self):
        self.workspace.tick()

    @rule(steps=st.integers(1, 5), save=st.booleans())
    def train(self, steps, save):
        self.workspace.train(steps, save=save)

    @precondition(has_runs)
    @rule(data=st.data(), verb=st.sampled_from(["stop", "pause", "save", "stop_now"]))
    def command(self, data, verb):
        self.workspace.command(self.pick(data), verb)

    @rule()
    def kill_trainer(self):
        self.workspace.kill_trainer()

    @rule()
    def kill_ui(self):
        self.workspace.kill_ui()

    @rule()
    def second_studio(self):
        self.workspace.second_studio_starts()

    @precondition(has_runs)
    @rule(data=st.data())
    def resume(self, data):
        self.workspace.resume(self.pick(data))

    @precondition(has_runs)
    @rule(data=st.data())
    def delete(self, data):
        self.workspace.delete(self.pick(data))

    @precondition(lambda self: self.workspace.trash)
    @rule(data=st.data())
    def undo(self, data):
        self.workspace.undo(data.draw(st.sampled_from(list(self.workspace.trash))))

    @precondition(has_runs)
    @rule(data=st.data(), what=st.sampled_from(DAMAGES[:-1]),
          how=st.sampled_from(HOW))  # fmt: skip
    def corrupt(self, data, what, how):
        # Not the lock: a run whose lock cannot be opened stays queued, with the reason in the
        # page's log only (see docs/reliability.md); that it hides no run is tested below.
        self.workspace.corrupt(self.pick(data), what, how)

    @invariant()
    def all_is_true(self):
        Histories.steps += 1
        self.workspace.check()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("what", DAMAGES)
def test_one_bad_file_hides_no_run(tmp_path, what, how):
    workspace = Workspace(tmp_path / "workspace")
    for request in "ab":
        workspace.start(request)
    workspace.tick()
    workspace.train(3, save=True)
    workspace.train(1, save=True)
    bad = next(iter(workspace.live()))
    if what == "exit.json":
        workspace.command(bad, "stop")
        workspace.train(1, save=False)
        assert (workspace.root / "runs" / bad / what).is_file()
    else:
        workspace.kill_trainer()
    workspace.check()
    workspace.corrupt(bad, what, how)
    workspace.check()
    workspace.kill_ui()
    workspace.check()
    workspace.tick()
    assert bad not in workspace.live() and len(workspace.live()) == 1
    workspace.close()


def test_a_status_that_lies_is_found(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "workspace")
    workspace.start("a")
    workspace.tick()
    workspace.train(2, save=False)
    workspace.kill_trainer()
    workspace.check()
    monkeypatch.setattr("studio.services.summary.derive_state", lambda paths, alive: "done")
    workspace.kill_ui()
    with pytest.raises(AssertionError, match="shown as done, is interrupted"):
        workspace.check()


def test_a_stopped_run_that_was_queued_again_can_be_stopped_again(tmp_path):
    """Found by the histories: the second stop was lost, and the run started."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.start("a")
    [run_id] = workspace.runs
    workspace.command(run_id, "stop")
    workspace.check()
    workspace.resume(run_id)
    workspace.check()
    workspace.command(run_id, "stop")
    workspace.check()
    workspace.tick()
    assert not workspace.live()


def test_a_trainer_whose_run_record_is_damaged_still_counts_as_training(tmp_path):
    """Found by the histories: a restarted page started a second training beside it."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.start("a")
    workspace.tick()
    workspace.train(1, save=True)
    [run_id] = workspace.runs
    workspace.corrupt(run_id, "run.json", "half")
    workspace.start("b")
    workspace.kill_ui()
    workspace.check()
    workspace.tick()
    workspace.command(run_id, "stop")
    workspace.train(1, save=False)
    workspace.check()
    workspace.close()
