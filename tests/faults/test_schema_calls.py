"""A few examples of each operation of the OpenAPI; skipped where schemathesis is missing."""

from __future__ import annotations

import pytest

from tests.faults.schema_calls import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operation_stands_a_call(tmp_path):
    pytest.importorskip("schemathesis")
    result = run(50, seed=1, folder=tmp_path)
    result.tell()
    assert result.is_met, "\n".join(result.failures[:5])
