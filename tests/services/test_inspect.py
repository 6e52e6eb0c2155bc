"""InspectService with the real inspection process."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from studio.core.errors import ConfigError, ModelError, StudioError, TargetModulesError
from studio.core.token_stats import cut_at
from studio.services import inspect
from studio.services.child import ChildServer
from studio.services.inspect import InspectService
from studio.services.models import ModelStore
from tests.tiny_models import make_model_folder

PRESETS = Path(__file__).parents[2] / "presets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("workspace")
    inspector = InspectService(workspace, ModelStore(workspace, PRESETS))
    yield inspector
    inspector.close()


def test_answers_for_a_folder_and_for_a_catalogue_model(service, folder):
    assert service.phase() == "stopped"
    assert service.modules(str(folder))["architecture"] == "LlamaForCausalLM"
    assert service.phase() == "ready"
    far = service.modules("Qwen/Qwen3-8B")
    assert far["total_params"] == 8_190_735_360 and not far["has_chat_template"]
    adapter = service.adapter("Qwen/Qwen3-8B", {"r": 16})
    assert adapter["trainable_params"] == 43_646_976
    text = service.render(str(folder), {"text": "The quick"}, {"max_length": 64})
    assert text["text"].startswith("The quick")


def test_repeated_question_asks_nobody_until_the_file_changes(service, folder):
    service.adapter(str(folder), {"r": 4})
    service.close()
    assert service.adapter(str(folder), {"r": 4})["trainable_params"] > 0
    assert service.phase() == "stopped"
    os.utime(folder / "config.json", ns=(5, 5))
    assert service.adapter(str(folder), {"r": 4})["trainable_params"] > 0
    assert service.phase() != "stopped"


def test_refusals_keep_their_type(service, folder, tmp_path):
    with pytest.raises(TargetModulesError, match="q_proj"):
        service.adapter(str(folder), {"target_modules": ["nothing"]})
    with pytest.raises(ConfigError, match=r"lora\.r"):
        service.adapter(str(folder), {"r": 0})
    with pytest.raises(ModelError):
        service.modules(str(tmp_path))
    with pytest.raises(ModelError, match="Download the model first"):
        service.render("Qwen/Qwen3-8B", {"text": "a"}, {})


def write_rows(folder: Path, count: int) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"i": i + 1, "line": i + 1, "messages": [
            {"role": "user", "content": f"question {i} " * (i % 7 + 1)},
            {"role": "assistant", "content": f"answer {i}"},
        ]}) for i in range(count)
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_token_statistics_come_with_progress_and_are_kept(service, folder, tmp_path):
    rows = write_rows(tmp_path / "rows", 3000)
    said: list[tuple[float | None, str]] = []
    options = {"max_length": 32, "loss_on": "assistant"}
    summary = service.token_stats(
        rows, str(folder), options, progress=lambda *step: said.append(step)
    )
    assert summary.rows == 3000 and summary.refused == 0
    assert said and all(frac is None or 0 <= frac <= 1 for frac, _ in said)
    cut = cut_at(summary, 32)
    assert cut.rows_cut == len(summary.first_rows["cut"]) > 0 or cut.rows_cut > 1000
    line = json.loads((rows / "data.jsonl").read_text().splitlines()[6])
    shown = service.render(str(folder), line, options)
    assert summary.lengths.at[0] <= shown["total_tokens"] <= summary.longest
    assert shown["end_token"]["verdict"] in ("ok", "cut", "nothing_learned")
    before = len(said)
    assert service.token_stats(rows, str(folder), options) == summary
    assert len(said) == before
    [entry] = (service._tokens_folder).iterdir()
    assert (entry / "manifest.json").is_file()


def test_counting_tokens_can_be_cancelled_and_previews_go_on(service, folder, tmp_path):
    rows = write_rows(tmp_path / "rows", 60_000)
    kept = len(list(service._tokens_folder.glob("*"))) if service._tokens_folder.exists() else 0
    seen: list[str] = []

    def progress(frac: float | None, text: str) -> None:
        if frac:  # it is at work: a preview is answered by the other process meanwhile
            seen.append(service.render(str(folder), {"text": f"a {len(seen)}"}, {})["text"])

    with pytest.raises(StudioError, match="cancelled"):
        service.token_stats(rows, str(folder), {}, progress=progress, cancelled=lambda: bool(seen))
    assert seen
    assert len(list(service._tokens_folder.glob("*"))) == kept


def test_a_row_of_4096_tokens_is_shown_within_300_ms(service, folder):
    times = []
    for attempt in range(7):
        text = f"{attempt} The quick brown fox jumps over the lazy dog. " * 400
        began = time.perf_counter()
        answer = service.render(str(folder), {"text": text}, {"max_length": 2048})
        times.append(time.perf_counter() - began)
        assert answer["total_tokens"] > 4096 == len(answer["tokens"][:4096])
        assert set(answer["tokens"][0]) == {"id", "text", "trained", "special", "cut"}
    assert sorted(times)[2] < 0.3, times  # the best half: others may keep the processor


@pytest.fixture
def deaf(tmp_path, monkeypatch):
    """A service whose children hang on demand, and whose patience is short."""
    monkeypatch.setattr(inspect, "LIMITS_S", {"/render": 1.0})
    monkeypatch.setattr(inspect, "STUCK_S", 1.0)
    monkeypatch.setattr(inspect, "CANCEL_LIMIT_S", 0.5)
    children = {
        name: ChildServer("tests.services.deaf_inspector", name=name, folder=tmp_path / "tmp")
        for name in ("child", "counter")
    }
    inspector = InspectService(tmp_path, ModelStore(tmp_path, PRESETS), **children)
    yield inspector, children["child"], children["counter"]
    inspector.close()


def test_a_child_that_hangs_is_ended_and_the_next_question_answered(deaf, folder, monkeypatch):
    inspector, child, _ = deaf
    first = inspector.render(str(folder), {"text": "a"}, {})["pid"]
    with pytest.raises(StudioError, match=r"Showing a row as tokens took longer than 1 s.*ended"):
        inspector.render(str(folder), {"hangs": True}, {})
    assert not child.is_alive()
    second = inspector.render(str(folder), {"text": "b"}, {})["pid"]
    assert second != first == inspector.render(str(folder), {"text": "a"}, {})["pid"]
    os.kill(second, signal.SIGSTOP)  # it does not even hear SIGTERM
    monkeypatch.setattr(inspect, "LOADING_LIMIT_S", 0.5)  # for all we know, it may be loading
    with pytest.raises(StudioError, match="was ended"):
        inspector.render(str(folder), {"text": "c"}, {})
    assert not child.is_alive()


def test_a_count_that_stands_still_is_ended(deaf, folder, tmp_path):
    inspector, _, counter = deaf
    rows, told = write_rows(tmp_path / "rows", 10), []
    with pytest.raises(StudioError, match="counting the tokens took longer than 1 s"):
        inspector.token_stats(rows, str(folder), {}, progress=lambda *seen: told.append(seen))
    assert not counter.is_alive() and told[-1] == (0.3, "Tokenizing: 3 of 10 rows")


def test_a_deaf_count_is_cancelled_all_the_same(deaf, folder, tmp_path, monkeypatch):
    inspector, _, counter = deaf
    monkeypatch.setattr(inspect, "STUCK_S", 60.0)
    rows = write_rows(tmp_path / "rows", 10)
    with pytest.raises(StudioError, match="was cancelled"):
        inspector.token_stats(rows, str(folder), {}, cancelled=lambda: counter.is_alive())
    assert not counter.is_alive()
