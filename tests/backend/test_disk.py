"""A disk that refuses while a run trains: it goes on or pauses, and says nothing that is not so."""

import errno
import json
import os
import shutil

import pytest

from studio.backend import callbacks, checkpoints, keeping, schedule, trainer, training
from studio.backend import journal as journal_module
from studio.backend.inbox import Inbox
from studio.backend.trainer import begin, conduct
from studio.core.runs import derive_state
from tests.backend.tiny import losses, records, same_tensors, tensors, train

OFTEN = {"train": {"max_steps": 8, "save_steps": 1, "eval_steps": 100}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(schedule, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(callbacks, "_BETWEEN_TRIES_S", 0.0)
    monkeypatch.setattr(training, "KEEP_PATIENCE_S", 0.0)
    monkeypatch.setattr(trainer, "END_PATIENCE_S", 0.0)


def refuse(monkeypatch, module, name, times, code=errno.ENOSPC):
    """Let the first calls that `times` (of the call's number and arguments) is true for fail."""
    real, calls = getattr(module, name), [0]

    def failing(*args, **kwargs):
        calls[0] += 1
        if times(calls[0], *args):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    return calls


def warnings(paths):
    return " ".join(r["text"] for r in records(paths, "warning"))


def saved(paths):
    return sorted(int(p.name[5:]) for p in paths.checkpoints.glob("step-*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_refused_save_is_told_and_tried_again_and_the_run_goes_on(make_run, monkeypatch, code):
    paths = make_run(OFTEN)
    refuse(monkeypatch, checkpoints, "sync_tree", lambda n, *_: n <= 2, code)
    result = train(paths)
    assert result["state"] == "done"
    assert "The checkpoint of step 1 was not saved" in warnings(paths)
    assert "The checkpoint of step 2 was not saved" in warnings(paths)
    assert str(paths.checkpoints / "step-1") in warnings(paths)
    assert " free" in warnings(paths)
    assert saved(paths) == [6, 7]
    assert not list(paths.checkpoints.glob(".*"))


def test_a_refused_save_waits_longer_each_time(make_run, monkeypatch):
    monkeypatch.setattr(schedule, "FIRST_RETRY_S", 1000.0)
    paths = make_run(OFTEN)
    refuse(monkeypatch, checkpoints, "sync_tree", lambda n, *_: n == 1)
    assert train(paths)["state"] == "done"
    assert "step 1 was not saved" in warnings(paths)
    assert saved(paths) == []


def test_records_that_cannot_be_written_pause_the_run_and_nothing_is_lost(make_run, monkeypatch):
    whole, paths = make_run(OFTEN), make_run(OFTEN)
    train(whole)
    monkeypatch.setattr(callbacks, "PAUSE_AFTER_S", 0.0)
    metrics = os.open(paths.metrics, os.O_RDWR | os.O_CREAT)
    real, refusing = os.write, []

    def write(descriptor, data):
        ours = os.path.samestat(os.fstat(descriptor), os.fstat(metrics))
        if ours and (refusing or b'"kind": "step"' in bytes(data) and b'"step": 4,' in bytes(data)):
            refusing.append(1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        result = train(paths)
    os.close(metrics)
    assert refusing
    assert result["state"] == derive_state(paths, alive=False) == "paused"
    text = result["error"]["text"]
    assert "The run was paused. No space left on the disk that holds" in text
    assert str(paths.metrics) in text and " free" in text and "resume" in text
    assert result["verdict"].endswith(text)
    assert "permission" not in text
    assert result["cause"].startswith("The run was paused")
    assert any("records of this attempt are lost" in text for text in result["warnings"])
    assert train(paths)["state"] == "done"
    assert {k: v for k, v in losses(whole).items() if k in losses(paths)} == losses(paths)
    assert same_tensors(tensors(whole.adapter), tensors(paths.adapter))


def test_a_save_with_records_that_cannot_be_synced_pauses_at_once(make_run, monkeypatch):
    paths = make_run({"train": {"max_steps": 20, "save_steps": 5, "eval_steps": 100}})
    refuse(monkeypatch, journal_module, "sync_file", lambda *_: True, errno.EIO)
    result = train(paths)
    assert (result["state"], result["steps"]) == ("paused", 5)
    assert "reports an error" in result["error"]["text"]


def test_without_exit_json_a_finished_run_is_interrupted_and_never_done(make_run, monkeypatch):
    paths = make_run()
    real = trainer.write_json

    def write_json(path, value, **options):
        if path == paths.exit_json:
            raise trainer.store_error(path, OSError(errno.ENOSPC, "full"))
        real(path, value, **options)

    monkeypatch.setattr(trainer, "write_json", write_json)
    attempt = begin(paths, Inbox(paths))
    assert conduct(attempt) == "interrupted"
    assert derive_state(paths, alive=False) == "interrupted"


def test_all_files_refused_at_the_end_of_a_failed_run_still_end_in_exit_json(make_run, monkeypatch):
    """What broke the run was the disk; the journal meets it again, and exit.json is written."""
    paths = make_run()

    def broken(*_):
        for lines in (attempt.journal._metrics, attempt.journal._samples):
            os.close(lines._descriptor)
            lines._descriptor = os.open("/dev/full", os.O_WRONLY)
        raise RuntimeError("PytorchStreamWriter failed") from OSError(errno.ENOSPC, "full")

    attempt = begin(paths, Inbox(paths))
    monkeypatch.setattr(trainer, "run_attempt", broken)
    assert conduct(attempt) == "paused"
    assert json.loads(paths.exit_json.read_text())["error"]["type"] == "StoreError"


@pytest.mark.parametrize("folder", ["checkpoints", "adapter", "commands"])
def test_a_deleted_folder_is_made_anew_or_missed_without_harm(make_run, monkeypatch, folder):
    paths = make_run({"train": {"max_steps": 8, "save_steps": 2, "eval_steps": 2}})
    real = callbacks.RunCallback.on_step_end

    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 3:
            shutil.rmtree(paths.root / folder)
        real(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.RunCallback, "on_step_end", on_step_end)
    assert train(paths)["state"] == "done"
    assert saved(paths)[-1] == 6
    assert (paths.adapter / "adapter_model.safetensors").is_file()


def test_a_deleted_run_folder_ends_the_trainer_and_is_not_made_anew(make_run, monkeypatch):
    monkeypatch.setattr(callbacks, "PAUSE_AFTER_S", 0.0)
    paths = make_run({"train": {"max_steps": 5000, "save_steps": 5000, "eval_steps": 5000}})
    real = callbacks.RunCallback.on_step_end

    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 3:
            shutil.rmtree(paths.root)
        real(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.RunCallback, "on_step_end", on_step_end)
    attempt = begin(paths, Inbox(paths))
    attempt.telemetry._interval_s = 0.05
    assert conduct(attempt) == "interrupted"
    assert not paths.root.exists()


def test_an_order_is_obeyed_once_though_its_answer_cannot_be_written(make_run, monkeypatch):
    paths = make_run()
    (paths.commands / "0001-save.json").write_text("{}")
    inbox = Inbox(paths)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O")))
        assert not inbox.poll()
        assert inbox.take_save()
        assert not inbox.poll()
        assert not inbox.take_save()
    assert not list(paths.commands.glob("*.ack"))
    inbox.poll()
    assert list(paths.commands.glob("*.ack"))


def test_an_adapter_that_cannot_be_kept_pauses_a_run_that_would_be_done(make_run, monkeypatch):
    paths = make_run({"data": {"val_frac": 0.0}, "train": {"save_steps": 4}})
    with monkeypatch.context() as patch:
        refuse(patch, keeping, "replace_folder", lambda *_: True)
        real = keeping.replace_folder

        def told(staged, target):
            try:
                real(staged, target)
            except OSError as error:
                raise checkpoints.store_error(target, error) from error

        patch.setattr(keeping, "replace_folder", told)
        result = train(paths)
    assert (result["state"], result["adapter_dir"]) == ("paused", None)
    assert "goes on from step 4" in result["error"]["text"]
    assert train(paths)["state"] == "done"
    assert (paths.adapter / "adapter_model.safetensors").is_file()


def test_a_best_adapter_that_cannot_be_kept_leaves_the_one_before(make_run, monkeypatch):
    paths = make_run({"train": {"max_steps": 6, "eval_steps": 2, "save_steps": 100}})
    kept = []
    real = keeping.write_adapter

    def write_adapter(model, folder):
        kept.append(1)
        if len(kept) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(model, folder)

    monkeypatch.setattr(keeping, "write_adapter", write_adapter)
    result = train(paths)
    assert result["state"] == "done"
    assert result["kept_step"] == result["best_step"] == 2
    assert json.loads((paths.adapter / keeping.NOTE).read_text())["step"] == 2
    assert "could not be kept" in warnings(paths)


@pytest.mark.parametrize("refused", [(3,), (3, 4), (3, 4, 5), (3, 4, 5, 6, 7, 8)])
def test_a_run_is_never_done_without_an_adapter(make_run, monkeypatch, refused):
    """Found by the trials of I/O faults: with the second of the two renames refused, the old
    adapter stood aside under another name and the run was done with none."""
    paths = make_run({"train": {"max_steps": 6, "eval_steps": 2, "save_steps": 100}})
    real, calls = os.rename, []

    def rename(source, target, **kwargs):
        if "adapter" in str(target):
            calls.append(1)
            if len(calls) in refused:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **kwargs)

    monkeypatch.setattr(checkpoints.os, "rename", rename)
    result = train(paths)
    if len(refused) > 3:  # nothing could be kept to the end: paused, and whole after a resume
        assert result["state"] == "paused"
        result = train(paths)
    note = json.loads((paths.adapter / keeping.NOTE).read_text())
    assert (paths.adapter / "adapter_model.safetensors").is_file()
    assert result["state"] == "done"
    assert result["kept_step"] == note["step"]
    assert "could not be kept" in warnings(paths)
    assert not list(paths.root.glob(".old-*"))


def test_a_stop_whose_save_is_refused_says_where_a_resume_begins(make_run, monkeypatch):
    paths = make_run({"train": {"max_steps": 20, "save_steps": 2, "eval_steps": 100}})
    refuse(monkeypatch, checkpoints, "sync_tree", lambda n, *_: n > 1)
    result = train(paths, {(3, 0): "stop"})
    assert (result["state"], result["steps"]) == ("stopped", 3)
    assert "The checkpoint of step 3 was not saved" in result["error"]["text"]
    assert "A resume goes on from step 2" in result["error"]["text"]


def test_a_disk_that_refuses_before_the_first_step_pauses_too(make_run, monkeypatch):
    paths = make_run()
    attempt = begin(paths, Inbox(paths))
    monkeypatch.setattr(
        trainer, "run_attempt", lambda _: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only"))
    )
    assert conduct(attempt) == "paused"


def test_an_attempt_that_could_not_open_its_files_says_so(make_run, monkeypatch):
    paths = make_run()
    monkeypatch.setattr(Inbox, "listen", lambda self: None)
    paths.metrics.mkdir()
    assert trainer.main([str(paths.root)]) == 1
    assert json.loads(paths.exit_json.read_text())["state"] == "failed"
    paths.metrics.rmdir()
    refuse(monkeypatch, journal_module.os, "open", lambda n, path, *_: path == paths.metrics)
    assert trainer.main([str(paths.root)]) == 0
    assert json.loads(paths.exit_json.read_text())["state"] == "paused"
