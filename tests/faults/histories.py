"""The state machine as a line of the table: Hypothesis histories in a count that is asked for."""

from __future__ import annotations

import traceback

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.result import Result
from tests.faults.test_state_machine import Histories, TestHistories


def run(count: int) -> Result:
    """`count` random histories of a workspace; the first that breaks a rule ends it."""
    result = Result(
        "random histories of a workspace", "no run lost, status true, the list never fails"
    )
    began = Histories.begun
    try:
        run_state_machine_as_test(
            Histories,
            settings=settings(TestHistories.settings, max_examples=count, phases=[Phase.generate]),
        )
    except AssertionError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = "; ".join(filter(None, [str(error), *getattr(error, "__notes__", [])]))
        result.check(False, f"{told[-600:]} ({place.name}, line {place.lineno})")
    result.trials = Histories.begun - began
    result.count("steps", Histories.steps)
    result.count("power cuts", Histories.cuts)
    return result
