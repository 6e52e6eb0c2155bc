"""The forty faults: what is said of each is the reviewed snapshot, with a cause and what to do."""

import dataclasses

import pytest

from tests.faults import messages
from tests.faults.fault_messages import FAULTS, materials, runs  # noqa: F401


@pytest.fixture(scope="module")
def found():
    return messages.in_a_process()


def test_all_forty_read_as_in_the_snapshot(found):
    assert messages.problems(found, messages.PAGE.read_text(encoding="utf-8")) == []
    assert len(found) == messages.COUNT


def test_a_message_that_changed_or_says_nothing_to_do_is_found(found, monkeypatch):
    snapshot = messages.PAGE.read_text(encoding="utf-8")
    [told] = messages.problems({**found, 8: "No space left. Try again"}, snapshot)
    assert "F8 reads otherwise" in told
    told = messages.problems({**found, 8: "It did not work"}, snapshot)
    assert any("F8 does not say what to do" in problem for problem in told)
    fewer = {number: text for number, text in found.items() if number != 17}
    assert "F17 is not brought about" in messages.problems(fewer, snapshot)
    silent = dataclasses.replace(FAULTS[1], quiet=True)
    monkeypatch.setitem(FAULTS, 1, silent)
    assert any("F1 reads otherwise" in problem for problem in messages.problems(found, snapshot))
