"""The token loop against transformers' own generate, and text that is never taken back."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.backend.decode import Answer, Sampling, TextStream, choose_token
from tests.tiny_models import make_model_folder, make_tokenizer

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24, seed=0)
TOKENIZER = make_tokenizer()


def finish(answer: Answer) -> str:
    text = ""
    while not answer.is_done:
        text += answer.step()
    return text


def streamed(tokenizer, ids) -> tuple[str, list[str]]:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    pieces.append(stream.finish())
    return "".join(pieces), pieces


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_put_together_are_the_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    whole, pieces = streamed(TOKENIZER, ids)
    assert whole == TOKENIZER.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_any_tokens_at_all_give_the_decoded_text(ids):
    assert streamed(TOKENIZER, ids)[0] == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole():
    ids = TOKENIZER("a🙂b", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3, "the emoji must take several tokens for this test to mean anything"
    assert [piece for piece in streamed(TOKENIZER, ids)[1] if piece] == ["a", "🙂", "b"]


def test_metaspace_keeps_the_spaces_between_words():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "<unk>": 3}, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([])
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    whole, pieces = streamed(tokenizer, [0, 1, 2, 0])
    assert whole == "the cats the" == tokenizer.decode([0, 1, 2, 0])
    assert pieces[:4] == ["the", " cat", "s", " the"]


def test_bytes_that_never_become_a_character_are_not_held_for_ever():
    ids = TOKENIZER.convert_tokens_to_ids(["Ģ"] * 40)
    stream = TextStream(TOKENIZER)
    assert any(stream.push(token) for token in ids)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3_text", "mistral"])
def test_greedy_equals_generate_for_each_architecture(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    changes = {"tie_word_embeddings": False}
    if kind in ("gemma3_text", "mistral"):
        changes["sliding_window"] = 16
    folder = make_model_folder(tmp_path, kind, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = set()
    for text in ("The quick brown", "Grüße 你好, the order " * 4):
        prompt = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            reference = model.generate(
                torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=[2]
            )
        answer = Answer(model, TOKENIZER, prompt, GREEDY, [2])
        text = finish(answer)
        expected = [t for t in reference[0, len(prompt) :].tolist() if t != 2]
        assert answer.tokens == expected
        assert text == TOKENIZER.decode(expected, skip_special_tokens=True)
        seen.update(expected)
    assert len(seen) > 3, "an answer of one repeated token would prove little"


def test_greedy_equals_generate_with_a_repetition_penalty(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path)).eval()
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.suppress_tokens = [40, 41]
    prompt = TOKENIZER("Can I change", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        reference = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False,
                                   eos_token_id=[2])  # fmt: skip
    answer = Answer(model, TOKENIZER, prompt, GREEDY, [2])
    finish(answer)
    assert answer.tokens == [t for t in reference[0, len(prompt) :].tolist() if t != 2]


def test_stop_token_ends_the_answer_and_is_not_shown(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path)).eval()
    prompt = TOKENIZER("The quick", add_special_tokens=False)["input_ids"]
    free = Answer(model, TOKENIZER, prompt, GREEDY, [])
    finish(free)
    assert free.truncated and len(free.tokens) == 24
    third = free.tokens[2]
    stopped = Answer(model, TOKENIZER, prompt, GREEDY, [third])
    finish(stopped)
    assert stopped.tokens == free.tokens[: free.tokens.index(third)]
    assert not stopped.truncated
    assert stopped.step() == "" and stopped.is_done


def test_same_seed_same_answer_other_seed_another(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path, scale=1.0)).eval()
    prompt = TOKENIZER("The", add_special_tokens=False)["input_ids"]

    def tokens(seed: int) -> list[int]:
        answer = Answer(model, TOKENIZER, prompt, Sampling(1.0, 0.95, 16, seed), [])
        finish(answer)
        return answer.tokens

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_drawing_follows_temperature_and_top_p():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    draws = torch.Generator().manual_seed(0)

    def share(temperature: float, top_p: float) -> list[float]:
        sampling = Sampling(temperature, top_p, 1, 0)
        counts = [0, 0, 0, 0]
        for _ in range(3000):
            counts[choose_token(scores, sampling, draws)] += 1
        return [count / 3000 for count in counts]

    assert share(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    # The set that reaches 0.7 is the first two, renormalised.
    assert share(1.0, 0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    # Temperature 2: square roots of the probabilities, renormalised.
    roots = [p**0.5 for p in (0.5, 0.3, 0.15, 0.05)]
    assert share(2.0, 1.0) == pytest.approx([r / sum(roots) for r in roots], abs=0.04)
    assert share(0.0, 0.5)[0] == 1.0


def test_a_tiny_top_p_is_greedy():
    scores = torch.tensor([random.Random(1).random() for _ in range(100)])
    draws = torch.Generator().manual_seed(0)
    sampling = Sampling(1.0, 1e-6, 1, 0)
    assert {choose_token(scores, sampling, draws) for _ in range(20)} == {int(scores.argmax())}
