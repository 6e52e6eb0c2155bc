"""`python -m studio chat` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.cli import main
from tests.tiny_models import make_model_folder, make_run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
RUN = "20260102-000000-0001"
QUESTION = "Can I change my order?"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    base = make_model_folder(folder / "base", tie_word_embeddings=False)
    make_run(folder / "runs", base)
    return folder


def ask(capsys, workspace: Path, *arguments: str) -> tuple[int, str, str]:
    status = main(["chat", *arguments, "--workspace", str(workspace)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_adapter_and_base_answer_differently(capsys, workspace):
    import psutil

    status, out, err = ask(capsys, workspace, "latest", QUESTION, "--max-tokens", "12")
    assert status == 0 and out.strip()
    assert "Loading libraries" in err and "Cut at 12 tokens" in err
    status, text, _ = ask(
        capsys, workspace, RUN, QUESTION, "--max-tokens", "12", "--base", "--json"
    )
    record = json.loads(text)
    assert status == 0 and record["which"] == "base" and record["run_id"] == RUN
    assert record["tokens"] == 12 and record["truncated"] is True
    assert record["answer"] != out.rstrip("\n")
    children = psutil.Process().children(recursive=True)
    assert not [p for p in children if "chat_server" in " ".join(p.cmdline())]


def test_unknown_run_and_wrong_value_are_one_line_and_exit_1(capsys, workspace):
    status, out, err = ask(capsys, workspace, "20200101-000000-0000", QUESTION)
    assert status == 1 and out == ""
    assert err.startswith("Error: ") and err.count("\n") == 1 and "no such run" in err
    status, _, err = ask(capsys, workspace, RUN, QUESTION, "--temperature", "9")
    assert status == 1 and err.count("\n") == 1 and "temperature=9.0" in err
