"""Tokens on disk: the same as fresh ones, made once, made again when damaged, bounded in size."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy
import pytest

from studio.backend import data
from studio.backend.token_cache import (
    TokenCache,
    TokenizingCancelledError,
    cache_key,
    table_in_memory,
    tokenizer_fingerprint,
)
from studio.backend.token_stats import summarise
from studio.backend.tokenize import encode_batches, encode_example
from studio.core.config_io import build_config
from studio.core.errors import DatasetError, StoreError
from studio.core.examples import RowProblem
from studio.core.token_stats import cut_at
from tests.backend.tiny import make_rows, make_tokenizer, write_dataset


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "tokens")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("marked")


def dataset(tmp_path: Path, rows=300):
    rows = make_rows(rows) if isinstance(rows, int) else rows
    write_dataset(tmp_path / "data", rows)
    return data.load_rows(tmp_path / "data")


def entries(cache: TokenCache) -> list[Path]:
    return sorted(cache._folder.iterdir()) if cache._folder.exists() else []


def get(tokenizer, rows, cache, **options):
    values = {"loss_on": "assistant", "system_prompt": None, **options}
    return data.token_table(tokenizer, rows, cache=cache, **values)


def test_rows_from_the_disk_equal_fresh_ones_at_any_length(tmp_path, tokenizer, cache):
    examples = make_rows(40)
    examples[7] = {"i": 8, "line": 8, "text": " "}
    rows = dataset(tmp_path, examples)
    table = get(tokenizer, rows, cache)
    assert isinstance(table.ids, numpy.memmap)
    again = get(tokenizer, rows, cache)
    for index, example in enumerate(examples):
        if index == 7:
            assert again.refused([7]) == {"the row has no text. Fill it in or remove the row.": 1}
            continue
        for max_length in (5, 12, None):
            fresh = encode_example(tokenizer, example, max_length=max_length)
            for source in (table, again):
                row = source.row(index, max_length)
                assert (row.input_ids, row.labels) == (fresh.input_ids, fresh.labels)
        assert again.fact("trained")[index] == fresh.trained_tokens
    assert again.refused() == again.refused([7])


def test_second_reading_tokenizes_nothing(tmp_path, tokenizer, cache, monkeypatch):
    rows = dataset(tmp_path)
    get(tokenizer, rows, cache)
    monkeypatch.setattr(data, "encode_batches", lambda *a, **k: pytest.fail("tokenized again"))
    assert len(get(tokenizer, rows, cache)) == 300
    assert len(get(make_tokenizer("marked", pad=False), rows, cache)) == 300  # padding is no part


def test_whatever_changes_a_token_has_its_own_entry(tmp_path, tokenizer):
    keys = {
        cache_key(data_sha, tok, loss_on=loss_on, system_prompt=system)
        for data_sha in ("a", "b")
        for tok in (tokenizer, make_tokenizer("chatml"), make_tokenizer("marked", eos_token="a"))
        for loss_on in ("assistant", "all")
        for system in (None, "be old")
    }
    assert len(keys) == 24
    other = make_tokenizer("marked")
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
    other.add_tokens(["zebra"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("harm", ["shorter", "flipped", "missing", "manifest", "schema"])
def test_a_damaged_entry_is_made_again(tmp_path, tokenizer, cache, harm):
    rows = dataset(tmp_path)
    expected = get(tokenizer, rows, cache).ids.tolist()
    [entry] = entries(cache)
    ids, manifest = entry / "ids.i32", entry / "manifest.json"
    if harm == "shorter":
        os.truncate(ids, ids.stat().st_size - 4)
    elif harm == "flipped":
        content = bytearray(ids.read_bytes())
        content[100] ^= 1
        ids.write_bytes(content)
    elif harm == "missing":
        (entry / "learned.u8").unlink()
    elif harm == "manifest":
        manifest.write_text("{")
    else:
        record = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**record, "schema": 0}))
    assert cache.open(entry.name) is None
    assert get(tokenizer, rows, cache).ids.tolist() == expected
    assert entries(cache) == [entry]


def test_changed_data_is_never_read_from_the_old_entry(tmp_path, tokenizer, cache):
    get(tokenizer, dataset(tmp_path), cache)
    changed = make_rows(300)
    changed[5]["messages"][1]["content"] = "red"
    table = get(tokenizer, dataset(tmp_path, changed), cache)
    assert table.row(5).input_ids == encode_example(tokenizer, changed[5]).input_ids


def test_cancelling_keeps_nothing(tmp_path, tokenizer, cache):
    seen: list[int] = []
    with pytest.raises(TokenizingCancelledError, match="nothing was kept"):
        get(tokenizer, dataset(tmp_path, 2000), cache, progress=lambda done, _: seen.append(done),
            cancelled=lambda: len(seen) >= 2)  # fmt: skip
    assert entries(cache) == []
    assert seen[-1] < 2000


def test_progress_reaches_the_end(tmp_path, tokenizer, cache):
    seen: list[tuple[int, int]] = []
    get(tokenizer, dataset(tmp_path, 700), cache, progress=lambda *step: seen.append(step))
    assert seen[-1] == (700, 700)
    assert len(seen) > 1


def test_a_full_disk_leaves_the_tokens_in_memory(tmp_path, tokenizer, cache, monkeypatch):
    monkeypatch.setattr("studio.backend.token_cache.free_bytes", lambda _: 1000)
    said: list[str] = []
    table = get(tokenizer, dataset(tmp_path), cache, note=said.append)
    assert len(table) == 300 and not isinstance(table.ids, numpy.memmap)
    assert "in memory" in said[0] and "No space left" in said[0]
    assert entries(cache) == []
    with pytest.raises(StoreError):
        cache.build("k", iter(encode_batches(tokenizer, make_rows(3))))


def test_two_writers_make_one_entry(tmp_path, tokenizer, cache):
    rows = dataset(tmp_path, 600)
    found, errors = [], []
    barrier = threading.Barrier(3)

    def work() -> None:
        try:
            barrier.wait()
            found.append(get(make_tokenizer("marked"), rows, cache).ids.tolist())
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert found[0] == found[1] == found[2]
    assert len(entries(cache)) == 1


def test_the_entry_used_longest_ago_makes_room(tmp_path, tokenizer):
    cache = TokenCache(tmp_path / "tokens", max_bytes=1)
    rows = dataset(tmp_path)
    first, second, third = (
        cache_key(rows.fingerprint, tokenizer, loss_on="all", system_prompt=text)
        for text in ("a", "b", "c")
    )
    generous = TokenCache(tmp_path / "tokens")
    for key, prompt in ((first, "a"), (second, "b")):
        generous.build(key, encode_batches(tokenizer, rows, loss_on="all", system_prompt=prompt))
    os.utime(tmp_path / "tokens" / second / "manifest.json", (1, 1))
    size = sum(f.stat().st_size for f in (tmp_path / "tokens" / first).iterdir())
    two = TokenCache(tmp_path / "tokens", max_bytes=int(2.5 * size))
    two.build(third, encode_batches(tokenizer, rows, loss_on="all", system_prompt="c"))
    assert {p.name for p in entries(cache)} == {first, third}
    leftover = tmp_path / "tokens" / f".{second}-1-1"
    leftover.mkdir()
    os.utime(leftover, (1, 1))
    cache.prune(keep=third)
    assert [p.name for p in entries(cache)] == [third]


def test_reasons_are_bounded(monkeypatch):
    monkeypatch.setattr("studio.backend.token_cache.MAX_REASONS", 3)
    empty = numpy.zeros(0, numpy.int32)
    from studio.backend.tokenize import TokenBatch

    problems = {row: RowProblem(f"reason {row}", "do") for row in range(10)}
    batch = TokenBatch(empty, empty.astype(numpy.uint8), numpy.zeros(10, numpy.int32), problems)
    table = table_in_memory([batch])
    assert len(table.reasons) == 4
    assert sum(table.refused().values()) == 10


def test_summary_counts_what_prepare_counts(tmp_path, tokenizer, cache):
    examples = [*make_rows(200), {"i": 201, "line": 201, "text": "\t"}]
    examples[3]["messages"][0]["content"] = "red " * 60
    rows = dataset(tmp_path, examples)
    for max_length in (16, 24, 64):
        config = build_config({"data": {"val_frac": 0.0}, "train": {"max_length": max_length}})
        counts = data.prepare(tokenizer, rows, config, cache=cache).counts
        summary = summarise(get(tokenizer, rows, cache), max_length=max_length)
        cut = cut_at(summary, max_length)
        assert summary.refused == counts["left_out"] == 1
        assert cut.no_trained_token == counts["no_trained_token"]
        assert cut.rows_cut - cut.answer_lost == counts["truncated"]
        assert 200 - cut.no_trained_token == counts["train"]
        assert cut.rows_cut == len(summary.first_rows["cut"])
        assert cut.answer_lost == len(summary.first_rows["answer_cut"])
        fresh = [encode_example(tokenizer, e, max_length=max_length) for e in examples[:200]]
        assert cut.trained_tokens == sum(row.trained_tokens for row in fresh)
        assert cut.tokens == sum(len(row.input_ids) for row in fresh)


def test_very_different_lengths_are_rounded_up_and_said_to_be(monkeypatch, tokenizer):
    monkeypatch.setattr("studio.backend.token_stats.MAX_POINTS", 8)
    table = table_in_memory(encode_batches(tokenizer, make_rows(100)))
    summary = summarise(table)
    assert not summary.exact
    assert len(summary.lengths.at) <= 9
    assert summary.lengths.total == 100
    exact_cut = int((table.lengths() > 20).sum())
    assert cut_at(summary, 20).rows_cut >= exact_cut


def test_a_file_that_breaks_off_later_is_told(tmp_path, tokenizer, cache):
    write_dataset(tmp_path / "data", make_rows(5))
    with (tmp_path / "data" / "data.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DatasetError, match="cannot be read"):
        get(tokenizer, data.load_rows(tmp_path / "data"), cache)
    assert entries(cache) == []


def test_a_second_run_of_a_workspace_tokenizes_nothing_and_has_the_same_losses(
    tmp_path, model_folder, monkeypatch
):
    from tests.backend.tiny import RunMaker, losses, train

    (tmp_path / "w" / "runs").mkdir(parents=True)
    maker = RunMaker(tmp_path / "w" / "runs", model_folder)
    values = {"train": {"max_steps": 3}}
    first = maker(values)
    assert train(first)["state"] == "done"
    [entry] = (tmp_path / "w" / "cache" / "tokens").iterdir()
    monkeypatch.setattr(data, "encode_batches", lambda *a, **k: pytest.fail("tokenized again"))
    second = maker(values)
    assert train(second)["state"] == "done"
    assert losses(second) == losses(first) != {}
    assert [entry] == list((tmp_path / "w" / "cache" / "tokens").iterdir())


def test_stopping_while_rows_are_tokenized_ends_the_run_and_keeps_nothing(
    tmp_path, model_folder, monkeypatch
):
    from studio.backend import token_cache
    from tests.backend.tiny import RunMaker, train

    (tmp_path / "w" / "runs").mkdir(parents=True)
    paths = RunMaker(tmp_path / "w" / "runs", model_folder)({"train": {"max_steps": 3}}, rows=1500)
    original = token_cache._Facts.add

    def add(self, batch):
        (paths.commands / "0001-stop.json").write_text("{}")
        original(self, batch)

    monkeypatch.setattr(token_cache._Facts, "add", add)
    assert train(paths)["state"] == "stopped"
    assert list((tmp_path / "w" / "cache" / "tokens").iterdir()) == []
