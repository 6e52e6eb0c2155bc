"""What an estimate needs to know of a model; all of it follows from its config.json.

Owns `ModelProfile` and which of its matrices an adapter goes on. It is made by
`backend.profile`, kept as JSON, and read by `core.memory`. Pure; knows nothing of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from studio.core.config import ATTENTION_SUFFIXES, LoraSection
from studio.core.errors import TargetModulesError
from studio.core.memory_terms import Shape, numel


@dataclass(frozen=True)
class Matrices:
    """Equal linear layers: y = W x with W out x in.

    Attributes:
        name: the last part of the layers' names.
        quantized: whether bitsandbytes replaces them (not the head, not tied ones).
        head: whether it is the output head, which gets no adapter.
    """

    name: str
    in_features: int
    out_features: int
    count: int
    quantized: bool = True
    head: bool = False

    @property
    def weights(self) -> int:
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ModelProfile:
    """The numbers of a model.

    Attributes:
        kinds: the different sorts of layers, each as the shapes of its tensors.
        order: which kind each layer is.
        outside: shapes of the tensors outside the layers (embeddings, final norm, head).
        fp32_params: numbers kept in fp32 whatever the dtype.
        buffer_bytes: rotary tables and the like, by dtype of the weights.
        kv_width: key-value heads x head size, for the cache of a generation.
        window_tokens: of sliding attention; rows from that length on get a mask.
        trainable_here: whether it is a causal language model, the kind that is trained here.
    """

    architecture: str
    layers: int
    hidden_size: int
    vocab_size: int
    matrices: tuple[Matrices, ...]
    kinds: tuple[tuple[Shape, ...], ...]
    order: tuple[int, ...]
    outside: tuple[Shape, ...]
    fp32_params: int = 0
    buffer_bytes: Mapping[str, int] = field(default_factory=dict)
    kv_width: int = 0
    context_tokens: int | None = None
    window_tokens: int | None = None
    trainable_here: bool = True

    @property
    def total_params(self) -> int:
        """All numbers, a tied head once."""
        inside = [sum(numel(shape) for shape in kind) for kind in self.kinds]
        return sum(inside[kind] for kind in self.order) + sum(map(numel, self.outside))

    @property
    def other_params(self) -> int:
        """Numbers outside the matrices: embeddings, norms, biases."""
        return self.total_params - sum(m.count * m.weights for m in self.matrices)

    def shapes(self, last_layers: int | None = None) -> list[tuple[Shape, int]]:
        """(shape, count) of all tensors, or of the last layers' alone."""
        chosen = self.order if last_layers is None else self.order[-last_layers:]
        found: Counter[Shape] = Counter(shape for kind in chosen for shape in self.kinds[kind])
        if last_layers is None:
            found.update(self.outside)
        return list(found.items())

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the inverse is `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelProfile:
        """Of `to_dict`, also after a journey through JSON."""
        return cls(**{
            **record,
            "matrices": tuple(Matrices(**m) for m in record["matrices"]),
            "kinds": tuple(tuple(map(tuple, kind)) for kind in record["kinds"]),
            "order": tuple(record["order"]),
            "outside": tuple(map(tuple, record["outside"])),
        })  # fmt: skip


def adapted_matrices(profile: ModelProfile, lora: LoraSection) -> list[Matrices]:
    """The matrices that `target_modules` picks, by the last part of their names.

    Raises:
        TargetModulesError: nothing has that name. A full path ("layers.0.q_proj") is not known
            here: `services.inspect` answers for it.
    """
    body = [m for m in profile.matrices if not m.head]
    targets = lora.target_modules
    if targets == "all-linear":
        return body
    names = ATTENTION_SUFFIXES if targets == "attention" else targets
    wanted = {names} if isinstance(names, str) else set(names)
    found = [m for m in body if m.name in wanted]
    missing = [] if targets == "attention" else sorted(wanted - {m.name for m in body})
    if missing or not found:
        raise TargetModulesError(
            "No linear layer of the model has this name", value=", ".join(missing) or str(targets),
            allowed="all-linear, attention, or names from: "
            + ", ".join(dict.fromkeys(m.name for m in body)),
        )  # fmt: skip
    return found
