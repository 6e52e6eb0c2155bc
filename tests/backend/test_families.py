"""The batch that our trainer feeds equals the one that TRL's own pipeline feeds, family by family.

TRL gets the rows as it wants them: `messages` with assistant_only_loss where the template marks
answers, prompt and completion where it does not, `text` without a template. Both trainers take one
step with all rows in one batch, and what reaches the model is compared: input_ids, labels and
attention mask. Where we differ on purpose, the difference is tested exactly:

  1. white space behind an end token: TRL's completions learn it, we do not. Generation stops on
     the end token, so nobody ever reads it, and it would be the last thing a row teaches.
  2. an end token behind the template's markers: TRL masks it (and warns), we learn it. A model
     that never learns to end talks until its limit.
  3. a learned text that ends with a character of several tokens: TRL learns only the first of
     them, we learn all, or the model would write half a character.
  4. a system message that the template drops without a word: TRL trains without it, we put it in
     front of the first question, as templates that refuse the role are served.
  5. no end-of-text token at all: TRL fails, we train.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.backend import adapters, data, loading
from studio.backend.end_token import end_token_report
from studio.backend.sft import StudioTrainer, build_trainer
from studio.backend.tokenize import (
    IGNORED,
    _encodings,
    _learned_ranges,
    encode_batches,
    encode_example,
    stop_token_ids,
)
from studio.core.config_io import build_config
from studio.core.plan import resolve
from tests.backend.families import BARE, FAMILIES, MARKED_WITHOUT_END, Family, build
from tests.backend.tiny import CPU

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
MAX_LENGTH = 72
Row = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(autouse=True)
def _as_in_the_trainer():
    loading.quiet_libraries()


def conversation(*contents: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    return {"messages": turns}


SINGLE = [
    conversation("what is red", "the cat"),
    conversation("where does the bird sing?", "by the river. "),
    conversation("caf\u00e9 \u732b", "yes \U0001f408, maybe"),
    conversation("say it", "one\ntwo\n\nthree"),
    conversation("count", "one two three four five six seven " * 100),  # cut at MAX_LENGTH
    conversation("one two three four five six seven eight " * 100, "no"),  # its answer is cut off
]
MULTI = [
    conversation("what is red", "the cat", "where", "in the old house"),
    conversation("a", "yes", "b", "yes", "c", "no " * 40),
]
SYSTEM = [conversation("what is red", "the cat", system="say yes or no")]


def make_model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        pad_token_id=None, eos_token_id=None, bos_token_id=None,
    ))  # fmt: skip


def rows_of(batch: dict[str, torch.Tensor]) -> list[Row]:
    """The rows of a batch without padding, in an order that does not depend on the sampler.

    The label of a first token is left out: nothing predicts it, so it is in no loss.
    """
    mask = batch["attention_mask"].bool()
    assert (batch["labels"][~mask] == IGNORED).all()  # padding teaches nothing, also if it is eos
    longest = int(mask.sum(1).max())
    assert mask.shape[1] == longest
    return sorted(
        (tuple(ids[keep].tolist()), (IGNORED, *labels[keep].tolist()[1:]))
        for ids, labels, keep in zip(batch["input_ids"], batch["labels"], mask, strict=True)
    )


def caught(monkeypatch: pytest.MonkeyPatch, kind: Any) -> list[dict[str, torch.Tensor]]:
    """What reaches compute_loss of a trainer class."""
    seen: list[dict[str, torch.Tensor]] = []
    original = kind.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        seen.append({name: value.clone() for name, value in inputs.items()
                     if isinstance(value, torch.Tensor)})  # fmt: skip
        return original(self, model, inputs, *rest, **named)

    monkeypatch.setattr(kind, "compute_loss", compute_loss)
    return seen


def trl_rows(monkeypatch, tmp_path, tokenizer: Any, examples: list[Any], **options: Any):
    """What TRL's pipeline feeds for these examples."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with monkeypatch.context() as patch:
        seen = caught(patch, SFTTrainer)
        SFTTrainer(
            model=make_model(tokenizer),
            args=SFTConfig(
                output_dir=str(tmp_path / "trl"), max_length=MAX_LENGTH, max_steps=1, bf16=False,
                per_device_train_batch_size=len(examples), use_cpu=True, report_to=[],
                save_strategy="no", disable_tqdm=True, activation_checkpointing=False, **options,
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
        ).train()  # fmt: skip
    return rows_of(seen[0])


class NoHooks:
    """A trainer of ours outside a run."""

    def measure(self, step: int) -> None:
        """Nothing to evaluate."""

    def save(self, step: int) -> None:
        """Nothing to keep."""

    def diverged(self, *facts: Any) -> None:
        raise AssertionError(facts)


def our_rows(
    monkeypatch, tmp_path, tokenizer: Any, examples: list[Any], loss_on: str = "assistant"
) -> list[Row]:
    """What our trainer feeds for these examples, by way of data.prepare."""
    from transformers import TrainerCallback

    config = build_config({
        "data": {"val_frac": 0.0}, "lora": {"r": 2, "lora_alpha": 4},
        "model": {"dtype": "float32", "attn_implementation": "sdpa"},
        "train": {"max_length": MAX_LENGTH, "max_steps": 1, "loss_on": loss_on,
                  "per_device_train_batch_size": len(examples), "gradient_accumulation_steps": 1},
    })  # fmt: skip
    config = resolve(
        config, CPU, len(examples), 0, {"params": 1000, "context_length": 256}
    ).config  # fmt: skip
    loading.ensure_pad_token(tokenizer)
    prepared = data.prepare(tokenizer, examples, config)
    with monkeypatch.context() as patch:
        seen = caught(patch, StudioTrainer)
        model = adapters.attach(make_model(tokenizer), config.lora, seed=1)
        trainer = build_trainer(
            model, tokenizer, data.to_dataset(prepared.train), config,
            output_dir=tmp_path / "ours", callback=TrainerCallback(),
        )  # fmt: skip
        trainer.hooks = NoHooks()
        trainer.train()
    return rows_of(seen[0])


def as_prompts(examples: list[Any]) -> list[Any]:
    return [{"prompt": e["messages"][:-1], "completion": e["messages"][-1:]} for e in examples]


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.marked])
def test_marked_families_feed_what_trl_feeds(monkeypatch, tmp_path, name):
    family = FAMILIES[name]
    examples = [*SINGLE, *MULTI]
    if name not in ("gemma", "no_system"):  # tested below
        examples += SYSTEM
    tokenizer = build(family)
    theirs = trl_rows(monkeypatch, tmp_path, tokenizer, examples, assistant_only_loss=True)
    ours = our_rows(monkeypatch, tmp_path, build(family), examples)
    assert ours == theirs
    assert len(ours) == len(examples) - 1  # the row without its answer is left out by both


def without_space_behind_the_end(tokenizer: Any, rows: list[Row]) -> list[Row]:
    """Difference 1 taken out: learned white space behind the last stop token of a row."""
    stops = stop_token_ids(tokenizer)
    cleaned = []
    for ids, labels in rows:
        kept = list(labels)
        for place in reversed(range(len(ids))) if {*stops} & {*kept} else ():
            if kept[place] in stops or tokenizer.decode([ids[place]]).strip():
                break
            kept[place] = IGNORED
        cleaned.append((ids, tuple(kept)))
    return sorted(cleaned)


@pytest.mark.parametrize("name", ["mistral", "phi", "unmarked"])
def test_unmarked_families_feed_what_trl_makes_of_prompts(monkeypatch, tmp_path, name):
    family = FAMILIES[name]
    examples = SINGLE if name == "mistral" else [*SINGLE, *SYSTEM]
    tokenizer = build(family)
    theirs = trl_rows(monkeypatch, tmp_path, tokenizer, as_prompts(examples))
    ours = our_rows(monkeypatch, tmp_path, build(family), examples)
    assert ours == without_space_behind_the_end(tokenizer, theirs)
    assert (ours == theirs) is (name != "unmarked")  # ChatML writes a line end behind its end


def test_a_model_without_template_or_padding_token_feeds_what_trl_feeds(monkeypatch, tmp_path):
    family = FAMILIES["no_template"]
    texts = [{"text": "the red cat"}, {"text": "maybe \u732b."}, {"text": "one two three " * 40}]
    theirs = trl_rows(monkeypatch, tmp_path, build(family), texts)
    assert our_rows(monkeypatch, tmp_path, build(family), texts) == theirs
    # TRL wants prompt and completion as they stand in the text: ours puts a line end between.
    pairs = [{"prompt": e["messages"][0]["content"] + "\n",
              "completion": e["messages"][1]["content"]} for e in SINGLE]  # fmt: skip
    theirs = trl_rows(monkeypatch, tmp_path, build(family), pairs)
    assert our_rows(monkeypatch, tmp_path, build(family), SINGLE) == theirs


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_text_of_a_model_that_writes_its_own_beginning_has_one(monkeypatch, tmp_path, name):
    texts = [{"text": "the red cat"}, {"text": "no"}]
    tokenizer = build(FAMILIES[name])
    theirs = trl_rows(monkeypatch, tmp_path, build(FAMILIES[name]), texts)
    ours = our_rows(monkeypatch, tmp_path, tokenizer, texts)
    assert ours == theirs
    for examples in (texts, SINGLE[:2]):
        for example in examples:
            ids = encode_example(tokenizer, example).input_ids
            assert ids.count(tokenizer.bos_token_id) == 1


def test_loss_on_all_feeds_what_trl_feeds_without_a_mask(monkeypatch, tmp_path):
    family = FAMILIES["chatml"]
    examples = [*SINGLE, *MULTI, *SYSTEM]
    theirs = trl_rows(monkeypatch, tmp_path, build(family), examples)
    assert our_rows(monkeypatch, tmp_path, build(family), examples, "all") == theirs


def test_an_end_token_behind_the_markers_is_learned(monkeypatch, tmp_path):
    family, examples = FAMILIES["chatml"], SINGLE[:2]
    theirs = trl_rows(monkeypatch, tmp_path, build(family, MARKED_WITHOUT_END), examples,
                      assistant_only_loss=True)  # fmt: skip
    ours = our_rows(monkeypatch, tmp_path, build(family, MARKED_WITHOUT_END), examples)
    end = build(family).convert_tokens_to_ids("<|im_end|>")
    for (ids, labels), (their_ids, their_labels) in zip(ours, theirs, strict=True):
        assert ids == their_ids
        added = [i for i in range(len(ids)) if labels[i] != their_labels[i]]
        assert [labels[i] for i in added] == [end]
        assert labels.count(end) == 1
        assert end not in their_labels


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_a_character_of_several_tokens_at_the_end_is_learned_whole(monkeypatch, tmp_path, name):
    family = FAMILIES[name]
    template = MARKED_WITHOUT_END if name == "chatml" else family.template.replace(
        "| trim + '<end_of_turn>' }}{% endgeneration %}{{- '\n' }}",
        "| trim }}{% endgeneration %}{{- '<end_of_turn>\n' }}",
    )  # fmt: skip
    examples = [conversation("what", "a cat \U0001f408")]
    [(ids, theirs)] = trl_rows(
        monkeypatch, tmp_path, build(family, template), examples, assistant_only_loss=True
    )
    [(our_ids, ours)] = our_rows(monkeypatch, tmp_path, build(family, template), examples)
    assert our_ids == ids
    tokenizer = build(family)
    learned = tokenizer.decode([label for label in ours if label != IGNORED])
    assert learned.startswith("a cat \U0001f408<")
    assert "\U0001f408" not in tokenizer.decode([label for label in theirs if label != IGNORED])


@pytest.mark.parametrize("name", ["gemma", "no_system", "mistral"])
def test_a_system_message_is_never_lost(monkeypatch, tmp_path, name):
    family = FAMILIES[name]
    folded = [conversation("say yes or no\n\nwhat is red", "the cat")]
    ours = our_rows(monkeypatch, tmp_path, build(family), SYSTEM)
    assert ours == our_rows(monkeypatch, tmp_path, build(family), folded)
    if name == "no_system":
        theirs = trl_rows(monkeypatch, tmp_path, build(family), SYSTEM, assistant_only_loss=True)
        tokenizer = build(family)
        assert "say yes" not in tokenizer.decode(list(theirs[0][0]))
        assert "say yes" in tokenizer.decode(list(ours[0][0]))


def test_a_tokenizer_with_nothing_special_trains_where_trl_fails(monkeypatch, tmp_path):
    texts = [{"text": "the red cat"}, {"text": "no"}]
    with pytest.raises((TypeError, ValueError)):
        trl_rows(monkeypatch, tmp_path, build(BARE), texts)
    rows = our_rows(monkeypatch, tmp_path, build(BARE), texts)
    assert all(ids[1:] == labels[1:] for ids, labels in rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_token_is_learned_and_generation_stops_on_it(name):
    tokenizer = build(FAMILIES[name])
    loading.ensure_pad_token(tokenizer)
    for example in [*SINGLE[:4], *MULTI]:
        encoded = encode_example(tokenizer, example)
        report = end_token_report(tokenizer, encoded)
        assert report["verdict"] == "ok", report
        assert report["id"] in stop_token_ids(tokenizer)
        assert report["id"] in encoded.labels
    assert report["pad_is_eos"] is (tokenizer.pad_token_id == tokenizer.eos_token_id)
    if report["pad_is_eos"]:
        assert "stays learned" in report["message"]


def test_what_is_wrong_with_an_end_is_told():
    tokenizer = build(FAMILIES["chatml"])
    cut = encode_example(tokenizer, SINGLE[4], max_length=MAX_LENGTH)
    assert end_token_report(tokenizer, cut)["verdict"] == "cut"
    lost = encode_example(tokenizer, SINGLE[5], max_length=MAX_LENGTH)
    assert end_token_report(tokenizer, lost)["verdict"] == "nothing_learned"
    bare = build(BARE)
    report = end_token_report(bare, encode_example(bare, {"text": "the cat"}))
    assert report["verdict"] == "never_stops" and "until its limit" in report["message"]
    whole = encode_example(tokenizer, SINGLE[0], loss_on="all")
    assert end_token_report(tokenizer, whole)["verdict"] == "ok"  # a line end behind it


@pytest.mark.parametrize("name", [*FAMILIES, "bare"])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_batches_for_the_trainer_equal_the_rows_of_the_preview(name, loss_on):
    family: Family = BARE if name == "bare" else FAMILIES[name]
    tokenizer = build(family)
    examples = [*SINGLE, *MULTI, *SYSTEM, {"text": "plain \u732b"}, {"text": " "}] * 3
    batches = encode_batches(
        tokenizer, examples, loss_on=loss_on, system_prompt="be small", batch_rows=7, threads=2
    )
    found, refused = [], 0
    for batch in batches:
        start = 0
        for row, length in enumerate(batch.lengths.tolist()):
            if row in batch.problems:
                assert length == 0
                refused += 1
                found.append(None)
                continue
            ids = batch.ids[start : start + length].tolist()
            mask = batch.learned[start : start + length].tolist()
            found.append((ids, [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]))
            start += length
    assert refused == 3
    for example, row in zip(examples, found, strict=True):
        if row is not None:
            alone = encode_example(tokenizer, example, loss_on=loss_on, system_prompt="be small")
            assert row == (alone.input_ids, alone.labels)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*FAMILIES, "bare"]),
    parts=st.lists(st.text(max_size=12), min_size=1, max_size=6),
    picks=st.sets(st.integers(0, 5)),
)
def test_two_lookups_a_span_find_what_a_loop_over_tokens_finds(name, parts, picks):
    tokenizer = cached(name)
    text = "".join(parts)
    edges = [len("".join(parts[:i])) for i in range(len(parts) + 1)]
    spans = [(edges[i], edges[i + 1]) for i in sorted(picks) if i < len(parts)]
    for chat in (True, False):
        [encoding] = _encodings(tokenizer, [text], chat)
        count = len(encoding)
        found = set()
        for first, behind in _learned_ranges(encoding, count, text, spans):
            found |= {*range(first, behind)}
        # Each token that has characters, looked at for itself.
        simple = {
            place for place, (start, end) in enumerate(encoding.offsets)
            if start < end and any(start < last and end > first for first, last in spans)
        }  # fmt: skip
        widthless = {p for p, (start, end) in enumerate(encoding.offsets) if start == end}
        assert simple <= found
        assert found - simple <= widthless
        assert not found & {p for p in range(count) if encoding.special_tokens_mask[p]}


@lru_cache
def cached(name: str) -> Any:
    return build(BARE if name == "bare" else FAMILIES[name])
