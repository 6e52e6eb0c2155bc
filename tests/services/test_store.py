"""The list of runs: from folders, whatever is in them; names, trash, prompts."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from studio.core.config import RunConfig
from studio.core.config_io import dump_config
from studio.core.errors import BusyError, StoreError
from studio.core.runs import new_run_id
from studio.hardware.platforms import held_lock
from studio.services.store import RunStore
from studio.services.supervisor import check_resumable


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def write_json(path, value):
    path.write_text(json.dumps(value))  # not synced: a thousand runs are made in a second


def make_run(store, run_id=None, *, state="done", created=None, **record):
    run_id = run_id or new_run_id()
    root = store.root / run_id
    root.mkdir()
    write_json(
        root / "run.json",
        {
            "created": created or run_id, "config": dump_config(RunConfig()), "total_steps": 9,
            "model": {"id": "starter", "kind": "starter"}, "dataset": {"id": "d1", "name": "rows"},
            **record,
        },
    )  # fmt: skip
    if state:
        write_json(root / "process.json", {"attempt": 1, "pid": 1, "start_time": 0.0})
        write_json(
            root / "exit.json",
            {"state": state, "steps": 9, "train_loss": 0.5, "eval_loss": 0.6, "run_s": 12.0,
             "peak_rss_bytes": 1000, "peak_vram_bytes": None, "verdict": "fine", "attempt": 1},
        )  # fmt: skip
    return root


def test_summary_of_an_ended_run(store):
    root = make_run(store, "20260101-000000-aaaa")
    run = store.get(root.name)
    assert (run.state, run.method, run.model_name, run.dataset_name) == (
        "done", "LoRA r16", "starter", "rows",
    )  # fmt: skip
    assert (run.step, run.loss, run.eval_loss, run.duration_s) == (9, 0.5, 0.6, 12.0)
    assert (run.peak_bytes, run.peak_kind, run.read_only) == (1000, "RSS", False)


@pytest.mark.parametrize(
    ("state", "steps", "expected"),
    [("done", 9, True), ("stopped", 4, True), ("paused", 4, True), ("failed", 4, False),
     ("stopped", 0, False), ("paused", 0, False)],
)  # fmt: skip
def test_only_a_run_that_learned_something_can_chat(store, state, steps, expected):
    root = make_run(store, state=state)
    write_json(root / "exit.json", {"state": state, "steps": steps, "attempt": 1})
    assert store.get(root.name).can_chat is expected


def test_newest_run_is_first(store):
    for stamp in ("20260102", "20260103", "20260101"):
        make_run(store, f"{stamp}-000000-aaaa")
    assert [run.id[:8] for run in store.list()] == ["20260103", "20260102", "20260101"]


def test_a_damaged_run_is_not_taken_for_the_newest(store):
    old = make_run(store, "20260101-000000-aaaa", created="2026-01-01T00:00:00.000001+00:00")
    new = make_run(store, "20260102-000000-aaaa", created="2026-01-02T00:00:00.000001+00:00")
    (old / "run.json").write_text("{")
    assert [run.id for run in store.list()] == [new.name, old.name]


BAD_FILES = {
    "run.json": [b"", b"{", b"[]", b'{"config": 3}', b"\xff\xfe", b"null"],
    "exit.json": [b"{", b'{"state": 7}', b'{"state": "done", "eval_loss": "x", "error": []}'],
    "meta.json": [b"[]", b'{"name": 5}'],
    "state.json": [b"{", b'{"step": "many", "total_steps": null}'],
    "metrics.jsonl": [b'{"kind": "step", "loss": {}, "step": []}\n', b"\0\0\0\n", b'{"kind"'],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, many in BAD_FILES.items() for content in many]
)
def test_one_damaged_run_hides_no_other(store, name, content):
    good = make_run(store, "20260101-000000-aaaa")
    bad = make_run(store, "20260102-000000-bbbb")
    (bad / name).write_bytes(content)
    runs = {run.id: run for run in store.list()}
    assert runs[good.name].state == "done" and bad.name in runs
    if name == "run.json":
        run = runs[bad.name]
        assert (run.state, run.verdict) == ("failed", "damaged") and "run.json" in run.error["text"]


def test_a_damaged_run_says_what_is_lost_and_gives_nothing_out(store):
    root = make_run(store)
    (root / "adapter").mkdir()
    for name, lost in (("exit.json", "how it ended"), ("meta.json", "name and notes")):
        (root / name).write_text("{")
        run = store.get(root.name)
        assert name in run.damaged and lost in run.damaged and run.is_usable
    (root / "run.json").write_text("{")
    run = store.get(root.name)
    assert run.shown_state == "damaged" and not run.is_usable and not run.can_chat
    assert "cannot be read" in run.damaged and "run.json" in run.damaged
    for refused in (store.zip_run, store.zip_adapter):
        with pytest.raises(StoreError, match=r"run is damaged: run\.json cannot be read"):
            refused(root.name)
    with pytest.raises(BusyError, match="run is damaged"):
        check_resumable(run)
    (root / "run.json").unlink()
    assert "is missing" in store.get(root.name).damaged


def test_store_that_only_looks_makes_no_folder(tmp_path):
    store = RunStore(tmp_path / "w", create=False)
    assert store.list() == [] and not (tmp_path / "w").exists()


def test_foreign_folders_and_links_are_no_runs(store, tmp_path):
    (store.root / "Not A Run").mkdir()
    (store.root / "file").write_text("x")
    (store.root / "linked").symlink_to(tmp_path)
    assert store.list() == []
    for name in ("..", "../runs", "linked", "a/b", "", "nope"):
        with pytest.raises(StoreError, match="no such run"):
            store.get(name)


def test_live_run_shows_its_newest_figures(store):
    root = make_run(store, state=None)
    write_json(root / "process.json", {"attempt": 1})
    write_json(root / "state.json", {"state": "running", "step": 1, "total_steps": 9})
    with held_lock(root / "trainer.lock"), (root / "metrics.jsonl").open("a") as file:
        for step, loss in ((1, 3.0), (2, 2.0)):
            record = {"kind": "step", "step": step, "loss": loss, "t_s": float(step)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            run = store.get(root.name)
            assert (run.state, run.step, run.loss) == ("running", step, loss)
    assert store.get(root.name).state == "interrupted"


def test_the_base_models_loss_is_not_shown_as_the_adapters(store):
    root = make_run(store, state="stopped")
    write_json(root / "exit.json", {"state": "stopped", "steps": 3, "eval_loss": None})
    (root / "metrics.jsonl").write_text('{"kind": "eval", "step": 0, "eval_loss": 5.5}\n')
    assert store.get(root.name).eval_loss is None


def test_evaluations_behind_a_resume_do_not_count(store):
    root = make_run(store, state=None)
    rows = [
        {"kind": "eval", "step": 5, "eval_loss": 2.0},
        {"kind": "eval", "step": 9, "eval_loss": 0.1},
        {"kind": "resume", "step": 5, "from_step": 5},
        {"kind": "eval", "step": 9, "eval_loss": 1.5},
    ]  # fmt: skip
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = store.get(root.name)
    assert (run.eval_loss, run.best_step) == (1.5, 9)


def test_rename_and_notes_survive_a_restart(store):
    root = make_run(store)
    store.get(root.name)
    store.rename(root.name, "  A  better\nname ")
    store.set_notes(root.name, "<b>looks good</b>")
    for looked in (store, RunStore(store.workspace)):
        run = looked.get(root.name)
        assert (run.name, run.notes) == ("A better name", "<b>looks good</b>")
    with pytest.raises(StoreError, match="1 to 120"):
        store.rename(root.name, "   ")


def test_deleted_run_comes_back(store):
    root = make_run(store)
    before = store.get(root.name)
    token = store.delete(root.name)
    assert store.list() == [] and not root.exists()
    assert store.undo_delete(token) == root.name
    assert store.get(root.name) == before
    for wrong in (token, "../x", "a.b/../c", "..", f"{root.name}.zzzz"):
        with pytest.raises(StoreError):
            store.undo_delete(wrong)


def test_running_run_is_not_deleted(store):
    root = make_run(store, state=None)
    with held_lock(root / "trainer.lock"), pytest.raises(BusyError, match="Stop it first"):
        store.delete(root.name)
    assert root.exists()


def test_running_run_is_renamed_and_its_trainer_untouched(store):
    root = make_run(store, state=None)
    before = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
    with held_lock(root / "trainer.lock"):
        store.rename(root.name, "Another name")
        assert store.get(root.name).name == "Another name"
    changed = {name for name, held in before.items() if (root / name).read_bytes() != held}
    assert changed <= {"meta.json"}


def test_heldout_prompts_come_from_samples_then_from_the_data(store):
    root = make_run(store)
    asked = [{"role": "user", "content": "sampled?"}]
    row = {"step": 0, "messages": asked, "reference": "yes", "answer": "no"}
    (root / "samples.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n{torn")
    folder = store.workspace / "datasets" / "d1"
    folder.mkdir(parents=True)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (folder / "data.jsonl").write_text((json.dumps({"i": 1, "messages": turns}) + "\n") * 20)
    prompts = store.heldout_prompts(root.name)
    assert prompts[0] == {"messages": asked, "reference": "yes"}
    assert prompts[1] == {"messages": turns[:1], "reference": "a"} and len(prompts) == 2
    rows = [[{"role": "user", "content": f"q{n}"}, turns[1]] for n in range(20)]
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"i": n, "messages": row}) + "\n" for n, row in enumerate(rows))
    )
    write_json(folder / "dataset.json", {"held_out": {"rows": [4, 11]}})
    found = [prompt["messages"][0]["content"] for prompt in store.heldout_prompts(root.name)]
    assert found == ["sampled?", "q4", "q11"]
    shutil.rmtree(folder)
    assert len(store.heldout_prompts(root.name)) == 1


def test_thousand_runs_are_listed_quickly(store):
    for number in range(1000):
        make_run(store, f"20250101-{number:06d}-aaaa")
        if number % 100 == 0:
            (store.root / f"20250101-{number:06d}-aaaa" / "run.json").write_text("broken")
    began = time.perf_counter()
    assert len(store.list()) == 1000
    first_s = time.perf_counter() - began
    print(f"1,000 runs: {first_s * 1e3:.0f} ms")
    again_s = min(_timed(store.list) for _ in range(3))
    print(f"again: {again_s * 1e3:.0f} ms")
    assert first_s < 10 and again_s < first_s and again_s < 1.0


def _timed(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
