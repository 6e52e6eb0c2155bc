"""Near-duplicates: nothing false, nearly all found, through the real child."""

import json
import random

import numpy as np
import pytest

from studio.services import near_duplicates as module
from studio.services.check_lists import check_summaries, list_check, rows_of_check
from studio.services.datasets import DatasetStore
from studio.services.import_process import ImportCancelledError
from studio.services.near_duplicates import (
    expected_s,
    find_near_duplicates,
    found_near_duplicates,
    is_automatic,
)
from studio.services.near_duplicates_child import (
    THRESHOLD,
    WordPairs,
    _words,
    jaccard,
    near_duplicates,
)

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti") for b in
         ("bar", "den", "fis", "gol", "han", "jur", "kel", "lum", "mor", "nix")]  # fmt: skip


def texts_with_planted(count=400, planted=300, seed=5):
    """Random texts and copies of some with a few words changed: (texts, source of each copy)."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(12, 120))) for _ in range(count)]
    sources = []
    for _ in range(planted):
        source = draw.randrange(count)
        words = texts[source].split()
        for _ in range(max(1, round(len(words) * draw.choice((0.01, 0.03, 0.05, 0.08))))):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts.append(" ".join(words).upper() + "!")
        sources.append(source)
    return texts, sources


def exact(one, other):
    """Jaccard of the word pairs, by the book."""
    first, second = (set(zip(w, w[1:], strict=False)) for w in (_words(one), _words(other)))
    return len(first & second) / len(first | second)


def test_planted_ones_are_found_and_nothing_else(tmp_path):
    texts, sources = texts_with_planted()
    found = near_duplicates(iter(enumerate(texts)), tmp_path)
    named = {int(row): (int(other), alike / 1000) for row, other, alike in found}
    near = [n for n, source in enumerate(sources, 400) if exact(texts[n], texts[source])
            >= THRESHOLD]  # fmt: skip
    assert len(near) > 150
    assert sum(n in named for n in near) >= 0.9 * len(near)
    for row, (other, alike) in named.items():
        assert other < row and other not in named  # the first is kept
        assert exact(texts[row], texts[other]) == pytest.approx(alike, abs=0.001)
        assert alike >= THRESHOLD


def test_the_same_rows_give_the_same_answer(tmp_path):
    texts, _ = texts_with_planted(100, 60)
    one, two = (near_duplicates(iter(enumerate(texts)), tmp_path) for _ in range(2))
    assert np.array_equal(one, two) and len(one)


def test_many_copies_of_one_row_take_no_square_of_comparisons(tmp_path):
    text = " ".join(WORDS)
    found = near_duplicates(((n, f"{text} {n}") for n in range(3000)), tmp_path)
    assert len(found) == 2999 and set(found[:, 1].tolist()) == {0}


def test_word_pairs_do_not_depend_on_case_punctuation_or_composition():
    pairs = WordPairs()
    assert np.array_equal(pairs("The caf\u00e9, at Nine!"), pairs("the CAFE\u0301 at nine"))
    assert pairs("the cat sat").tolist() != pairs("sat cat the").tolist()
    assert len(pairs("one two three two three")) == 3
    assert len(pairs("one")) == 1 and len(pairs("")) == len(pairs("...")) == 0
    assert len(pairs("\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17")) == 6  # no blanks: by character


def test_jaccard_of_sets():
    def numbers(*values):
        return np.array(values, np.uint32)

    assert jaccard(numbers(1, 2, 3, 4, 5), numbers(1, 2, 3, 4, 6)) == 4 / 6
    assert jaccard(numbers(1, 2), numbers(1, 2)) == 1
    assert jaccard(numbers(), numbers()) == jaccard(numbers(), numbers(1)) == 0
    assert jaccard(numbers(1), numbers(1, 2, 3, 4)) == 0  # too different in size to matter


@pytest.fixture
def info(tmp_path):
    texts, _ = texts_with_planted(60, 30)
    rows = [{"question": f"Say {n}" if n < 60 else "Say", "answer": text}
            for n, text in enumerate([*texts, texts[0]])]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[-1]]))
    return DatasetStore(tmp_path / "workspace").import_file(path)


def test_through_the_child(info, tmp_path):
    assert found_near_duplicates(info.folder) is None and is_automatic(info)
    told = []
    count = find_near_duplicates(info, progress=lambda frac, text: told.append(text))
    found = found_near_duplicates(info.folder)
    assert len(found) == count > 10
    assert 91 not in found[:, 0]  # an exact repeat is another check
    assert list((tmp_path / "workspace" / "tmp").iterdir()) == []
    assert find_near_duplicates(info, cancelled=lambda: True) == count  # it was done already


def test_it_is_listed_with_the_other_checks(info):
    assert "near_duplicate" not in [entry["id"] for entry in check_summaries(info)]
    count = find_near_duplicates(info)
    entry = {entry["id"]: entry for entry in check_summaries(info)}["near_duplicate"]
    assert entry["count"] == count and entry["fix"]["label"] == f"Leave out {count} near-duplicates"
    hits = list_check(info, "near_duplicate", 0, 1000)
    assert [hit["i"] for hit in hits] == rows_of_check(info, "near_duplicate")
    assert "% the word pairs of row" in hits[0]["detail"]


def test_cancel_keeps_nothing(info, tmp_path):
    with pytest.raises(ImportCancelledError):
        find_near_duplicates(info, cancelled=lambda: True)
    assert found_near_duplicates(info.folder) is None
    assert list((tmp_path / "workspace" / "tmp").iterdir()) == []


def test_only_small_sets_are_searched_unasked(info, monkeypatch):
    monkeypatch.setattr(module, "AUTOMATIC_ROWS", info.used - 1)
    assert not is_automatic(info)
    assert 1 < expected_s(info) < 2
