"""Every nasty file of the corpus through the real import: its message or its exact counts."""

import json
import resource
import subprocess
import sys

import pytest

from tests.corpus.case import Case, keep, refuse, verdict
from tests.corpus.everything import CASES

MAX_RSS_BYTES = 1_500_000_000
BEFORE = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kB, of other modules' children


def name_of(case):
    return case.name[:40].encode("ascii", "replace").decode()


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=name_of(case)) for case in CASES],
)
def test_nasty_file(case, tmp_path):
    assert verdict(case, tmp_path / "case") == []


def test_the_corpus_is_as_large_and_as_mixed_as_it_should_be():
    assert len(CASES) >= 160
    assert len({case.name for case in CASES}) == len(CASES)
    assert len([case for case in CASES if case.refused]) >= 100
    assert len([case for case in CASES if case.left_out]) >= 80


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (refuse("a.csv", "question,answer\na,b\n", "the file is empty"), "accepted with 1 of 1"),
        (refuse("a.csv", "", "the file has no rows"), "wanted 'the file has no rows'"),
        (refuse("a.json", "{", "in the middle", line=2), "does not name line 2"),
        (keep("a.csv", "", 1), "refused: a.csv: the file is empty"),
        (keep("a.csv", "question,answer\na,b\n", 2), "rows, used, left out are (1, 1, 0)"),
        (keep("a.csv", "question,answer\na,b\nc\n", 2, {"is empty": 1}), "'is empty' 0 times"),
        (keep("a.csv", "question,answer\na,b\n", 1, last="a"), "the last text is 'b'"),
        (keep("a.csv", "question,answer\na,b\n", 1, note="a guess"), "no note with 'a guess'"),
    ],
)
def test_a_wrong_outcome_is_noticed(case: Case, complaint, tmp_path):
    assert any(complaint in wrong for wrong in verdict(case, tmp_path / "case"))


def test_children_stay_small():
    """Bombs included: the largest child of this module. The system counts a child until its exec
    with the memory of this process, which earlier tests of other modules may have made large."""
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    inherited = max(BEFORE, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert largest <= inherited or largest * 1024 < MAX_RSS_BYTES


def test_the_script_writes_the_same_files_twice(tmp_path, repo_root):
    """Two processes, because the order of a set differs between them."""
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        code = (
            "import sys\n"
            "from tests.corpus import __main__ as script, text_files, tables\n"
            "script.CASES = [*text_files.CASES, *tables.RAGGED]\n"
            "script.main()\n"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=repo_root, check=True)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert json.loads(written[0]["EXPECTED.json"])["empty.csv"]["refused"] == "the file is empty"
