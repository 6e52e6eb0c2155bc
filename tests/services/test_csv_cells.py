"""What the studio writes as CSV is never run as a formula by the spreadsheet that opens it."""

import csv
import io

import pytest

from studio.services.check_lists import escaped_cell

WRITERS = {"studio/services/check_lists.py", "studio/data_api.py"}  # each escapes its cells


@pytest.mark.parametrize("mark", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_a_spreadsheet_would_run_is_escaped(mark):
    attack = f"{mark}cmd|'/C calc'!A0"
    out = io.StringIO()
    csv.writer(out).writerow([escaped_cell(attack)])
    assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [f"'{attack}"]


@pytest.mark.parametrize("text", ["a=b", "1+1", "me@example.org", "", "'='"])
def test_other_cells_stay_as_they_are(text):
    assert escaped_cell(text) == text


def test_nothing_else_in_the_studio_writes_csv(repo_root):
    found = {
        path.relative_to(repo_root).as_posix()
        for path in (repo_root / "studio").rglob("*.py")
        if any(word in path.read_text() for word in ("csv.writer(", "DictWriter(", "to_csv("))
    }
    assert found <= WRITERS, "escape the cells of what is written, then name the file here"
