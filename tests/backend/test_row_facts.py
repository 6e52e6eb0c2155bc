"""What state.json says of a run's rows."""

from types import SimpleNamespace

import numpy

from studio.backend.row_facts import row_facts


def rows(*lengths):
    return SimpleNamespace(lengths=numpy.array(lengths, dtype=int), trained_share=0.25)


def test_rows_are_counted_at_the_lengths_that_may_be_proposed():
    data = SimpleNamespace(train=rows(20, 300, 512), held_out=rows(390), counts={"truncated": 1})
    assert row_facts(data, 512) == {
        "longest_tokens": 512, "learned_share": 0.25, "rows_over": {"256": 3, "384": 2, "512": 1},
    }  # fmt: skip


def test_without_rows():
    data = SimpleNamespace(train=rows(), held_out=rows(), counts={})
    assert row_facts(data, 200)["longest_tokens"] is None
    assert row_facts(data, 200)["rows_over"] == {"200": 0}
