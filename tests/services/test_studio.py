"""The parts wired on a real workspace: who holds it, what a second studio may do, what closes."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest

from studio.core.config_io import build_config
from studio.core.errors import BusyError, PresetError, StoreError
from studio.services.settings import Settings, choose_workspace, prepare_workspace
from studio.services.studio import build_studio


@pytest.fixture
def settings(tmp_path):
    return Settings(workspace=tmp_path / "workspace", port=7999)


def test_second_studio_says_who_holds_the_workspace_and_reads_only(settings):
    first = build_studio(settings)
    try:
        second = build_studio(dataclasses.replace(settings, port=8000))
        assert second.settings.read_only and not first.settings.read_only
        assert str(os.getpid()) in second.notice and "http://127.0.0.1:7999" in second.notice
        config = build_config({"data": {"path": "sample:faq"}})
        for forbidden in (
            lambda: second.supervisor.start(config, request_id="x"),
            lambda: second.supervisor.resume("x"),
            lambda: second.supervisor.command("x", "stop"),
        ):
            with pytest.raises(BusyError, match="read-only"):
                forbidden()
        second.close()
        assert second.runs.list() == []
    finally:
        first.close()
    third = build_studio(settings)
    assert not third.settings.read_only and third.notice is None
    third.close()


def test_close_ends_the_thread_and_may_be_called_twice(settings):
    studio = build_studio(settings)
    assert "supervisor" in {thread.name for thread in threading.enumerate()}
    studio.close()
    studio.close()
    assert "supervisor" not in {thread.name for thread in threading.enumerate()}


def test_workspace_is_private_to_the_user(settings):
    build_studio(settings).close()
    for folder in (settings.workspace, settings.tmp, settings.workspace / "runs"):
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_workspace_that_others_could_read_is_closed_with_a_word(settings, tmp_path, caplog):
    outside = tmp_path / "shared-models"
    outside.mkdir(mode=0o755)
    for name in ("", "runs", "access"):
        (settings.workspace / name).mkdir(exist_ok=True)
        (settings.workspace / name).chmod(0o755)
    (settings.workspace / "models").symlink_to(outside)
    token = settings.workspace / "access" / "owner.token"
    token.write_text("secret")
    token.chmod(0o644)
    prepare_workspace(settings.workspace)
    for path in (settings.workspace, settings.workspace / "runs", settings.workspace / "access"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert token.stat().st_mode & 0o777 == 0o600 and outside.stat().st_mode & 0o777 == 0o755
    assert "could be read by other users" in caplog.text
    caplog.clear()
    prepare_workspace(settings.workspace)
    assert caplog.text == ""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_folder_of_everybody_is_no_workspace(settings):
    settings.workspace.mkdir(parents=True)
    settings.workspace.chmod(0o1777)
    with pytest.raises(StoreError, match="shared by all users"):
        prepare_workspace(settings.workspace)
    assert settings.workspace.stat().st_mode & 0o1777 == 0o1777


def test_leftovers_of_killed_processes_go_after_a_day(settings):
    prepare_workspace(settings.workspace)
    for name in ("new-run", "uploads", "fresh"):
        (settings.tmp / name).mkdir()
    (settings.tmp / "new-run" / "run.json").touch()
    for name in ("new-run", "uploads"):
        os.utime(settings.tmp / name, (0, 0))
    build_studio(settings).close()
    assert {entry.name for entry in settings.tmp.iterdir()} >= {"uploads", "fresh"}
    assert not (settings.tmp / "new-run").exists()


def test_wrong_preset_is_told_before_the_workspace_is_taken(settings, tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "bad.yaml").write_text("lora: {x: 1}")
    with pytest.raises(PresetError, match=r"bad\.yaml"):
        build_studio(dataclasses.replace(settings, presets_dir=tmp_path / "presets"))
    studio = build_studio(settings)
    assert not studio.settings.read_only
    studio.close()


def test_workspace_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="--workspace"):
            prepare_workspace(path)

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("studio.services.settings.tempfile.TemporaryFile", refuse)
    with pytest.raises(StoreError, match=r"cannot be written.*Permission denied"):
        prepare_workspace(tmp_path / "fine")


def test_workspace_comes_from_argument_environment_or_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_workspace(tmp_path / "a", {"LORA_STUDIO_WORKSPACE": "b"}) == tmp_path / "a"
    assert choose_workspace(None, {"LORA_STUDIO_WORKSPACE": "b"}) == tmp_path / "b"
    assert choose_workspace(None, {}) == tmp_path / "workspace"
