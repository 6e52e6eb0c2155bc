"""The inspector: shapes equal what transformers and peft build, rows equal what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.backend.inspector import Inspector
from studio.core.errors import ConfigError, DatasetError, ModelError, TargetModulesError
from tests.tiny_models import make_adapter, make_config, make_model_folder, write_config_only

# peft 0.21 asks transformers 5.23 by an old name when it wraps a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("inspect") / "llama")


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector()


def test_modules_lists_real_names_counts_and_sizes(inspector, llama):
    answer = inspector.modules({"model_path": str(llama)})
    rows = {row["name"]: row for row in answer["modules"]}
    assert list(rows) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert rows["k_proj"] == {"name": "k_proj", "count": 2, "in": 64, "out": 32, "params": 4096}
    assert answer["architecture"] == "LlamaForCausalLM"
    assert answer["context_length"] == 256
    assert answer["vocab_size"] == 320
    assert answer["has_chat_template"] and answer["generation_markers"]
    assert answer["linear_params"] == sum(row["params"] for row in rows.values())


@pytest.mark.parametrize("tied", [True, False])
def test_total_params_equals_the_real_model(inspector, tmp_path, tied):
    from transformers import AutoModelForCausalLM

    folder = make_model_folder(tmp_path / "m", tie_word_embeddings=tied)
    real = AutoModelForCausalLM.from_pretrained(folder)
    answer = inspector.modules({"model_path": str(folder)})
    assert answer["total_params"] == real.num_parameters()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3_text", "mistral"])
@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "target_modules": "all-linear"},
        {"r": 3, "target_modules": "attention"},
        {"r": 2, "target_modules": "all-linear", "use_dora": True},
    ],
    ids=["all", "attention", "dora"],
)
def test_adapter_counts_equal_peft(inspector, tmp_path, kind, lora):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from studio.backend.shapes import linear_layers, match_layers

    config = make_config(kind)
    config.architectures = None
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    targets = lora["target_modules"]
    if targets != "all-linear":
        targets = sorted({x.suffix for x in match_layers(linear_layers(base), targets)})
    options = {"lora_alpha": 8, "task_type": "CAUSAL_LM"}
    with torch.device("meta"):
        model = get_peft_model(base, LoraConfig(**{**options, **lora, "target_modules": targets}))
    trainable, total = model.get_nb_trainable_parameters()
    answer = inspector.adapter({"model_path": str(tmp_path), "lora": lora})
    assert (answer["trainable_params"], answer["total_params"]) == (trainable, total)
    assert answer["share"] == trainable / total


def test_adapter_bytes_equals_the_saved_file(inspector, llama, tmp_path):
    folder = make_adapter(tmp_path / "adapter", llama, r=8)
    lora = json.loads((folder / "adapter_config.json").read_text())
    answer = inspector.adapter({"model_path": str(llama), "lora": {"r": lora["r"]}})
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert abs(answer["adapter_bytes"] - size) <= 16


def test_adapter_listed_names_and_scaling(inspector, llama):
    lora = {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}
    answer = inspector.adapter({"model_path": str(llama), "lora": lora})
    assert [(row["name"], row["count"]) for row in answer["matched"]] == [
        ("q_proj", 2), ("up_proj", 2),
    ]  # fmt: skip
    assert answer["trainable_params"] == 2 * 16 * (64 + 64) + 2 * 16 * (64 + 128)
    assert answer["scaling"] == 2.0


def test_adapter_unmatched_name_lists_what_there_is(inspector, llama):
    lora = {"target_modules": ["q_proj", "query_key_value"]}
    with pytest.raises(TargetModulesError, match="query_key_value.*q_proj, k_proj"):
        inspector.adapter({"model_path": str(llama), "lora": lora})
    with pytest.raises(TargetModulesError, match="lm_head"):
        inspector.adapter({"model_path": str(llama), "lora": {"target_modules": ["lm_head"]}})


def test_adapter_rank_out_of_range_is_a_config_error(inspector, llama):
    with pytest.raises(ConfigError, match=r"lora\.r=0"):
        inspector.adapter({"model_path": str(llama), "lora": {"r": 0}})


def test_folder_without_config_is_one_sentence(inspector, tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        inspector.modules({"model_path": str(tmp_path)})
    with pytest.raises(ModelError, match="does not exist"):
        inspector.modules({"model_path": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no_such_architecture"},
        {"model_type": "t5"},
        {"hidden_size": 4},
        {"model_type": "llama", "hidden_size": "large"},
        [],
    ],
)
def test_unusable_config_is_one_sentence(inspector, tmp_path, config):
    write_config_only(tmp_path, config)
    with pytest.raises(ModelError):
        inspector.modules({"model_path": str(tmp_path)})


def test_remote_code_is_never_run(inspector, tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass C: pass\n")
    write_config_only(
        tmp_path, {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"},
                   "trust_remote_code": True},
    )  # fmt: skip
    with pytest.raises(ModelError):
        inspector.modules({"model_path": str(tmp_path)})
    assert not trace.exists()


def test_config_alone_has_modules_but_renders_nothing(inspector, tmp_path):
    make_config().save_pretrained(tmp_path)
    answer = inspector.modules({"model_path": str(tmp_path)})
    assert answer["modules"] and answer["has_chat_template"] is False
    with pytest.raises(ModelError, match="Download the model first"):
        inspector.render({"model_path": str(tmp_path), "example": {"text": "a"}})


def test_render_shows_what_is_learned(inspector, llama):
    example = {
        "messages": [
            {"role": "user", "content": "Grüße 🙂?"},
            {"role": "assistant", "content": "Yes 你好."},
        ]
    }
    answer = inspector.render({"model_path": str(llama), "example": example})
    tokens = answer["tokens"]
    assert "".join(token["text"] for token in tokens) == answer["text"]
    assert "".join(token["text"] for token in tokens if token["trained"]) == "Yes 你好.<|im_end|>"
    assert answer["trained_tokens"] == sum(token["trained"] for token in tokens)
    assert answer["total_tokens"] == len(tokens) and answer["cut_tokens"] == 0
    names = [token["text"] for token in tokens if token["special"]]
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


def test_render_marks_cut_tokens_and_uses_the_options(inspector, llama):
    example = {
        "messages": [
            {"role": "user", "content": "Can I change my order?"},
            {"role": "assistant", "content": "Yes, until it has been sent."},
        ]
    }
    options = {"max_length": 16, "system_prompt": "Be kind.", "loss_on": "all"}
    answer = inspector.render(
        {"model_path": str(llama), "example": example, "config": options}
    )  # fmt: skip
    assert answer["text"].startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert [token["cut"] for token in answer["tokens"][14:18]] == [False, False, True, True]
    assert answer["cut_tokens"] == answer["total_tokens"] - 16
    assert all(token["trained"] for token in answer["tokens"][1:16])
    assert not any(token["trained"] for token in answer["tokens"][16:])


def test_render_refuses_an_empty_row_with_a_sentence(inspector, llama):
    with pytest.raises(DatasetError, match="no text"):
        inspector.render({"model_path": str(llama), "example": {"text": "  "}})


def test_shape_is_read_again_when_config_changes(inspector, tmp_path):
    import os

    make_config(num_hidden_layers=1).save_pretrained(tmp_path)
    first = inspector.modules({"model_path": str(tmp_path)})["total_params"]
    make_config(num_hidden_layers=3).save_pretrained(tmp_path)
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert inspector.modules({"model_path": str(tmp_path)})["total_params"] > first
