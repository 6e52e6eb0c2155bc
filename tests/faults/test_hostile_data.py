"""A short sample of the fuzzed data files; `make faults` runs them all."""

import pytest

from tests.faults import hostile_data
from tests.faults.hostile_data import shifted

ONE = [
    {"role": "user", "content": "<q5>Where, and when?</q5>"},
    {"role": "assistant", "content": "<a5>Here</a5>"},
]


def test_fuzzed_files_give_rows_or_a_sentence():
    result = hostile_data.run(60, seed=5)
    assert result.is_met, result.failures[:3]
    assert result.trials == 60
    assert min(result.facts["files accepted"], result.facts["files refused"]) >= 10


@pytest.mark.slow
def test_the_corpus_gives_a_line_of_the_table():
    result = hostile_data.golden(20, seed=5)
    assert result.is_met, result.failures[:3]
    assert result.trials == 20


def test_good_rows_and_broken_cells_are_no_shift():
    assert shifted({"messages": ONE}) == []
    assert shifted({"text": "<q1>a</q1>"}) == []
    broken = [{"role": "user", "content": "<q4>Where, and"}, ONE[1]]
    assert shifted({"messages": broken}) == []
    alpaca = {"role": "user", "content": "<q5>Add</q5>\n\n<x5>1 2</x5>"}
    assert shifted({"messages": [alpaca, ONE[1]]}) == []


def test_a_row_that_the_damage_made_is_no_shift():
    mixed = {"messages": [ONE[0], {"role": "assistant", "content": "<a6>Here</a6>"}]}
    one_row = '{"q": "<q5>Where, and when?</q5>", "a": "<a6>Here</a6>"}'
    assert shifted(mixed, one_row) == []
    two_rows = "x,<q5>Where, and when?</q5>\nx,<a6>Here</a6>"
    assert shifted(mixed, two_rows) == ["rows ['5', '6'] in one"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([ONE[0], {"role": "assistant", "content": "<a6>Here</a6>"}], "rows ['5', '6'] in one"),
        ([{"role": "user", "content": "<a5>Here</a5>"}, ONE[1]], "stands as user"),
        ([ONE[0], {"role": "assistant", "content": " <q5>Where</q5>\n"}], "stands as assistant"),
    ],
)
def test_a_shift_is_noticed(messages, complaint):
    assert any(complaint in problem for problem in shifted({"messages": messages}))


def test_a_reader_that_moves_cells_is_found(monkeypatch):
    """The trial can fail: rows whose cells moved by one column, as a lenient reader gives them."""

    def moved(store, id, start, count):
        rows = real(store, id, start, count)
        for row, following in zip(rows, rows[1:], strict=False):
            if row.get("messages"):
                row["messages"][-1] = following["messages"][-1]
        return rows

    real = hostile_data.DatasetStore.rows
    monkeypatch.setattr(hostile_data.DatasetStore, "rows", moved)
    result = hostile_data.run(12, seed=5)
    assert any("in one" in failure for failure in result.failures)


def test_an_import_that_raises_is_a_failure(monkeypatch):
    def crash(store, path):
        raise KeyError(path.name)

    monkeypatch.setattr(hostile_data.DatasetStore, "import_file", crash)
    result = hostile_data.run(2, seed=1)
    assert len(result.failures) == 2 and result.facts["crashes"] == 2
