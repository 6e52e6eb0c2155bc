"""How the rows are looked at: the model and the knobs that decide what a row becomes.

Owns `Look`, read from the values that a page sends, and the token summaries that were made for it.
A value that is wrong stands as the knob's default here: the Train tab is where it is refused.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.core.config import DataSection, TrainSection
from studio.core.token_stats import TokenSummary

if TYPE_CHECKING:
    from studio.services.dataset_records import DatasetInfo
    from studio.ui.form import Form

KEPT = 32
_LARGEST = 2**24
_KNOBS = {
    "loss_on": "train.loss_on", "max_length": "train.max_length", "seed": "train.seed",
    "system_prompt": "data.system_prompt", "val_frac": "data.val_frac",
    "batch_size": "train.per_device_train_batch_size",
    "accumulation": "train.gradient_accumulation_steps", "epochs": "train.num_train_epochs",
    "max_steps": "train.max_steps", "packing": "train.packing",
    "grouped": "train.group_by_length",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What decides how the rows are read, split and put into batches."""

    model_id: str
    loss_on: str
    max_length: int
    system_prompt: str | None
    val_frac: float
    seed: int
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int
    packing: bool
    grouped: bool

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Look:
        """From the values of the controls that `inputs` names."""
        prompt = raw.get("system_prompt")
        return cls(
            model_id=str(raw.get("model_id") or "starter"),
            loss_on=str(raw.get("loss_on") or _default("train.loss_on")),
            max_length=_whole(raw, "max_length", 1),
            system_prompt=prompt.strip() or None if isinstance(prompt, str) else None,
            val_frac=_share(raw.get("val_frac")),
            seed=_whole(raw, "seed", 0),
            batch_size=_whole(raw, "batch_size", 1),
            accumulation=_whole(raw, "accumulation", 1),
            epochs=_positive(raw.get("epochs")),
            max_steps=_whole(raw, "max_steps", -1),
            packing=raw.get("packing") is True,
            grouped=raw.get("grouped") is True,
        )

    def options(self) -> dict[str, Any]:
        """For the inspector."""
        return {"loss_on": self.loss_on, "max_length": self.max_length,
                "system_prompt": self.system_prompt}  # fmt: skip


def inputs(form: Form, model: Any) -> dict[str, Any]:
    """The controls of a look, for `inputs_kwargs`; `raw` of `Look.of` are their values."""
    chosen = {name: form.controls[path] for name, path in _KNOBS.items() if path in form.controls}
    return {**chosen, "model_id": model}


def _default(path: str) -> Any:
    section, _, name = path.partition(".")
    owner = DataSection if section == "data" else TrainSection
    return owner.model_fields[name].default


def _whole(raw: Mapping[str, Any], name: str, least: int) -> int:
    value = raw.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < _LARGEST:
        return int(value)
    return int(_default(_KNOBS[name]))


def _share(value: Any) -> float:
    if isinstance(value, int | float) and 0 <= value <= 0.5:
        return float(value)
    return float(_default("data.val_frac"))


def _positive(value: Any) -> float:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    return float(value) if ok else float(_default("train.num_train_epochs"))


class TokenBook:
    """The last token summaries, by data and by what decides the tokens. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], tuple[TokenSummary, int]] = OrderedDict()

    def put(self, info: DatasetInfo, look: Look, summary: TokenSummary) -> None:
        """Keep a summary; `look.max_length` is the one its `first_rows` are of."""
        with self._lock:
            self._kept[_key(info, look)] = (summary, look.max_length)
            self._kept.move_to_end(_key(info, look))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def get(self, info: DatasetInfo, look: Look) -> TokenSummary | None:
        """The summary of these rows as this look reads them, None where nobody counted."""
        with self._lock:
            found = self._kept.get(_key(info, look))
        return None if found is None else found[0]

    def rows(self, info: DatasetInfo, look: Look, check: str) -> list[int]:
        """Places of the first rows of a token check, [] where they were listed for another cut."""
        with self._lock:
            found = self._kept.get(_key(info, look))
        if found is None or found[1] != look.max_length:
            return []
        return found[0].first_rows.get(check, [])


def _key(info: DatasetInfo, look: Look) -> tuple[Any, ...]:
    return (info.fingerprint, look.model_id, look.loss_on, look.system_prompt)
