"""ModelStore on folders of this machine, and what is refused; no network, no torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.core.errors import HubError, ModelError, PresetError
from studio.services.model_folder import context_tokens, count_params
from studio.services.models import ModelStore

PRESETS = Path(__file__).parents[2] / "presets"
CONFIG = {"model_type": "llama", "max_position_embeddings": 64}


def write_weights(path: Path, **tensors: list[int]) -> None:
    """A valid safetensors file of fp32 zeros."""
    head, offset = {}, 0
    for name, shape in tensors.items():
        size = 4
        for edge in shape:
            size *= edge
        head[name.replace("__", ".")] = {
            "dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    (place / "tokenizer.json").write_text("{}")
    write_weights(place / "model.safetensors", embed=[8, 4], lm_head__weight=[8, 4])
    return place


@pytest.fixture
def store(tmp_path) -> ModelStore:
    return ModelStore(tmp_path / "workspace", PRESETS)


def configure(folder: Path, name: str = "config.json", **values) -> None:
    (folder / name).write_text(json.dumps({**CONFIG, **values}))


def test_good_folder_is_accepted_and_described(store, folder):
    assert store.resolve(str(folder)) == folder
    info = store.info(str(folder))
    assert (info.kind, info.local, info.title) == ("folder", True, "model")
    assert (info.params, info.context, info.path) == (64, 64, folder)


def test_tied_head_counts_once(folder):
    configure(folder, tie_word_embeddings=True)
    assert count_params(folder) == 32


def test_context_of_a_nested_text_config(folder):
    configure(folder, max_position_embeddings=None, text_config={"max_position_embeddings": 99})
    assert context_tokens(folder) == 99


def test_relative_folder_becomes_absolute(store, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert store.resolve("model") == folder
    assert store.resolve("./model") == folder


def test_starter_is_found_and_first(store):
    first = store.list()[0]
    assert first.id == "starter" and first.kind == "starter"
    if first.local:  # its weights are part of the repository
        assert 5_000_000 <= first.params <= 12_000_000
        assert store.resolve("starter") == PRESETS.absolute() / "starter"


def test_list_has_the_catalogue_with_what_one_wants_to_know(store):
    infos = {info.id: info for info in store.list()}
    gated = infos["meta-llama/Llama-3.2-1B-Instruct"]
    assert not gated.local and gated.path is None and "gated" in gated.note
    assert gated.gb == pytest.approx(2.47, abs=0.01)
    assert all(info.params and info.context and info.licence for info in infos.values())


def test_catalogue_model_can_be_inspected_before_it_is_here(store):
    path = store.inspect_path("Qwen/Qwen3-0.6B")
    assert (path / "config.json").is_file()
    with pytest.raises(HubError, match="not on this machine yet.*Download it first"):
        store.resolve("Qwen/Qwen3-0.6B")
    with pytest.raises(HubError):
        store.inspect_path("someone/else")


@pytest.mark.parametrize("text", ["", "llama", "no such thing", "a/b/c"])
def test_unknown_name_is_one_sentence(store, text):
    with pytest.raises(ModelError, match="no such model.*owner/name"):
        store.resolve(text)


def test_missing_folder_and_missing_config(store, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        store.resolve(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        store.resolve(str(tmp_path / "empty"))


def test_folder_without_weights(store, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        store.resolve(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.gguf", "model.ckpt"])
def test_weights_that_can_run_code_are_named_and_refused(store, folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=f"{name}.*save_pretrained"):
        store.resolve(str(folder))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C"}}),
        ("config.json", {"text_config": {"deep": [{"auto_map": {"a": "b"}}]}}),
        ("config.json", {"sub": {"trust_remote_code": True}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("generation_config.json", {"trust_remote_code": True}),
    ],
)
def test_remote_code_is_refused_wherever_it_hides(store, folder, file, values):
    configure(folder, file, **values)
    with pytest.raises(ModelError, match=f"code of its own.*{file}"):
        store.resolve(str(folder))


def test_remote_code_that_is_switched_off_is_no_harm(store, folder):
    configure(folder, trust_remote_code=False, auto_map={})
    assert store.resolve(str(folder)) == folder


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 5000, '{"a": ' * 3000])
def test_damaged_config_is_one_sentence(store, folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        store.resolve(str(folder))


def test_config_without_a_type_and_already_quantized(store, folder):
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no model_type"):
        store.resolve(str(folder))
    configure(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantized already.*'gptq'"):
        store.resolve(str(folder))


def test_cut_weights_and_missing_tokenizer(store, folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole"):
        store.resolve(str(folder))
    weights.write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        store.resolve(str(folder))


def test_shards_must_all_be_there(store, folder):
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_weights(folder / names[0], a=[2])
    with pytest.raises(ModelError, match="part of the weights is missing.*00002-of-00002"):
        store.resolve(str(folder))
    write_weights(folder / names[1], b=[3])
    assert count_params(store.resolve(str(folder))) == 5


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x", "a\\b", ".hidden"])
def test_index_that_points_elsewhere_is_refused(store, folder, name):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no usable files"):
        store.resolve(str(folder))


@pytest.mark.parametrize(
    "text",
    ["models: 3", "other: []", "models: [1]", "models:\n  - id: a/b\n    colour: red",
     "models:\n  - {id: a/b, title: t, params: 1, context: 1, licence: x, vram_gib: 8, why: y, "
     "source: z}"],
)  # fmt: skip
def test_wrong_catalogue_is_one_sentence(tmp_path, text):
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "catalogue.yaml").write_text(text)
    with pytest.raises(PresetError):
        ModelStore(tmp_path, tmp_path).catalogue()
