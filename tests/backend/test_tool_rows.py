"""Rows with weights and with tools, for each family: rendered whole, learned only where wanted."""

import pytest

from studio.backend import measuring
from studio.backend.data import choose_prompts
from studio.backend.tokenize import IGNORED, encode_example
from studio.core.errors import StudioError
from studio.core.examples import RowProblem
from tests.backend.families import CHATML, FAMILIES, MARKED_WITHOUT_END, build

TOOLS_CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}{{- m['content'] or '' }}"
    "{%- for c in m.get('tool_calls') or [] %}{{- '<call>' + c.function.name + ' ' }}"
    "{{- (c.function.arguments | tojson) + '</call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WITHOUT_TOOLS = "{# names tools and tool_calls, and writes none #}"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "cat"}}}
ROW = {
    "messages": [
        {"role": "user", "content": "what is red"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "seven houses", "name": "look_up"},
        {"role": "assistant", "content": "the cat"},
    ],
    "tools": [TOOL],
}
MODELS = {**{name: (family, None) for name, family in FAMILIES.items()},
          "marked_without_end": (FAMILIES["chatml"], MARKED_WITHOUT_END)}  # fmt: skip


def row(*weights):
    words = ["the cat", "in the old house", "by the river"]
    turns = []
    for number, weight in enumerate(weights):
        turns.append({"role": "user", "content": f"where {number}"})
        turns.append({"role": "assistant", "content": words[number]})
        if weight == 0:
            turns[-1]["weight"] = 0
    return {"messages": turns}


def learned(tokenizer, encoded):
    kept = [label for label in encoded.labels if label != IGNORED]
    return tokenizer.decode(kept)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0)])
def test_weight_0_masks_its_answer_and_nothing_else(name, weights):
    family, template = MODELS[name]
    tokenizer = build(family, template)
    whole = encode_example(tokenizer, row(1, 1, 1))
    masked = encode_example(tokenizer, row(*weights))
    # A family without an end of turn gets its end of text only behind an answer that is learned.
    shared = min(len(whole.input_ids), len(masked.input_ids))
    assert masked.input_ids[:shared] == whole.input_ids[:shared]
    assert len(whole.input_ids) - shared <= (1 - weights[-1])
    said = learned(tokenizer, masked)
    for number, words in enumerate(["the cat", "in the old house", "by the river"]):
        assert (words in said) == bool(weights[number]), said
    differ = [
        at for at in range(shared)
        if masked.labels[at] != whole.labels[at]
    ]  # fmt: skip
    assert all(masked.labels[at] == IGNORED for at in differ) and differ
    assert masked.trained_tokens + len(differ) + len(whole.input_ids) - shared \
        == whole.trained_tokens  # fmt: skip


def test_a_template_that_writes_tools_shows_schema_call_and_answer_and_learns_call_and_answer():
    tokenizer = build(FAMILIES["unmarked"], TOOLS_CHATML)
    encoded = encode_example(tokenizer, ROW)
    for piece in ('"name": "look_up"', '<call>look_up {"what": "cat"}</call>', "seven houses"):
        assert piece in encoded.text
    said = learned(tokenizer, encoded)
    assert '<call>look_up {"what": "cat"}</call><|im_end|>' in said and "the cat<|im_end|>" in said
    assert "seven houses" not in said and '"parameters"' not in said


@pytest.mark.parametrize("name", FAMILIES)
def test_families_whose_template_knows_no_tools_refuse_the_row_with_a_reason(name):
    with pytest.raises(RowProblem, match=r"knows no tools|leaves tools out|refuses"):
        encode_example(build(FAMILIES[name]), ROW)


@pytest.mark.parametrize(
    ("template", "gone"),
    [
        (WITHOUT_TOOLS + CHATML.replace("m['content']", "(m['content'] or '')"), "all"),
        (TOOLS_CHATML.replace("for m in messages", "for m in messages if m['role'] != 'tool'"),
         "the tool's words"),
        (TOOLS_CHATML.replace("c.function.name", "'f'"), "the name of a call"),
        (TOOLS_CHATML.replace("(tools | tojson)", "'tools'"), "the schemas"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_without_a_word_is_noticed(template, gone):
    example = {**ROW, "tools": [{**TOOL, "function": {"name": "other"}}, TOOL]}
    with pytest.raises(RowProblem, match="leaves tools out of the text"):
        encode_example(build(FAMILIES["unmarked"], template), example)


def test_a_template_that_fails_on_a_call_is_a_problem_of_the_row_not_of_the_program():
    template = WITHOUT_TOOLS + CHATML
    with pytest.raises((RowProblem, StudioError), match="refuses the conversation"):
        encode_example(build(FAMILIES["unmarked"], template), ROW)


def test_the_prompts_of_a_run_show_the_tools_as_training_does():
    tokenizer = build(FAMILIES["unmarked"], TOOLS_CHATML)
    [prompt] = choose_prompts([ROW])
    ids = measuring._prompt_ids(tokenizer, prompt, None)
    trained = encode_example(tokenizer, ROW)
    assert trained.input_ids[: len(ids)] == ids and '"look_up"' in tokenizer.decode(ids)
