"""The chat's model: equal to plain transformers and peft, loaded as trained, refused when unfit."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from studio.backend.adapter_check import check_adapter
from studio.backend.chat_model import ChatModel, load_plain, load_run
from studio.core.chat_request import parse_chat_request
from studio.core.errors import BusyError, ConfigError, ModelError, StoreError
from studio.hardware.platforms import held_lock
from tests.tiny_models import make_model_folder, make_run

# peft 0.21 asks transformers 5.23 by an old name when it wraps a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]

QLORA = {
    "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"},
}
PROMPTS = ("Can I change my order?", "Grüße 你好", "The quick brown fox jumps")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("chat") / "base", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), base)


@pytest.fixture(scope="module")
def loaded(run) -> ChatModel:
    return load_run(run)


def question(text: str, **options):
    messages = [{"role": "user", "content": text}]
    return parse_chat_request({"messages": messages, "max_tokens": 20, **options})


def answers(model: ChatModel, text: str, **options) -> dict[str, tuple[list[int], str]]:
    """All answers, grown one token each in turn as the server does."""
    open_answers = model.open_answers(question(text, **options))
    texts = dict.fromkeys(open_answers, "")
    while any(not answer.is_done for answer in open_answers.values()):
        for side, answer in open_answers.items():
            texts[side] += model.advance(side, answer)
    return {side: (answer.tokens, texts[side]) for side, answer in open_answers.items()}


def reference(
    base: Path, text: str, adapter: Path | None, *, quantized: bool, dtype: torch.dtype
) -> list[int]:
    """Greedy tokens of plain transformers and peft, with no code of ours but the 4-bit switch."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = {}
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        output = model.eval().generate(**inputs, max_new_tokens=20, do_sample=False)
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.mark.parametrize("method", ["fp32", "bf16", "nf4"])
def test_both_sides_equal_plain_transformers_and_peft(base, tmp_path, method):
    quantized, dtype = method == "nf4", torch.bfloat16 if method == "bf16" else torch.float32
    resolved = {"fp32": {}, "bf16": {"model": {"dtype": "bfloat16"}}, "nf4": QLORA}[method]
    run = make_run(tmp_path, base, resolved=resolved)
    model = load_run(run)
    try:
        assert model.info["load_in_4bit"] is quantized
        for text in PROMPTS:
            got = answers(model, text)
            plain = reference(base, text, None, quantized=quantized, dtype=dtype)
            adapted = reference(base, text, run / "adapter", quantized=quantized, dtype=dtype)
            assert got["base"][0] == plain
            assert got["adapter"][0] == adapted
            assert plain != adapted, "an adapter without effect would prove nothing"
    finally:
        model.close()


def test_four_bit_run_is_loaded_in_four_bits(base, tmp_path):
    from bitsandbytes.nn import Linear4bit

    model = load_run(make_run(tmp_path, base, resolved=QLORA))
    layers = [m for m in model._model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    answers(model, "a")
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert not any(
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers
    )


def test_alone_and_side_by_side_give_the_same_answers(loaded):
    both = answers(loaded, PROMPTS[0])
    assert answers(loaded, PROMPTS[0], which="base")["base"] == both["base"]
    assert answers(loaded, PROMPTS[0], which="adapter")["adapter"] == both["adapter"]
    assert list(both) == ["base", "adapter"]


def test_base_weights_are_untouched_by_a_chat(loaded, base):
    from safetensors.torch import load_file

    answers(loaded, PROMPTS[1], temperature=0.7)
    stored = load_file(base / "model.safetensors")
    state = loaded._model.get_base_model().state_dict()
    for name, tensor in stored.items():
        found = state.get(name, state.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(found, tensor), name


def test_sampled_sides_share_the_seed_and_repeat(loaded):
    first = answers(loaded, PROMPTS[0], temperature=1.0, top_p=0.9, seed=5)
    assert answers(loaded, PROMPTS[0], temperature=1.0, top_p=0.9, seed=5) == first
    assert answers(loaded, PROMPTS[0], temperature=1.0, top_p=0.9, seed=6) != first


def test_two_threads_do_not_mix_the_sides(loaded):
    expected = answers(loaded, PROMPTS[2])
    results: dict[str, list[int]] = {}

    def work(side: str) -> None:
        for _ in range(3):
            results[side] = answers(loaded, PROMPTS[2], which=side)[side][0]
            assert results[side] == expected[side][0]

    threads = [threading.Thread(target=work, args=(side,)) for side in ("base", "adapter")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {side: tokens for side, (tokens, _) in expected.items()}


def test_long_conversation_is_refused_with_both_numbers(loaded):
    with pytest.raises(ConfigError, match=r"has \d+ tokens and the model reads 256.*Shorten"):
        loaded.open_answers(question("word " * 400))


def test_answer_that_meets_the_end_of_the_context_is_marked(loaded):
    opened = loaded.open_answers(question("x" * 225, max_tokens=200, which="base"))
    answer = opened["base"]
    while not answer.is_done:
        loaded.advance("base", answer)
    assert answer.truncated and len(answer.tokens) < 40


def test_closed_model_refuses_with_a_sentence(run):
    model = load_run(run)
    opened = model.open_answers(question("a"))
    model.close()
    model.close()
    with pytest.raises(BusyError, match="unloaded"):
        model.advance("base", opened["base"])


def test_plain_model_has_no_adapter_side(base):
    model = load_plain(base)
    assert answers(model, "a", which="base")["base"][0]
    with pytest.raises(ConfigError, match="no adapter"):
        model.open_answers(question("a"))


def test_system_prompt_is_a_message(loaded):
    user = {"role": "user", "content": "Can I?"}
    system = {"role": "system", "content": "Answer in German."}
    ids = loaded._prompt_ids([system, user])
    text = loaded.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nAnswer in German.<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")


def test_paused_run_answers_from_its_newest_whole_checkpoint(base, tmp_path):
    from studio.backend.checkpoints import save

    run = make_run(tmp_path, base, state="paused")
    whole = run / "adapter"
    for step in (4, 8):
        save(run / "checkpoints", step, lambda into: _copy(whole, into), {})
    shutil.rmtree(whole)
    model = load_run(run)
    assert model.info["adapter"].endswith("8")
    newest = next((run / "checkpoints").glob("step-*8")) / "adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    assert load_run(run).info["adapter"].endswith("4")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def test_run_without_any_adapter_says_so(base, tmp_path):
    with pytest.raises(StoreError, match="no adapter and no whole checkpoint"):
        load_run(make_run(tmp_path, base, adapter=False, state="paused"))


def test_run_in_training_is_refused(base, tmp_path):
    run = make_run(tmp_path, base)
    with held_lock(run / "trainer.lock"), pytest.raises(BusyError, match="is being trained"):
        load_run(run)


def test_other_base_than_trained_on_is_refused(base, tmp_path):
    run = make_run(tmp_path, base)
    other = make_model_folder(tmp_path / "other", rms_norm_eps=1e-3)
    with pytest.raises(ModelError, match="trained on another base"):
        load_run(run, other)
    with pytest.raises(ModelError, match="not where it was"):
        load_run(run, tmp_path / "gone")


def test_base_whose_weights_changed_is_refused(base, tmp_path):
    from studio.backend.checkpoints import save
    from studio.backend.loading import model_fingerprint

    own = shutil.copytree(base, tmp_path / "own")
    run = make_run(tmp_path, own)
    facts = {"model_fingerprint": model_fingerprint(own)}
    save(run / "checkpoints", 1, lambda into: _copy(run / "adapter", into), facts)
    load_run(run).close()
    shutil.copy(
        make_model_folder(tmp_path / "other", tie_word_embeddings=False, seed=5)
        / "model.safetensors",
        own,
    )
    with pytest.raises(ModelError, match="files were changed since this adapter was trained"):
        load_run(run)


def test_moved_base_is_accepted(base, tmp_path):
    run = make_run(tmp_path, base)
    moved = shutil.copytree(base, tmp_path / "moved")
    assert load_run(run, moved).info["run_id"] == run.name


def change(run: Path, **values) -> None:
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}),
        ("megatron_config", {"a": 1}),
        ("layer_replication", [[0, 1]]),
        ("peft_type", "PREFIX_TUNING"),
        ("task_type", "SEQ_CLS"),
        ("target_modules", "(a+)+$"),
        ("exclude_modules", "(a+)+$"),
        ("r", 10**9),
        ("r", "8"),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_foreign_adapter_config_is_refused_before_loading(base, tmp_path, key, value):
    run = make_run(tmp_path, base)
    change(run, **{key: value})
    with pytest.raises(ModelError, match=key):
        check_adapter(run / "adapter")
    with pytest.raises(ModelError):
        load_run(run)


def test_pickled_adapter_is_refused(base, tmp_path):
    run = make_run(tmp_path, base)
    adapter = run / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin.*Only safetensors"):
        check_adapter(adapter)


def test_cut_adapter_file_is_refused(base, tmp_path):
    run = make_run(tmp_path, base)
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_run(run)


def test_adapter_of_other_shapes_is_refused(base, tmp_path):
    wide = make_model_folder(tmp_path / "wide", hidden_size=128, head_dim=32)
    deep = make_model_folder(tmp_path / "deep", num_hidden_layers=3)
    for other in (wide, deep):
        run = make_run(tmp_path / other.name / "runs", other)
        record = json.loads((run / "run.json").read_text())
        record["model"].pop("config_sha256")
        (run / "run.json").write_text(json.dumps(record))
        with pytest.raises(ModelError, match="does not fit the base model"):
            load_run(run, base)


def test_missing_run_record_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match=r"run\.json is missing"):
        load_run(tmp_path)
