"""A whole run in this process: what it leaves behind, and what it must not change."""

import json

import pytest
import torch

from studio.backend import measuring
from studio.core.runs import derive_state
from tests.backend.tiny import (
    losses,
    make_rows,
    make_tokenizer,
    records,
    same_tensors,
    save_model,
    tensors,
    train,
)


@pytest.fixture(scope="module")
def base(model_folder):
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def test_run_is_done_and_says_what_came_out(make_run):
    paths = make_run({"train": {"max_steps": 20}})
    result = train(paths)
    assert result["state"] == "done"
    assert derive_state(paths, alive=False) == "done"
    assert result["steps"] == result["total_steps"] == 20
    assert result["eval_loss"] < result["eval_loss_first"] - 0.2  # a random base learns little
    assert result["train_loss"] == pytest.approx(sum(losses(paths).values()) / 20)
    assert result["tokens_total"] > 0
    assert result["tokens_per_s"] > 0
    assert result["peak_rss_bytes"] > 50e6
    assert 0 < result["time_to_first_step_s"] < result["run_s"]
    assert result["rows"]["train"] == 36
    assert result["rows"]["held_out"] == 4
    assert f"using {result['kept_step']}" in result["verdict"]
    assert not list(paths.root.glob(".*"))


def test_records_tell_the_whole_run(make_run):
    paths = make_run({"train": {"max_steps": 12}})
    train(paths)
    assert list(losses(paths)) == list(range(1, 13))
    tokens = [r["tokens_total"] for r in records(paths, "step")]
    assert tokens == sorted(tokens)
    assert all(r["learning_rate"] >= 0 and r["grad_norm"] > 0 for r in records(paths, "step"))
    evaluations = [r["step"] for r in records(paths, "eval")]
    assert evaluations[0] == 0
    assert evaluations[-1] == 12
    assert 3 <= len(evaluations) <= 12
    names = {r["name"] for r in records(paths, "phase")}
    assert {"loading", "data", "first_step", "eval", "sampling", "saving", "done"} <= names
    assert records(paths, "device")[0]["rss_bytes"] > 0
    state = json.loads(paths.state_json.read_text())
    assert (state["state"], state["step"], state["total_steps"]) == ("done", 12, 12)
    assert state["trainable_params"] > 0
    assert state["total_params"] > state["trainable_params"]


def test_three_prompts_are_answered_at_step_0_and_at_each_evaluation(make_run, monkeypatch):
    paths = make_run({"train": {"max_steps": 4}})
    monkeypatch.setattr(measuring, "MAX_NEW_TOKENS", 96)
    train(paths)
    samples = [json.loads(line) for line in paths.samples.read_text().splitlines()]
    steps = {r["step"] for r in records(paths, "eval")}
    wanted = {(step, index) for step in steps for index in range(3)}
    assert {(s["step"], s["prompt_index"]) for s in samples} == wanted
    assert all(s["messages"][-1]["role"] == "user" and s["reference"] for s in samples)
    assert all(s["tokens"] <= 96 for s in samples)
    assert any(s["tokens"] > 8 for s in samples)


def test_kept_adapter_loads_with_plain_peft_and_measures_the_same(make_run, base):
    from peft import PeftModel

    paths = make_run({"train": {"max_steps": 20}})
    result = train(paths)
    plain = PeftModel.from_pretrained(base(), str(paths.adapter)).eval()
    tokenizer = make_tokenizer("marked")
    from studio.backend.data import prepare
    from studio.core.config_io import build_config

    run = json.loads(paths.run_json.read_text())
    held_out = prepare(tokenizer, make_rows(40), build_config(run["resolved"])).held_out
    total = count = 0
    for row in held_out:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            logits = plain(input_ids=ids).logits[0, :-1].double()
        picked = labels[0, 1:] != -100
        total -= logits.log_softmax(-1)[picked, labels[0, 1:][picked]].sum().item()
        count += int(picked.sum())
    assert total / count == pytest.approx(result["eval_loss"], abs=1e-5)


def test_base_is_untouched_and_adapter_off_equals_it(make_run, base, model_folder, monkeypatch):
    before = (model_folder / "model.safetensors").read_bytes()
    seen = {}
    from studio.backend import keeping

    finish = keeping.Keeper.finish

    def spy(self, model, step):
        seen["model"] = model
        finish(self, model, step)

    monkeypatch.setattr(keeping.Keeper, "finish", spy)
    train(make_run())
    assert (model_folder / "model.safetensors").read_bytes() == before
    trained, fresh = seen["model"].eval(), base()
    after = {n.replace("base_layer.", ""): p for n, p in trained.get_base_model().named_parameters()
             if "lora_" not in n}  # fmt: skip
    for name, parameter in fresh.named_parameters():
        assert torch.equal(after[name], parameter), name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        on = trained(input_ids=ids).logits
        with trained.disable_adapter():
            off = trained(input_ids=ids).logits
        assert torch.equal(off, fresh(input_ids=ids).logits)
    assert not torch.equal(on, off)


def test_same_seed_same_losses_and_other_seed_other_losses(make_run):
    values = {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}}
    first, second = make_run(values), make_run(values)
    other = make_run({**values, "train": {"seed": 7}})
    for paths in (first, second, other):
        train(paths)
    assert losses(first) == losses(second)
    assert same_tensors(tensors(first.adapter), tensors(second.adapter))
    assert losses(first) != losses(other)


def test_measuring_does_not_change_the_training(make_run):
    dropout = {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2}}
    often = make_run({**dropout, "train": {"eval_steps": 1, "save_steps": 1}})
    never = make_run({**dropout, "train": {"eval_steps": 100, "save_steps": 100}})
    train(often)
    train(never)
    assert losses(often) == losses(never)


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"packing": True}},
        {"train": {"group_by_length": False, "activation_checkpointing": True}},
        {"train": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1}},
        {"train": {"optim": "adafactor", "loss_on": "all", "keep": "last"}},
        {"train": {"optim": "adamw_8bit"}, "lora": {"use_rslora": True, "use_dora": True}},
        {"lora": {"target_modules": "attention"}, "model": {"attn_implementation": "eager"}},
        {"lora": {"target_modules": ["q_proj", "down_proj"]}, "model": {"dtype": "bfloat16"}},
        {"data": {"system_prompt": "be old", "val_frac": 0.0}},
    ],
    ids=lambda values: " ".join(f"{k}={v}" for part in values.values() for k, v in part.items()),
)
def test_every_knob_trains(make_run, values):
    paths = make_run({**values, "train": {"max_steps": 3, **values.get("train", {})}})
    result = train(paths)
    assert result["state"] == "done", result["error"]
    config = json.loads((paths.adapter / "adapter_config.json").read_text())
    if "lora" in values and "target_modules" in values["lora"]:
        wanted = values["lora"]["target_modules"]
        if wanted == "attention":
            wanted = ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert set(config["target_modules"]) == set(wanted)
    assert all(t.dtype == torch.float32 for t in tensors(paths.adapter).values())
    assert config["use_dora"] == values.get("lora", {}).get("use_dora", False)


def test_packing_trains_every_row(make_run):
    packed, plain = (make_run({"train": {"packing": p, "max_steps": -1, "num_train_epochs": 1}})
                     for p in (True, False))  # fmt: skip
    ends = [train(paths) for paths in (packed, plain)]
    assert ends[0]["tokens_total"] == ends[1]["tokens_total"] == ends[1]["rows"]["train_tokens"]
    assert ends[0]["steps"] < ends[1]["steps"]


def test_keep_last_keeps_the_last(make_run):
    result = train(make_run({"train": {"keep": "last"}}))
    assert result["kept_step"] == 6
    assert "Using the last step (6)" in result["verdict"]


def test_without_held_out_rows_the_last_is_kept_and_it_is_said(make_run):
    paths = make_run({"data": {"val_frac": 0.0}})
    result = train(paths)
    assert result["eval_loss"] is None
    assert result["kept_step"] == 6
    assert "Nothing was measured" in result["verdict"]
    assert records(paths, "eval") == []


def test_rows_cut_or_left_out_are_counted_and_said(make_run):
    rows = make_rows(20)
    for row in rows[:3]:
        row["messages"][0]["content"] = "red " * 100  # no room for the answer
    for row in rows[3:5]:
        row["messages"][1]["content"] = "blue " * 100  # the answer is cut
    paths = make_run({"data": {"val_frac": 0.0}}, rows=rows)
    result = train(paths)
    assert result["rows"]["no_trained_token"] == 3
    assert result["rows"]["truncated"] == 2
    assert result["rows"]["train"] == 17
    warnings = " ".join(r["text"] for r in records(paths, "warning"))
    assert "3 rows were left out" in warnings
    assert "2 rows are longer than max_length" in warnings


def test_plain_text_rows_train(make_run):
    rows = [{"i": i, "line": i, "text": f"the cat {i} sleeps and the dog sings"} for i in range(20)]
    paths = make_run(rows=rows)
    assert train(paths)["state"] == "done"
    assert json.loads(paths.samples.read_text().splitlines()[0])["prompt"].startswith("the cat")


def test_model_without_template_and_without_padding_token_trains(make_run, tmp_path):
    folder = save_model(tmp_path / "bare", None)
    make_tokenizer(None, pad=False).save_pretrained(folder)
    paths = make_run(model=folder)
    assert train(paths)["state"] == "done"
    assert "no padding token" in records(paths, "warning")[0]["text"]


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_model_with_its_own_ways_trains(make_run, tmp_path, family):
    """Gemma 2 has eager attention only; GPT-2 keeps its matrices transposed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer("chatml")
    size = {"vocab_size": len(tokenizer), "eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 3}
    if family == "gpt2":
        size |= {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128}
    else:
        size |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16,
                 "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    folder = tmp_path / family
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    paths = make_run({"train": {"max_steps": 3}}, model=folder)
    result = train(paths)
    assert result["state"] == "done", result["error"]
    assert result["eval_loss"] < result["eval_loss_first"]
    warnings = [r["text"] for r in records(paths, "warning")]
    assert any("eager attention is used" in text for text in warnings) is (family == "gemma2")
