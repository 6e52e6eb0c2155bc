"""InspectService with the real inspection process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from studio.core.errors import ConfigError, ModelError, TargetModulesError
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
