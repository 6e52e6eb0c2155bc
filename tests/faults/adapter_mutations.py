"""What is done to an honest adapter before it is sent: hostile mutations, and harmless ones.

Owns `Parcel`, a run zip in the making, and the two tables of mutations by name. Which verdict each
is to get is judged in hostile_adapters.
"""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class Parcel:
    """A run zip in the making: the adapter's files, its config and its tensors."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    canary: Path
    files: dict[str, bytes | str] = field(default_factory=dict)  # beside the three above
    raw_config: bytes | None = None  # instead of `config`
    change_weights: Callable[[bytes], bytes] = lambda data: data
    links: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def first(self, part: str) -> str:
        """The first tensor with this in its name."""
        return next(name for name in sorted(self.tensors) if part in name)

    def evil(self) -> bytes:
        """A pickle that writes the canary when it is loaded."""
        return pickle.dumps(_Touch(str(self.canary)))

    def entries(self) -> dict[str, bytes | str]:
        """Names inside `adapter/` and their content."""
        config = self.raw_config or json.dumps(self.config).encode()
        found: dict[str, bytes | str] = {
            CONFIG: config, WEIGHTS: self.change_weights(save(self.tensors)),
        }  # fmt: skip
        found.update(self.files)
        return {name: data for name, data in found.items() if name not in self.without}


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


Mutation = Callable[[Parcel, random.Random], None]
HOSTILE: dict[str, Mutation] = {}
HARMLESS: dict[str, Mutation] = {}


def setting(**values: Any) -> Mutation:
    """Overwrite keys of adapter_config.json."""
    return lambda parcel, _: parcel.config.update(values)


def adding(name: str, content: bytes | str | None = None) -> Mutation:
    """One more file; without content a pickle that writes the canary."""

    def apply(parcel: Parcel, _: random.Random) -> None:
        parcel.files[name] = parcel.evil() if content is None else content

    return apply


def reshaped(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Mutation:
    """Another tensor in the place of the first that is called so."""

    def apply(parcel: Parcel, _: random.Random) -> None:
        name = parcel.first(part)
        parcel.tensors[name] = change(parcel.tensors[name]).contiguous()

    return apply


def renamed(change: Callable[[str], str]) -> Mutation:
    """All tensors under other names."""

    def apply(parcel: Parcel, _: random.Random) -> None:
        parcel.tensors = {change(name): tensor for name, tensor in parcel.tensors.items()}

    return apply


def header(change: Callable[[dict[str, Any], int], bytes]) -> Mutation:
    """Another header in front of the same data; `change` gets the header and its data's size."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        body = data[8 + length :]
        text = change(json.loads(data[8 : 8 + length]), len(body))
        return len(text).to_bytes(8, "little") + text + body

    return lambda parcel, _: setattr(parcel, "change_weights", rewrite)


def bytes_of(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    """The weights' file, changed as bytes."""
    return lambda parcel, draw: setattr(parcel, "change_weights", lambda data: change(data, draw))


def _entry(head: dict[str, Any], at: int, **values: Any) -> bytes:
    name = [key for key in head if key != "__metadata__"][at]
    head[name].update(values)
    return json.dumps(head).encode()


def _twin_header(head: dict[str, Any], _: int) -> bytes:
    text = json.dumps(head)
    name = next(key for key in head if key != "__metadata__")
    return (text[:-1] + f", {json.dumps(name)}: {json.dumps(head[name])}}}").encode()


def _overlap(head: dict[str, Any], _: int) -> bytes:
    names = [key for key in head if key != "__metadata__"]
    head[names[1]] = dict(head[names[0]])
    return json.dumps(head).encode()


def _flip_header(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(0, 8)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _drop(part: str) -> Mutation:
    def apply(parcel: Parcel, _: random.Random) -> None:
        del parcel.tensors[parcel.first(part)]

    return apply


def _extra(name: str, shape: tuple[int, ...]) -> Mutation:
    return lambda parcel, _: parcel.tensors.update({name: torch.ones(shape)})


def _raw(change: Callable[[bytes], bytes]) -> Mutation:
    return lambda parcel, _: setattr(
        parcel, "raw_config", change(json.dumps(parcel.config).encode())
    )


def _reorder(parcel: Parcel, draw: random.Random) -> None:
    keys = list(parcel.config)
    draw.shuffle(keys)
    parcel.config = {key: parcel.config[key] for key in keys}


def _only_pickle(parcel: Parcel, _: random.Random) -> None:
    parcel.files["adapter_model.bin"] = parcel.evil()
    parcel.without.append(WEIGHTS)


def _pickle_by_name(parcel: Parcel, _: random.Random) -> None:
    evil = parcel.evil()
    parcel.change_weights = lambda _data: evil


def _link_for_weights(parcel: Parcel, _: random.Random) -> None:
    parcel.without.append(WEIGHTS)
    parcel.links.append(WEIGHTS)


BASE = "base_model.model.model.layers.0.self_attn.q_proj"
EVIL_KEYS: dict[str, list[Any]] = {
    "auto_mapping": [{"base_model_class": "Popen", "parent_library": "subprocess"}],
    "peft_type": ["PREFIX_TUNING", "lora; import os", None, 7, ["LORA"]],
    "task_type": ["SEQ_CLS", ["CAUSAL_LM"]], "bias": ["all", "lora_only", 1],
    "r": [10**6, 0, -4, "4", 4.0, True, None, 8, [4]],
    "lora_alpha": [float("nan"), float("inf"), -1, 0, "16", None, 1e300, [16]],
    "lora_dropout": [2, -1, "0.1", None],
    "target_modules": ["(a+)+$", "all-linear", [], {}, [1], [""], ["x" * 1000], ["k_proj"], None],
    "base_model_name_or_path": ["http://127.0.0.1:1/x", "file:///etc/passwd", {"a": 1}],
    "corda_config": [{"cache_file": "/tmp/x.pt"}], "eva_config": [{"rho": 2.0}],
    "loftq_config": [{"loftq_bits": 4}], "lora_ga_config": [{"cache_file": "x"}],
    "modules_to_save": [["lm_head"], ["embed_tokens"], "lm_head"],
    "trainable_token_indices": [[0, 1], {"embed_tokens": [0]}],
    "target_parameters": [["mlp.experts.gate_up_proj"]], "layer_replication": [[[0, 2], [0, 2]]],
    "megatron_config": [{"model": "x"}], "megatron_core": ["os", "subprocess"],
    "rank_pattern": [{"(a+)+$": 4}], "alpha_pattern": [{"(a+)+$": 4}],
    "layers_pattern": ["(a+)+$"], "layers_to_transform": ["0", [-1], [1.5]],
    "exclude_modules": ["(a+)+$"], "alora_invocation_tokens": [[1, 2]],
    "arrow_config": [{"top_k": 1}], "use_qalora": [True], "use_bdlora": [{"a": 1}],
    "runtime_config": [{"ephemeral_gpu_offload": True}], "lora_bias": [True],
    "init_lora_weights": ["corda", "eva", "loftq", "pissa", "olora", "lora_ga", 1],
    "use_dora": [True, "yes"], "fan_in_fan_out": ["yes", 2], "trust_remote_code": [True],
    "auto_map": [{"AutoModel": "evil.Model"}], "unknown_key": [1, None], "__class__": ["x"],
    "custom_code": ["import os"], "velora_config": [{"a": 1}], "kasa_config": [{"beta": 1}],
}  # fmt: skip
for _key, _values in EVIL_KEYS.items():
    for _value in _values:
        HOSTILE[f"{_key}={str(_value)[:24]}"] = setting(**{_key: _value})
HOSTILE |= {
    "pickle only": _only_pickle,
    "pickle as safetensors": _pickle_by_name,
    "pickle beside": adding("adapter_model.bin"),
    "checkpoint beside": adding("optimizer.pt"),
    "training arguments": adding("training_args.bin"),
    "code beside": adding("modeling_evil.py", "import os; os.mkdir('CANARY')"),
    "zip slip": adding("../../evil.json", "{}"),
    "zip slip out": adding("../../../../evil.safetensors"),
    "absolute": adding("/tmp/evil.json", "{}"),
    "backslashes": adding("..\\..\\evil.json", "{}"),
    "drive": adding("C:evil.json", "{}"),
    "device": adding("CON.json", "{}"),
    "device with suffix": adding("nul.tar.json", "{}"),
    "trailing dot": adding("evil.json.", "{}"),
    "stream": adding("evil.json:x.json", "{}"),
    "nested": adding("sub/adapter_config.json", "{}"),
    "twice": adding("ADAPTER_CONFIG.json", "{}"),
    "many": lambda parcel, _: parcel.files.update({f"x{n}.json": "{}" for n in range(600)}),
    "bomb": adding("evil.json", b'{"a": "' + b"a" * (40 << 20) + b'"}'),
    "not JSON": adding("special_tokens_map.json", "{"),
    "code in tokenizer_config": adding(
        "tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    ),
    "link": lambda parcel, _: parcel.links.append("special_tokens_map.json"),
    "link for weights": _link_for_weights,
    "no config": lambda parcel, _: parcel.without.append(CONFIG),
    "no weights": lambda parcel, _: parcel.without.append(WEIGHTS),
    "config twice in itself": _raw(lambda text: text[:-1] + b', "r": 4}'),
    "config cut": _raw(lambda text: text[: len(text) // 2]),
    "config is a list": _raw(lambda text: b"[" + text + b"]"),
    "config deep": _raw(lambda text: text[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "config with bad bytes": _raw(lambda text: text.replace(b"LORA", b"LOR\xff")),
    "config of megabytes": _raw(lambda text: text[:-1] + b', "x": "' + b"a" * (2 << 20) + b'"}'),
    "missing A": _drop("lora_A"), "missing B": _drop("lora_B"),
    "extra base weight": _extra("model.embed_tokens.weight", (320, 64)),
    "extra lm_head": _extra("base_model.model.lm_head.weight", (320, 64)),
    "extra module": _extra(f"{BASE}_x.lora_A.weight", (4, 64)),
    "magnitude without DoRA": _extra(f"{BASE}.lora_magnitude_vector", (64,)),
    "embedding": _extra("base_model.model.model.embed_tokens.lora_embedding_A", (4, 320)),
    "bias": _extra(f"{BASE}.lora_B.bias", (64,)),
    "no prefix": renamed(lambda name: name.removeprefix("base_model.model.")),
    "name with path": renamed(lambda name: name.replace("layers", "../layers")),
    "name with zero": renamed(lambda name: name.replace("lora_A", "lora_A\x00")),
    "name with tag": renamed(lambda name: name.replace("layers.0", "<img src=x onerror=a()>")),
    "other layer": renamed(lambda name: name.replace("layers.1", "layers.7")),
    "dunder": renamed(lambda name: name.replace("self_attn", "__class__")),
    "A is narrow": reshaped("lora_A", lambda tensor: tensor[:, :-1]),
    "A is wide": reshaped("lora_A", lambda tensor: tensor.repeat(1, 2)),
    "B is short": reshaped("lora_B", lambda tensor: tensor[:-1]),
    "rank of one": reshaped("lora_A", lambda tensor: tensor[:1]),
    "turned": reshaped("lora_A", lambda tensor: tensor.T),
    "flat": reshaped("lora_A", lambda tensor: tensor.flatten()),
    "more dimensions": reshaped("lora_A", lambda tensor: tensor[None, None]),
    "empty": reshaped("lora_A", lambda tensor: tensor[:0]),
    "integers": reshaped("lora_A", lambda tensor: tensor.to(torch.int32)),
    "doubles": reshaped("lora_A", lambda tensor: tensor.double()),
    "booleans": reshaped("lora_A", lambda tensor: tensor > 0),
    "complex": reshaped("lora_A", lambda tensor: tensor.to(torch.complex64)),
    "NaN": reshaped("lora_A", lambda tensor: tensor.index_fill(1, torch.tensor([3]), torch.nan)),
    "infinity": reshaped("lora_B", lambda tensor: tensor / 0.0),
    "half infinity": reshaped("lora_B", lambda tensor: (tensor * 1e9).half()),
    "long header": header(lambda head, _: json.dumps(head).encode() + b" " * (40 << 20)),
    "header of names": header(
        lambda head, _: json.dumps({f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                    for n in range(100_000)} | head).encode()
    ),
    "header of dimensions": header(lambda head, _: _entry(head, 0, shape=[1] * 100_000)),
    "header of huge sizes": header(lambda head, _: _entry(head, 0, shape=[10**4000] * 1000)),
    "overlap": header(_overlap),
    "twin tensors": header(_twin_header),
    "negative": header(lambda head, _: _entry(head, 0, data_offsets=[-8, 8])),
    "backwards": header(lambda head, _: _entry(head, 0, data_offsets=[64, 0])),
    "outside": header(lambda head, size: _entry(head, 1, data_offsets=[size, 2 * size])),
    "unknown type": header(lambda head, _: _entry(head, 0, dtype="PICKLE")),
    "type is a list": header(lambda head, _: _entry(head, 0, dtype=["F32"])),
    "shape of text": header(lambda head, _: _entry(head, 0, shape="64")),
    "shape of truth": header(lambda head, _: _entry(head, 0, shape=[True, 64])),
    "entry is null": header(lambda head, _: json.dumps({**head, "x": None}).encode()),
    "header deep": header(lambda head, _: b'{"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
    "header is a list": header(lambda head, _: b"[]"),
    "header cut": header(lambda head, _: json.dumps(head).encode()[:-1]),
    "length of nothing": bytes_of(lambda data, _: bytes(8) + data[8:]),
    "length of all": bytes_of(lambda data, _: b"\xff" * 8 + data[8:]),
    "length flipped": bytes_of(_flip_header),
    "cut": bytes_of(lambda data, draw: data[: draw.randrange(len(data))]),
    "cut at the end": bytes_of(lambda data, _: data[:-1]),
    "longer": bytes_of(lambda data, _: data + bytes(4)),
    "zip as weights": bytes_of(lambda data, _: b"PK\x03\x04" + data),
    "nothing": bytes_of(lambda data, _: b""),
}  # fmt: skip
HARMLESS = {
    "as it is": lambda parcel, _: None,
    "other order": _reorder,
    "read me": adding("README.md", "# adapter <script>alert(1)</script>"),
    "tokenizer beside": adding("special_tokens_map.json", '{"eos_token": "x"}'),
    "large tokenizer": adding("tokenizer.json", b'{"a": "' + b"a" * (3 << 20) + b'"}'),
    "template beside": adding("chat_template.jinja", "{% for x in range(99999) %}{% endfor %}"),
    "moved base": setting(base_model_name_or_path="/home/vera/models/x"),
    "hub base": setting(base_model_name_or_path="Qwen/Qwen3-0.6B"),
    "no base": setting(base_model_name_or_path=None),
    "other alpha": setting(lora_alpha=7.5),
    "other dropout": setting(lora_dropout=0.3),
    "rank-stabilised": setting(use_rslora=True),
    "gaussian": setting(init_lora_weights="gaussian"),
    "for training": setting(inference_mode=False),
    "empty patterns": setting(rank_pattern={}, alpha_pattern={}, modules_to_save=None),
    "peft of tomorrow": setting(peft_version="9.9.9"),
    "lower case": setting(bias="none", task_type="CAUSAL_LM"),
    "revision": setting(revision="main"),
    "half": lambda parcel, _: parcel.tensors.update(
        {name: tensor.half() for name, tensor in parcel.tensors.items()}
    ),
    "bfloat": lambda parcel, _: parcel.tensors.update(
        {name: tensor.bfloat16() for name, tensor in parcel.tensors.items()}
    ),
    "zeros": lambda parcel, _: parcel.tensors.update(
        {name: torch.zeros_like(tensor) for name, tensor in parcel.tensors.items()}
    ),
    "flipped weight": lambda parcel, draw: parcel.tensors[parcel.first("lora_B")].__setitem__(
        (0, 0), draw.random()
    ),
    "spaces in the config": _raw(lambda text: text + b"\n\n  "),
    "metadata": header(
        lambda head, _: json.dumps({**head, "__metadata__": {"format": "pt", "x": "<b>"}}).encode()
    ),
    "padded header": header(lambda head, _: json.dumps(head).encode() + b" " * 64),
}
