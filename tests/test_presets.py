"""The presets in the repository, and what a wrong preset file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.core.config_io import dump_config, load_config
from studio.core.errors import PresetError
from studio.core.presets import default_of, load_preset, load_presets

PRESETS = Path(__file__).resolve().parent.parent / "presets"
FILES = sorted(PRESETS.glob("*.yaml"))


def test_at_most_eight_goals_with_the_first_run_first():
    presets = load_presets(PRESETS)
    assert 5 <= len(presets) <= 8 and presets[0].id == "first-run"
    assert {"style", "facts", "classify", "long-texts"} <= {preset.id for preset in presets}
    assert len({preset.title for preset in presets}) == len(presets)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_preset_holds_known_keys_that_differ_from_the_defaults(path):
    preset = load_preset(path)
    config = dump_config(preset.config())
    stated = [(s, k, v) for s, values in preset.values.items() for k, v in values.items()]
    assert stated
    for section, key, value in stated:
        assert config[section][key] == value != default_of(f"{section}.{key}")
    assert load_config(path) == preset.config()  # `train` takes the file as it is
    assert len(preset.why) > 40 and len(preset.source) > 20


def test_first_run_is_short_and_needs_no_network():
    config = load_preset(PRESETS / "first-run.yaml").config()
    assert config.model.id == "starter" and config.data.path.startswith("sample:")
    assert 1 <= config.train.max_steps <= 30


WRONG = {
    "lora: {rr: 8}": "rr is not a setting",
    "lora: {r: 0}": "1 to 512",
    "lora: {r: 16}": "repeats defaults",
    "nonsense: {a: 1}": "not a section",
    "lora: [": "not valid YAML",
    "order: soon": "whole number",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_preset_is_named_with_the_reason(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"title: a\nwhy: b\nsource: c\n{text}\n")
    with pytest.raises(PresetError, match=f"mine.*{WRONG[text]}"):
        load_presets(tmp_path)


@pytest.mark.parametrize("missing", ["title", "why", "source"])
def test_preset_without_a_reason_is_refused(tmp_path, missing):
    head = {"title": "a", "why": "b", "source": "c"}
    del head[missing]
    text = "".join(f"{key}: {value}\n" for key, value in head.items())
    (tmp_path / "mine.yaml").write_text(text + "lora: {r: 8}\n")
    with pytest.raises(PresetError, match=f"has no {missing}"):
        load_presets(tmp_path)
