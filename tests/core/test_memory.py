"""The estimate: items that add up, in milliseconds, and honest about what is unknown."""

from __future__ import annotations

import json
import time

import pytest

from studio.core.config import LoraSection
from studio.core.errors import TargetModulesError
from studio.core.memory import Estimate, constants_of, estimate, variant_of
from studio.core.memory_methods import METHODS, family
from studio.core.memory_words import answer
from studio.core.model_profile import ModelProfile, adapted_matrices
from tests.core.memory_demands import demand, resolved

GIB = 2**30


def total(config: dict | None = None, **changes: object) -> int:
    return estimate(demand(config, **changes)).expected


def named(found: Estimate) -> dict[str, int]:
    return {item.name: item.bytes for item in found.items}


def test_an_estimate_takes_less_than_5_ms() -> None:
    asked = [demand({"train": {"max_length": 256 + 16 * i}}) for i in range(40)]
    times = []
    for question in asked:
        begun = time.perf_counter()
        estimate(question)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[len(times) // 2] < 0.005


def test_the_items_are_the_total() -> None:
    for values in ({}, {"quantization": {"load_in_4bit": True}}, {"train": {"packing": True}}):
        found = estimate(demand(values))
        assert sum(item.bytes for item in found.items) == found.expected
        assert found.low <= found.expected <= found.high
        assert found.expected == json.loads(json.dumps(found.to_dict()))["total"]["expected"]
        assert all(item.bytes > 0 and item.title and item.why for item in found.items)


def test_what_comes_and_goes_counts_once() -> None:
    found = estimate(demand())
    largest = max(found.phases, key=lambda name: found.phases[name])
    passing = [item for item in found.items if item.phase != "always"]
    assert {item.phase for item in passing} == {largest}
    assert sum(item.bytes for item in passing) == found.phases[largest]


CPU_RUN = {"runtime": {"device": "cpu"}, "train": {"max_length": 64}}


def loading(dtype: str, *, four_bit: bool = False) -> tuple[int, Estimate]:
    """The phase of loading on a CPU, what is trained added, and the estimate."""
    wanted = {**CPU_RUN, "model": {"dtype": dtype}, "quantization": {"load_in_4bit": four_bit}}
    found = estimate(demand(wanted, constants=constants_of("cpu")))
    trained = sum(named(found).get(name, 0) for name in ("adapter", "gradients", "optimizer"))
    return found.phases["loading"] + trained, found


def test_the_weights_file_lies_beside_weights_of_another_number_format() -> None:
    file = 2 * family()["7 B"].total_params
    beside, found = loading("float32")
    assert beside == file
    items = named(found)
    assert "fragmentation" not in items  # loading rules, and leaves no gaps
    trained = sum(items[name] for name in ("adapter", "gradients", "optimizer"))
    assert items["loading"] == file - trained
    assert found.expected == constants_of("cpu").context_bytes + items["weights"] + file


def test_weights_as_they_are_stored_are_the_file() -> None:
    _, found = loading("bfloat16")
    assert found.phases["loading"] == 0
    assert "loading" not in named(found)


def test_what_was_packed_is_read_beside_the_packed_weights() -> None:
    file = 2 * family()["7 B"].total_params
    beside, found = loading("bfloat16", four_bit=True)
    assert beside == file - named(found)["weights_other"]  # these stay pages of the file
    assert loading("float32", four_bit=True)[0] == file


def test_a_card_holds_no_weights_file() -> None:
    assert estimate(demand()).phases["loading"] == 0


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"lora": {"r": 8}}, {"lora": {"r": 64}}),
        ({"train": {"max_length": 512}}, {"train": {"max_length": 4096}}),
        ({"train": {"per_device_train_batch_size": 1}},
         {"train": {"per_device_train_batch_size": 8}}),
        ({}, {"train": {"activation_checkpointing": False}}),
        ({"quantization": {"load_in_4bit": True}}, {}),
        ({"quantization": {"load_in_4bit": True}},
         {"quantization": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}}),
        ({"train": {"optim": "paged_adamw_8bit"}}, {}),
        ({"lora": {"target_modules": "attention"}}, {}),
    ],
)  # fmt: skip
def test_each_knob_moves_the_bar(less: dict, more: dict) -> None:
    assert total(less) < total(more)


def test_qlora_of_7_b_fits_the_card_it_is_known_to_fit() -> None:
    """LLaMA-Factory measured 6 GB for Llama-2-7B, NF4, r = 8, 1 x 1024 tokens."""
    found = estimate(demand({
        "quantization": {"load_in_4bit": True}, "lora": {"r": 8},
        "train": {"per_device_train_batch_size": 1},
    }))  # fmt: skip
    assert 4.5 * GIB < found.expected < 7.5 * GIB


def test_paged_states_are_marked() -> None:
    found = estimate(demand({"train": {"optim": "paged_adamw_8bit"}}))
    (states,) = (item for item in found.items if item.name == "optimizer")
    assert states.may_move and "host" in states.why


def test_short_rows_need_less_than_max_length() -> None:
    assert total(rows_tokens=200) < total()


def test_only_learned_tokens_are_scored_on_cuda() -> None:
    found = [estimate(demand({"train": {"max_length": 4096}}, learned_share=share)).phases["head"]
             for share in (0.1, 1.0)]  # fmt: skip
    assert found[0] < found[1]
    cpu = {"runtime": {"device": "cpu"}}
    found = [estimate(demand(cpu, learned_share=share)).phases["head"] for share in (0.1, 1.0)]
    assert found[0] == found[1]


def test_a_full_head_costs_more_than_a_fused_one() -> None:
    wide = {"train": {"max_length": 4096, "per_device_train_batch_size": 4}}
    fused, full = (estimate(demand(wide, full_head=full)).phases["head"] for full in (False, True))
    assert full > 2 * fused


def test_without_costs_the_activations_are_unknown_not_guessed() -> None:
    found = estimate(demand(costs=None))
    assert found.unknown == ("activations",)
    assert "activations" not in named(found)
    assert "unknown" in answer(found, 24 * GIB)
    assert "more already" in answer(found, 8 * GIB)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_every_method_has_an_estimate(method) -> None:
    found = estimate(demand(method=method))
    assert found.expected > 3 * GIB
    assert ("adapter" in named(found)) == (method.trains == "adapter")


def test_sentences() -> None:
    found = estimate(demand())
    assert answer(found, found.high + 2 * GIB).startswith("Fits with")
    assert answer(found, found.expected).startswith("Fits barely")
    assert answer(found, found.expected - 2 * GIB).startswith("Needs 2.0 GiB more")
    assert "is unknown" in answer(found, None)


def test_variants_follow_the_configuration() -> None:
    one = resolved({"train": {"per_device_train_batch_size": 1}})
    assert not variant_of(one).padded
    assert not variant_of(one, 2048).padded and variant_of(one, 1024).padded
    assert variant_of(resolved()).padded and variant_of(resolved()).adapter_cast
    four = resolved({"quantization": {"load_in_4bit": True}})
    assert not variant_of(four).adapter_cast
    on_cpu = {"quantization": {"load_in_4bit": True}, "runtime": {"device": "cpu"}}
    assert variant_of(resolved(on_cpu)).adapter_cast
    packed = variant_of(resolved({"train": {"packing": True}}))
    assert packed.packed and not packed.padded


def test_target_modules_by_name() -> None:
    profile = family()["7 B"]
    names = {m.name for m in adapted_matrices(profile, LoraSection(target_modules="attention"))}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(adapted_matrices(profile, LoraSection(target_modules=["q_proj"]))) == 1
    with pytest.raises(TargetModulesError, match="query_key_value"):
        adapted_matrices(profile, LoraSection(target_modules=["query_key_value"]))


def test_a_profile_travels_as_json() -> None:
    profile = family()["13 B"]
    assert ModelProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_constants_by_device() -> None:
    assert constants_of("cuda:1") is not constants_of("cpu")
