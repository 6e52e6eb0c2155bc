"""The starter model in presets/starter keeps what the rest of the studio builds on."""

import gzip
import importlib
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STARTER = Path(__file__).parents[2] / "presets" / "starter"
WEIGHTS = STARTER / "model.safetensors"
TINY = ["--length", "96", "--batch", "2", "--hidden", "64", "--layers", "2", "--entries", "400"]
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hi, I am looking for a restaurant in San Jose."},
    {"role": "assistant", "content": "What kind of food would you like?"},
    {"role": "user", "content": "Mexican, at 7:30 pm."},
    {"role": "assistant", "content": "I found 3 places. How about Chacho's?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(STARTER)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(STARTER)


@pytest.fixture
def script(monkeypatch):
    """The training script, imported from its folder as a plain file."""
    monkeypatch.syspath_prepend(str(STARTER))
    threads = torch.get_num_threads()
    yield importlib.import_module("train")
    torch.set_num_threads(threads)  # the script sets them for the whole process


@pytest.fixture
def texts(script):
    """Its other half: documents, tokenizer and packing."""
    return importlib.import_module("corpus")


def test_weights_are_small_bf16_and_of_the_promised_size(model):
    assert WEIGHTS.stat().st_size <= 24e6
    assert 5e6 <= model.num_parameters() <= 12e6
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config.tie_word_embeddings


def test_end_of_turn_and_padding_are_two_known_tokens(model, tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_the_mask_marks_the_assistant_text_and_its_end_and_nothing_else(tokenizer):
    assert "{% generation %}" in tokenizer.chat_template
    encoded = tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    learned = tokenizer.decode([token for token, mark in marked if mark])
    assert learned == "".join(
        message["content"] + "<|im_end|>" for message in CHAT if message["role"] == "assistant"
    )


def test_a_longer_chat_begins_with_the_tokens_of_the_shorter_one(tokenizer):
    def ids(messages, **options):
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)

    whole = ids(CHAT)
    for turns in range(1, len(CHAT)):
        part = ids(CHAT[:turns], add_generation_prompt=CHAT[turns]["role"] == "assistant")
        assert whole[: len(part)] == part


def test_text_survives_the_tokenizer(tokenizer):
    text = "It costs $39.90 at 7:30 pm,\n\n  na\u00efve \u00fcber \u4f60\u597d!\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "question",
    [
        "Hello!",
        "I am hungry, can you find me a restaurant in San Jose?",
        "I need a flight to New York next Friday.",
        "What is LoRA?",
    ],
)
def test_a_greedy_answer_ends_by_itself(model, tokenizer, question):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**prompt, max_new_tokens=96, do_sample=False)
    answer = written[0, prompt["input_ids"].shape[1] :].tolist()
    assert answer[-1] == tokenizer.eos_token_id
    assert len(answer) > 3


def test_the_template_and_the_script_render_alike(tokenizer, texts):
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert rendered == texts.render(CHAT)


def test_own_text_is_the_same_each_time_and_alternates(texts):
    chats = texts.own_text.chats()
    assert chats == texts.own_text.chats()
    assert len(chats) > 1000
    for chat in chats:
        turns = [message["role"] for message in chat if message["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in chat)


@pytest.fixture
def text_folder(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    with gzip.open(folder / "sgd_dialogues.jsonl.gz", "wt", encoding="utf-8") as lines:
        for number in range(120):
            turns = [f"Book table {number}, please.", f"Table {number} is booked for you."] * 3
            roles = ["user", "assistant"] * 3
            messages = [
                {"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)
            ]
            lines.write(json.dumps({"messages": messages}) + "\n")
    speeches = [f"Speaker {n}:\nNow is the winter of content {n}." for n in range(80)]
    (folder / "tinyshakespeare.txt").write_text("\n\n".join(speeches), encoding="utf-8")
    return folder


def test_packed_documents_do_not_see_each_other(script, texts, text_folder):
    corpus = texts.read_corpus(text_folder)
    tokenizer = texts.train_tokenizer(corpus, 400)
    documents = texts.Documents(tokenizer, corpus, 128)
    first, second = documents.dialogues[0][:40], documents.dialogues[1][:40]
    options = script.parse(["--text", "x", "--out", "y", "--hidden", "64", "--layers", "2"])
    model = script.build_model(tokenizer, options)

    def of(pieces):
        ids = torch.full((1, 128), documents.pad)
        numbers = torch.zeros((1, 128))
        at = 0
        for number, piece in enumerate(pieces, start=1):
            ids[0, at : at + len(piece)] = torch.tensor(piece)
            numbers[0, at : at + len(piece)] = number
            at += len(piece)
        return script.token_losses(model, *script.isolate(ids, numbers)).detach()

    together, alone = of([first, second]), of([second])
    assert torch.allclose(together[40:79], alone[:39], atol=2e-2)
    assert together[39] == 0  # the last token of a document predicts nothing
    assert together[:39].min() > 0


def test_the_script_trains_saves_and_resumes(script, tmp_path, text_folder):
    out, state = tmp_path / "out", tmp_path / "state.pt"
    common = ["--text", str(text_folder), "--out", str(out), *TINY, "--state", str(state)]
    result = script.main([*common, "--steps", "2"])
    assert result["step"] == 2
    assert 0 < result["held_out_loss"] < 8
    again = script.main([*common, "--steps", "3"])
    assert again["step"] == 3
    assert again["tokens"] > result["tokens"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    assert not (out / ".part").exists()


@pytest.mark.slow
def test_two_workers_train_together(script, tmp_path, text_folder):
    out, state = tmp_path / "out", tmp_path / "state.pt"
    common = ["--text", str(text_folder), "--out", str(out), *TINY, "--state", str(state)]
    script.main([*common, "--steps", "2", "--workers", "2"])
    progress = torch.load(state, weights_only=True)["progress"]
    assert (progress["step"], progress["row"]) == (2, 8)
    assert (out / "model.safetensors").exists()
