"""What is learned of a row: tables over templates with and without markers, and none at all."""

import pytest

from studio.backend.tokenize import (
    IGNORED,
    encode_example,
    encode_examples,
    prompt_adds_special_tokens,
    render_prompt,
    stop_token_ids,
)
from studio.core.errors import ModelError
from studio.core.examples import RowProblem
from tests.backend.tiny import CHATML, make_tokenizer

LLAMA2 = (
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{{- '<|im_start|>[INST] ' + m['content']"
    " + ' [/INST]' }}{%- elif m['role'] == 'assistant' %}{{- ' ' + m['content'] + ' <|im_end|>' }}"
    "{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}"
)
# Drops the reasoning of earlier answers, so that the beginning of a conversation changes later.
REWRITES = CHATML.replace(
    "{{- m['content'] +",
    "{{- (m['content'] if loop.last or m['role'] != 'assistant' else "
    "m['content'].split('</think>')[-1]) +",
)
NO_END = (
    "{%- for m in messages %}{{- m['role'] + ': ' + m['content'] + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
)
MARKED_WITHOUT_END = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['role'] == 'assistant' %}{% generation %}{{- m['content'] }}{% endgeneration %}"
    "{%- else %}{{- m['content'] }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
EMPTY_THINK = CHATML.replace("'<|im_start|>' + m['role'] + '\n'", (
    "'<|im_start|>' + m['role'] + '\n' + ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' "
    "and loop.last else '')"
))  # fmt: skip


def chat(*contents, system=None):
    turns = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    turns += [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": turns}


def learned(tokenizer, encoded):
    """The learned runs of tokens, each as text."""
    runs, open_run = [], False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORED:
            open_run = False
            continue
        assert label == token
        if not open_run:
            runs.append([])
        runs[-1].append(token)
        open_run = True
    return [tokenizer.decode(run) for run in runs]


TWO = ("what is red", "the cat", "where", "a house. ")


@pytest.mark.parametrize(
    ("template", "example", "expected"),
    [
        ("chatml", chat(*TWO[:2]), ["the cat<|im_end|>"]),
        ("marked", chat(*TWO[:2]), ["the cat<|im_end|>"]),
        ("plain", chat(*TWO[:2]), ["the cat<|im_end|>"]),
        ("chatml", chat(*TWO), ["the cat<|im_end|>", "a house. <|im_end|>"]),
        ("marked", chat(*TWO), ["the cat<|im_end|>", "a house. <|im_end|>"]),
        ("plain", chat(*TWO), ["the cat<|im_end|>", "a house. <|im_end|>"]),
        ("chatml", chat(*TWO, system="be old"), ["the cat<|im_end|>", "a house. <|im_end|>"]),
        (MARKED_WITHOUT_END, chat(*TWO[:2]), ["the cat<|im_end|>"]),
        (LLAMA2, chat(*TWO), [" the cat <|im_end|>", " a house.  <|im_end|>"]),
        (LLAMA2, chat(*TWO[:2], system="be old"), [" the cat <|im_end|>"]),
        (NO_END, chat(*TWO), ["the cat", " a house.<|im_end|>"]),
        (EMPTY_THINK, chat(*TWO[:2]), ["<think>\n\n</think>\n\nthe cat<|im_end|>"]),
        (REWRITES, chat("q", "<think>x</think>the cat", "r", "<think>y</think>dog"),
         ["the cat<|im_end|>", "<think>y</think>dog<|im_end|>"]),
        ("chatml", chat("yes", "yes", "yes", "yes"), ["yes<|im_end|>"] * 2),
        ("chatml", chat("caf\u00e9", "\u732b \U0001f408"), ["\u732b \U0001f408<|im_end|>"]),
    ],
)  # fmt: skip
def test_only_the_answers_and_their_end_tokens_are_learned(template, example, expected):
    tokenizer = make_tokenizer(template)
    assert learned(tokenizer, encode_example(tokenizer, example)) == expected


@pytest.mark.parametrize("template", ["chatml", "marked"])
@pytest.mark.parametrize("turns", [2, 4, 6])
def test_templates_with_and_without_markers_agree(template, turns):
    contents = [f"{word} runs" for word in ("cat", "dog", "bird", "tree", "house", "river")]
    example = chat(*contents[:turns], system="be small")
    with_marks = encode_example(make_tokenizer("marked"), example)
    other = encode_example(make_tokenizer(template), example)
    assert (other.input_ids, other.labels) == (with_marks.input_ids, with_marks.labels)


@pytest.mark.parametrize("template", ["chatml", "marked", "plain", LLAMA2, NO_END])
def test_the_prompt_is_what_stands_before_the_answer(template):
    tokenizer = make_tokenizer(template)
    example = chat(*TWO)
    encoded = encode_example(tokenizer, example, system_prompt="be old")
    prompt = render_prompt(tokenizer, example["messages"][:-1], "be old")
    assert encoded.text.startswith(prompt)
    assert "be old" in prompt
    assert encoded.text[len(prompt) :].strip().startswith("a house.")


def test_tokens_are_those_of_the_template():
    tokenizer = make_tokenizer("marked")
    example = chat(*TWO, system="be old")
    ours = encode_example(tokenizer, example).input_ids
    theirs = tokenizer.apply_chat_template(example["messages"], return_dict=True)["input_ids"]
    assert ours == theirs


def test_loss_on_all_learns_every_token():
    tokenizer = make_tokenizer("marked")
    encoded = encode_example(tokenizer, chat(*TWO), loss_on="all")
    assert encoded.labels == encoded.input_ids


def test_text_is_learned_whole_and_closed_with_end_of_text():
    tokenizer = make_tokenizer("marked")
    encoded = encode_example(tokenizer, {"text": "the cat sleeps"})
    assert encoded.labels == encoded.input_ids
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1


def test_tokenizer_that_adds_end_of_text_itself_does_not_double_it():
    from tokenizers import processors

    tokenizer = make_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    for example in ({"text": "the cat"}, chat("where", "the cat")):
        ids = encode_example(tokenizer, example).input_ids
        assert ids[0] == 0
        assert ids.count(2) == 1


@pytest.mark.parametrize("max_length", [4, 8, 9, 10, 1000])
def test_what_is_cut_is_counted(max_length):
    tokenizer = make_tokenizer("marked")
    whole = encode_example(tokenizer, chat(*TWO))
    cut = encode_example(tokenizer, chat(*TWO), max_length=max_length)
    assert len(cut.input_ids) == len(cut.labels) == min(max_length, len(whole.input_ids))
    assert cut.cut_tokens == max(0, len(whole.input_ids) - max_length)
    assert cut.input_ids + cut.cut_ids == whole.input_ids
    assert len(cut.offsets) == len(whole.input_ids)


def test_a_prompt_that_fills_max_length_leaves_no_trained_token():
    tokenizer = make_tokenizer("marked")
    assert encode_example(tokenizer, chat("red " * 30, "yes"), max_length=20).trained_tokens == 0


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
def test_end_token_is_learned_also_where_it_is_the_padding_token(pad):
    tokenizer = make_tokenizer("marked", pad_token=pad)
    encoded = encode_example(tokenizer, chat(*TWO[:2]))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in encoded.labels


def test_a_refused_row_does_not_hide_the_others():
    tokenizer = make_tokenizer(LLAMA2)
    bad = {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}
    results = encode_examples(tokenizer, [chat(*TWO[:2]), bad, {"text": " "}, chat(*TWO)])
    assert [isinstance(result, RowProblem) for result in results] == [False, True, True, False]
    with pytest.raises(RowProblem, match="chat template refuses"):
        encode_example(tokenizer, bad)


def test_batch_equals_one_by_one():
    tokenizer = make_tokenizer("chatml")
    examples = [chat(*TWO), {"text": "a dog"}, chat("one"[:1], "two"), chat("x", "y", system="z")]
    alone = [encode_example(tokenizer, example, max_length=12) for example in examples]
    assert encode_examples(tokenizer, examples, max_length=12) == alone


def test_stop_tokens_hold_the_end_of_the_turn():
    tokenizer = make_tokenizer("chatml", eos_token="<|endoftext|>")
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id, turn_end]
    assert stop_token_ids(make_tokenizer(None)) == [2]


def test_special_tokens_are_added_only_without_a_template():
    assert prompt_adds_special_tokens(make_tokenizer(None))
    assert not prompt_adds_special_tokens(make_tokenizer("chatml"))


def test_a_slow_tokenizer_is_refused_with_a_sentence():
    class Slow:
        is_fast = False
        chat_template = None
        eos_token = "</s>"

    with pytest.raises(ModelError, match="fast tokenizer"):
        encode_example(Slow(), {"text": "a"})
