"""The frozen base in 4 bits, on a CPU: trained for real, with the traps of the libraries."""

import json

import pytest
import torch

from studio.backend import adapters, loading
from studio.backend.data import Prompt, prepare
from studio.backend.measuring import collate, greedy_answers, mean_loss
from studio.core.config_io import build_config
from tests.backend.tiny import (
    losses,
    make_rows,
    make_tokenizer,
    records,
    same_tensors,
    tensors,
    train,
)

FOUR_BIT = {"quantization": {"load_in_4bit": True}}
RESOLVED = {
    "model": {"dtype": "float32", "attn_implementation": "sdpa"},
    "runtime": {"device": "cpu", "num_threads": 1},
    "lora": {"r": 4, "lora_alpha": 8},
}


@pytest.fixture(autouse=True)
def _as_in_the_trainer():
    loading.quiet_libraries()


def four_bit_model(folder, **quantization):
    values = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32", **quantization}
    config = build_config({**RESOLVED, "quantization": values})
    return loading.load_model(folder, config), config


def gradients(model, rows):
    model.train()
    model.zero_grad()
    model(**collate(rows, 3, "cpu")).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_every_gradient_is_equal_before_and_after_an_evaluation(model_folder):
    """bitsandbytes 0.50.2 repacks weights in eval mode on some CPUs: gradients fell 250-fold."""
    from trl.trainer.utils import add_fused_lm_head

    model, config = four_bit_model(model_folder)
    add_fused_lm_head(model)
    model = adapters.attach(model, config.lora, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tokenizer = make_tokenizer("marked")
    rows = prepare(tokenizer, make_rows(8), config).train
    before = gradients(model, rows)
    mean_loss(model, rows, batch_size=4, pad_token_id=3)
    greedy_answers(model, tokenizer, [Prompt(0, [{"role": "user", "content": "a cat"}], "a", "b")])
    after = gradients(model, rows)
    assert all(g.abs().max() > 0 for g in before.values())
    assert same_tensors(before, after)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_base_is_really_in_4_bits(model_folder, kind, double):
    model, _ = four_bit_model(
        model_folder, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
    )
    states = [m.weight.quant_state for m in model.modules() if hasattr(m, "quant_state")]
    assert len(states) == 14
    assert all(s.quant_type == kind and s.nested == double for s in states)
    assert all(
        m.support_avx512bf16_for_cpu is False
        for m in model.modules()
        if hasattr(m, "support_avx512bf16_for_cpu")
    )


def test_parameters_are_counted_unpacked(model_folder):
    plain = loading.load_model(model_folder, build_config(RESOLVED))
    packed, config = four_bit_model(model_folder)
    counts = [
        adapters.count_parameters(adapters.attach(model, config.lora, seed=1))
        for model in (plain, packed)
    ]
    assert counts[0] == counts[1]


def test_qlora_run_learns_with_fp32_adapters_and_resumes_exactly(make_run):
    values = {**FOUR_BIT, "train": {"max_steps": 8, "save_steps": 2}}
    whole, broken = make_run(values), make_run(values)
    result = train(whole)
    assert result["state"] == "done", result["error"]
    assert result["eval_loss"] < result["eval_loss_first"]
    train(broken, {(3, 1): "pause"})
    train(broken)
    assert losses(broken) == losses(whole)
    assert same_tensors(tensors(broken.adapter), tensors(whole.adapter))
    assert all(t.dtype == torch.float32 for t in tensors(whole.adapter).values())
    assert not records(whole, "warning")


def test_qlora_adapter_loads_with_plain_peft(make_run, model_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    paths = make_run({**FOUR_BIT, "train": {"max_steps": 3}})
    train(paths)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(paths.adapter))
    assert any("lora_B" in name for name, _ in model.named_parameters())
    config = json.loads((paths.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
