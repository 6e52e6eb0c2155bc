"""`data render` and `data check --model` say what the trainer feeds: ids, labels and counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.cli import main
from studio.core.split import split
from tests.tiny_models import make_model_folder

MAX_LENGTH = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def file(tmp_path) -> Path:
    rows = [
        {"instruction": f"Tell me about the fox {i} " * (i % 5 + 1), "input": "",
         "output": f"The quick brown fox {i}."}
        for i in range(30)
    ]  # fmt: skip
    rows[4]["output"] = ""  # left out: row 5
    target = tmp_path / "rows.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


@pytest.fixture
def run(capfd, tmp_path):
    def call(*arguments):
        code = main([*map(str, arguments), "--workspace", str(tmp_path / "w"), "--json",
                     "--set", f"train.max_length={MAX_LENGTH}"])  # fmt: skip
        captured = capfd.readouterr()
        return code, (json.loads(captured.out) if code == 0 else captured.err)

    return call


def trained(file: Path, model: Path, tmp_path: Path):
    """What the trainer's own data path makes of the file: rows by line, and counts."""
    from studio.backend import data
    from studio.backend.rendering import load_tokenizer
    from studio.core.config_io import build_config
    from studio.services.datasets import DatasetStore

    info = DatasetStore(tmp_path / "trainer").resolve(str(file))
    rows = data.load_rows(info.folder)
    config = build_config({"train": {"max_length": MAX_LENGTH}})
    prepared = data.prepare(load_tokenizer(model), rows, config)
    fed = {}
    for part in (prepared.train, prepared.held_out):
        for place, row in zip(part.rows, data.to_dataset(part), strict=True):
            fed[rows[int(place)]["line"]] = (row["input_ids"].tolist(), row["labels"].tolist())
    return fed, prepared, info.used


def test_rendered_rows_are_those_that_the_trainer_feeds(run, file, model, tmp_path):
    fed, _, used = trained(file, model, tmp_path)
    code, answer = run("data", "render", file, "--model", model, "-n", 100)
    assert code == 0
    assert len(answer["rows"]) == used == 29
    seen = 0
    for row in answer["rows"]:
        assert row["mask"] == [int(label != -100) for label in row["labels"]]
        assert row["text"].startswith("<|im_start|>user\nTell me about")
        if row["trained_tokens"]:
            assert fed[row["line"]] == (row["input_ids"], row["labels"])
            assert row["end_token"]["verdict"] in ("ok", "cut")
            seen += 1
        else:
            assert row["line"] not in fed
            assert row["end_token"]["verdict"] == "nothing_learned"
    assert 0 < seen == len(fed) < 29  # some questions fill max_length


def test_one_row_is_named_as_data_check_names_it(run, file, model):
    code, answer = run("data", "render", file, "--model", model, "--row", 7)
    assert code == 0
    [row] = answer["rows"]
    assert (row["row"], row["line"]) == (7, 7)
    assert "fox 6" in row["text"]
    code, said = run("data", "render", file, "--model", model, "--row", 5)
    assert code == 1 and "no such row" in said


def test_text_for_people_marks_what_is_learned_and_cut(capfd, file, model, tmp_path):
    code = main(["data", "render", str(file), "--model", str(model), "-n", "5", "--workspace",
                 str(tmp_path / "w"), "--set", f"train.max_length={MAX_LENGTH}"])  # fmt: skip
    out = capfd.readouterr().out
    assert code == 0
    assert "[[The quick brown fox 0.<|im_end|>]]" in out
    assert "---- cut at max_length ----" in out
    assert "generation stops on it" in out


def test_token_statistics_are_the_trainers_counts(run, file, model, tmp_path):
    fed, prepared, used = trained(file, model, tmp_path)
    code, report = run("data", "check", file, "--model", model)
    assert code == 0
    tokens = report["tokens"]
    assert tokens["rows"] == used and tokens["refused"] == 0
    assert tokens["no_trained_token"] == used - len(fed) == prepared.counts["no_trained_token"]
    assert tokens["answer_lost"] == len(tokens["rows_of"]["answer_cut"])
    kept = [labels for _, labels in fed.values()]
    assert tokens["trained_tokens"] == sum(label != -100 for row in kept for label in row[1:])
    assert sum(bar["rows"] for bar in tokens["histogram"]) == used
    assert [way["way"] for way in tokens["batches"]] == ["random", "grouped", "packed"]
    assert tokens["epoch"]["rows"] == prepared.counts["train"]
    # Rows of which nothing is learned are counted as tokens here, but never fed.
    assert tokens["epoch"]["tokens"] >= prepared.counts["train_tokens"]
    assert tokens["epoch"]["trained_tokens"] == sum(
        label != -100 for row in prepared.train for label in row.labels[1:]
    )
    assert report["rows"]["train"] == len(split(used, 0.1, 42)[0])


def test_chosen_held_out_rows_are_those_of_check_run_and_statistics(run, file, model, tmp_path):
    from studio.backend import data
    from studio.backend.rendering import load_tokenizer
    from studio.core.config_io import build_config
    from studio.services.datasets import DatasetStore
    from studio.services.edits import Edits

    store = DatasetStore(tmp_path / "w")
    base = store.import_file(file)
    chosen = [2, 9, 10, 11]
    info = Edits(store, tmp_path / "w").apply(base.id, {"step": "held_out", "rows": chosen})
    config = build_config({"train": {"max_length": MAX_LENGTH}})
    rows = data.load_rows(info.folder)
    prepared = data.prepare(
        load_tokenizer(model), rows, config, held_out_rows=data.load_held_out(info.folder)
    )
    assert {rows[int(place)]["i"] for place in prepared.held_out.rows} <= set(chosen)
    code, report = run("data", "check", info.id, "--model", model)
    assert code == 0
    assert report["rows"] == {"train": 25, "held_out": 4, "left_out": 1}
    assert report["tokens"]["epoch"]["rows"] == prepared.counts["train"]
    assert report["tokens"]["epoch"]["trained_tokens"] == sum(
        label != -100 for row in prepared.train for label in row.labels[1:]
    )


def test_a_model_that_is_not_there_is_one_sentence(run, file):
    code, said = run("data", "render", file, "--model", "/no/such/model")
    assert code == 1 and said.startswith("Error: ") and said.count("\n") == 1
