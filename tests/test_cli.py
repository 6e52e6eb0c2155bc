"""The command line: arguments, exit codes, one JSON object, Ctrl-C. With a torch-free trainer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from studio.cli import locate_data, main
from studio.core.config_io import build_config
from studio.core.runs import read_json
from studio.services import launcher
from studio.services.launcher import recorded_process
from studio.services.runs import create_run
from studio.services.store import RunStore
from tests.fakes.parts import build_parts
from tests.waiting import wait_until

FAKE_TRAINER = Path(__file__).parent / "fakes" / "trainer.py"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace whose data set and model are fakes and whose trainer has no torch."""
    folder = tmp_path / "workspace"
    parts = types.SimpleNamespace(build_parts=lambda settings: build_parts(settings.workspace))
    monkeypatch.setitem(sys.modules, "studio.services.studio", parts)
    monkeypatch.setattr(launcher, "TRAINER_COMMAND", (sys.executable, str(FAKE_TRAINER)))
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("data: {path: tiny.jsonl}\n")
    Path("rows.parquet").write_bytes(b"PAR1\xff\xfe")
    return folder


@pytest.fixture
def run_cli(workspace, capfd):
    def run(*arguments, json_wanted=True):
        extra = ["--workspace", str(workspace)] + (["--json"] if json_wanted else [])
        code = main([*arguments, *extra])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_train_ends_with_one_json_object(run_cli, workspace):
    code, out, err = run_cli("train", "config.yaml", "--set", "lora.r=4", "--name", "Mine")
    result = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    wanted = {"run_id", "state", "steps", "train_loss", "eval_loss", "eval_loss_first", "verdict",
              "tokens_per_s", "peak_vram_bytes", "peak_rss_bytes", "time_to_first_step_s",
              "adapter_dir"}  # fmt: skip
    assert wanted <= result.keys()
    assert (result["state"], result["steps"], result["eval_loss"]) == ("done", 5, 1.0)
    assert (Path(result["adapter_dir"]) / "adapter_config.json").exists()
    run = RunStore(workspace).get(result["run_id"])
    assert run.config["lora"]["r"] == 4 and run.name == "Mine"
    assert "5/5" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "gone.yaml"], "config file"),
        (["train", "rows.parquet"], "not UTF-8 text"),
        (["train", "config.yaml", "--set", "lora.r=0"], "choose a whole number 1 to 512"),
        (["train", "config.yaml", "--set", "lora.nonsense=0"], "not a setting"),
        (["train", "config.yaml", "--set", "train.learning_rate=.nan"], "learning_rate"),
        (["train", "config.yaml", "--set", "data.path=other.csv"], "no such file"),
        (["train", "config.yaml", "--set", "model.id=nobody/x"], "no such model"),
        (["train", "config.yaml", "--set", "lora"], "section.key=value"),
        (["train", "config.yaml", "--warm-start", "nobody@x"], "RUN@STEP"),
        (["runs", "show", "nope"], "no such run"),
        (["runs", "stop"], "0 runs are in progress"),
    ],
)
def test_bad_input_is_one_line_and_code_1(run_cli, arguments, text):
    code, out, err = run_cli(*arguments)
    assert (code, out) == (1, "") and text in err
    assert err.count("\n") == 1 and "Traceback" not in err


def test_usage_errors_have_code_2(run_cli):
    assert run_cli("train")[0] == 2
    assert run_cli("runs", "explode")[0] == 2
    assert run_cli("train", "config.yaml", "--what")[0] == 2


def test_failed_start_has_code_1_and_the_trainers_words(run_cli, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "crash")
    code, out, err = run_cli("train", "config.yaml")
    assert code == 1 and json.loads(out)["state"] == "failed"
    assert "no such module: torch" in err and json.loads(out)["adapter_dir"] is None


def interrupt_at_step(workspace, times, signal_number=signal.SIGINT):
    """Sends Ctrl-C to this process once the run is under way, and again once it is stopping."""

    def watch():
        store = RunStore(workspace)
        for states in (("running",), ("stopping", "running"))[:times]:
            wait_until(lambda s=states: [r for r in store.list() if r.state in s and r.step >= 2])
            os.kill(os.getpid(), signal_number)
            wait_until(lambda: any(store.root.glob("*/commands/*.json")), what="the command")

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_stops(run_cli, workspace, monkeypatch, signal_number):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    # A shell that starts the tests in the background lets them ignore Ctrl-C: not so here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = interrupt_at_step(workspace, 1, signal_number)
        code, out, err = run_cli("train", "config.yaml")
        thread.join()
        after = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    result = json.loads(out)
    assert (code, result["state"]) == (130, "stopped") and "Saving and stopping" in err
    assert Path(result["adapter_dir"]).is_dir()
    assert after is signal.default_int_handler


def test_second_ctrl_c_ends_a_deaf_trainer(run_cli, workspace, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    monkeypatch.setenv("FAKE_MODE", "deaf")
    monkeypatch.setattr("studio.services.foreground.STOP_GRACE_S", 0.3)
    thread = interrupt_at_step(workspace, 2)
    code, out, err = run_cli("train", "config.yaml")
    thread.join()
    assert (code, json.loads(out)["state"]) == (1, "interrupted") and "Ending now" in err


@pytest.mark.parametrize("mode", ["deaf", ""])
def test_stop_now_from_another_terminal(run_cli, workspace, monkeypatch, mode):
    """Without a page nobody else would end a trainer that obeys nothing."""
    monkeypatch.setenv("FAKE_STEPS", "100000")
    monkeypatch.setenv("FAKE_MODE", mode)
    monkeypatch.setattr(launcher, "STOP_GRACE_S", 0.3 if mode else 60.0)
    paths = build_parts_and_run(workspace)
    trainer = launcher.LocalLauncher().start(paths)  # by somebody who does not look after it
    try:
        store = RunStore(workspace)
        wait_until(lambda: store.get(paths.id).step >= 2, what="step 2")
        threading.Thread(target=trainer.wait, daemon=True).start()
        code, out, _ = run_cli("runs", "stop", "--now")
        assert code == 0 and json.loads(out) == {
            "run_id": paths.id, "command": "stop_now", "killed": bool(mode),
        }  # fmt: skip
        wait_until(lambda: trainer.poll() is not None, what="the end of the trainer")
        run = store.get(paths.id)
        assert run.state == ("interrupted" if mode else "stopped")
        if mode:
            assert "did not end by itself after Stop now" in run.error["text"]
    finally:
        trainer.kill()
        trainer.wait()


def build_parts_and_run(workspace):
    """A queued run that no page knows of."""
    config = build_config({"data": {"path": "tiny.jsonl"}})
    return create_run(build_parts(workspace), config, name="Deaf", foreground=True)


def test_pause_from_another_terminal_and_resume(run_cli, workspace, monkeypatch):
    monkeypatch.setenv("FAKE_STEPS", "100000")
    store = RunStore(workspace)
    paths_of = store.paths

    def pause():
        wait_until(lambda: [r for r in store.list() if r.state == "running" and r.step >= 2])
        assert main(["runs", "pause", "--workspace", str(workspace)]) == 0

    thread = threading.Thread(target=pause)
    thread.start()
    code, out, _ = run_cli("train", "config.yaml", json_wanted=False)
    thread.join()
    assert code == 130 and "paused" in out
    (run,) = store.list()
    monkeypatch.setenv("FAKE_STEPS", str(run.step + 2))
    code, out, _ = run_cli("runs", "resume", run.id)
    result = json.loads(out)
    assert (code, result["state"], result["steps"]) == (0, "done", run.step + 2)
    assert read_json(paths_of(run.id).exit_json)["attempt"] == 2
    assert recorded_process(paths_of(run.id)).is_alive() is False
    code, _, err = run_cli("runs", "resume", run.id)
    assert code == 1 and "The run is done" in err


def test_what_the_plan_warns_of_is_said_before_the_training(run_cli, workspace):
    _, out, err = run_cli("train", "config.yaml", "--set", "data.val_frac=0")
    assert "Warning: No row is held out, so overfitting cannot be seen" in err
    record = read_json(RunStore(workspace).paths(json.loads(out)["run_id"]).run_json)
    assert record["warnings"][0].startswith("No row is held out")


def test_runs_are_listed_shown_and_deleted(run_cli, workspace):
    assert "No runs yet" in run_cli("runs", "list", json_wanted=False)[1]
    run_id = json.loads(run_cli("train", "config.yaml")[1])["run_id"]
    (row,) = json.loads(run_cli("runs", "list")[1])["runs"]
    assert (row["id"], row["state"]) == (run_id, "done")
    assert run_id in run_cli("runs", "list", json_wanted=False)[1]
    assert json.loads(run_cli("runs", "show", run_id)[1])["config"]["lora"]["r"] == 16
    assert "state: done" in run_cli("runs", "show", run_id, json_wanted=False)[1]
    code, out, _ = run_cli("runs", "delete", run_id)
    assert code == 0 and Path(json.loads(out)["trash"]).is_dir()
    assert json.loads(run_cli("runs", "list")[1]) == {"runs": []}
    assert run_cli("runs", "stop", "nope")[0] == 1


def test_unwritable_workspace_is_one_sentence(capfd, tmp_path):
    (tmp_path / "file").write_text("x")
    assert main(["runs", "list", "--workspace", str(tmp_path / "file")]) == 1
    assert main(["runs", "list", "--workspace", str(tmp_path / "file" / "below")]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all("workspace" in line for line in lines)


def test_runs_are_shown_on_a_disk_that_takes_no_writes(
    run_cli, workspace, tmp_path, capfd, monkeypatch
):
    run_id = json.loads(run_cli("train", "config.yaml")[1])["run_id"]
    opened = os.open

    def refuse(path, flags=0, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **options)

    def refuse_folder(path, *rest, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    capfd.readouterr()
    with monkeypatch.context() as disk:
        disk.setattr(os, "open", refuse)
        disk.setattr(os, "mkdir", refuse_folder)
        disk.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        codes = [
            main([*words, "--workspace", str(workspace)])
            for words in (["runs", "list"], ["runs", "show", run_id], ["runs", "delete", run_id])
        ]
    told = capfd.readouterr()
    assert run_id in told.out and "state: done" in told.out
    assert told.err.count("cannot be written to; it is shown read-only") == 2
    assert codes == [0, 0, 1] and "The workspace cannot be written" in told.err


def test_relative_data_is_looked_for_here_then_beside_the_config(tmp_path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
        (folder / "both.csv").write_text("x")
    (beside / "only.csv").write_text("x")
    monkeypatch.chdir(here)

    def located(path):
        return locate_data(build_config({"data": {"path": path}}), beside).data.path

    assert located("both.csv") == str(here / "both.csv")
    assert located("only.csv") == str(beside / "only.csv")
    assert located("sample:faq") == "sample:faq" and located("gone.csv") == "gone.csv"


def test_command_line_starts_without_gradio_and_torch(repo_root):
    code = (
        "import sys; from studio.cli import main; main(['runs', '--help']);"
        "bad = {'gradio', 'torch', 'transformers', 'fastapi', 'pandas'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "pause" in done.stdout
