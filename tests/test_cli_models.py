"""`python -m studio models ...` against the fake hub."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from studio.cli_models import models_app
from studio.core.errors import HubError
from studio.services import hub_token
from tests.services.fake_hub import FakeModel, fake_hub
from tests.services.test_hub import FILES, ID

TOKEN = "hf_" + "z" * 20


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.models[ID] = FakeModel(dict(FILES))
        yield server


def run(*arguments: str, typed: str = ""):
    return CliRunner().invoke(models_app, list(arguments), input=typed, catch_exceptions=False)


def test_download_tells_size_licence_and_place(hub, tmp_path):
    result = run("download", ID, "--workspace", str(tmp_path), "--json")
    assert result.exit_code == 0
    assert "licence apache-2.0" in result.stderr and "free" in result.stderr
    record = json.loads(result.stdout)
    assert record["commit"] == hub.models[ID].commit and record["path"].endswith("tiny--llama")
    listed = json.loads(run("list", "--workspace", str(tmp_path), "--json").stdout)["models"]
    assert next(model for model in listed if model["id"] == ID)["local"] is True


def test_list_as_text_names_starter_and_catalogue(hub, tmp_path):
    text = run("list", "--workspace", str(tmp_path)).stdout
    assert text.startswith("starter") and "Qwen/Qwen3-4B-Instruct-2507" in text


def test_unknown_model_is_raised_for_the_one_line(hub, tmp_path):
    with pytest.raises(HubError, match="no such model"):
        run("download", "tiny/none", "--workspace", str(tmp_path))


def test_token_comes_from_stdin_and_can_be_removed(hub, tmp_path):
    result = run("token", "--workspace", str(tmp_path), typed=TOKEN + "\n")
    assert result.exit_code == 0 and hub_token.read_token() == TOKEN
    assert TOKEN not in result.output
    assert run("token", "--remove", "--workspace", str(tmp_path)).exit_code == 0
    assert hub_token.read_token() is None
    assert run("token", "--workspace", str(tmp_path), typed="\n").exit_code == 2


def test_help_mentions_every_command():
    text = run("--help").stdout
    assert all(name in text for name in ("list", "download", "token"))
