"""What the memory bar shows: the value that `assets/memory.js` draws, built from an estimate.

Owns the words and figures of the bar: items, range, the device's end, what is unknown, how long the
rows are taken to be. Pure but for the services asked; an error becomes a sentence in the bar's
place. Nothing here counts anything: what is not known yet says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.core.cards import Card, card_of_gib
from studio.core.config_io import build_config, dump_config
from studio.core.errors import ConfigError, StudioError
from studio.core.fit_memory import changed, rungs
from studio.services.memory import DataFacts
from studio.ui.data_look import Look, TokenBook
from studio.ui.form import Form, from_control, knobs
from studio.ui.text import gib
from studio.ui.train_summary import config_values

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.services.memory import Device, MemoryAnswer
    from studio.services.studio import Studio

HERE = "here"
KEPT = 256  # questions
MEASURING = "Measuring this model's shapes (up to a minute)"
WHEN = {
    "always": "all the time", "loading": "while the model is loaded",
    "layers": "in the pass through the layers",
    "head": "between the passes", "update": "while weights are updated",
    "evaluation": "while it is evaluated", "sampling": "while sample answers are written",
}  # fmt: skip
TARGETS = "lora.target_modules"
# What a page may lay over its last question, by its path: whatever decides memory and needs no look
# at a model or a data set.
KNOBS = {
    path: knob for path, knob in knobs().items()
    if path.split(".")[0] in ("lora", "quantization", "train", "runtime")
    or path in ("model.dtype", "model.attn_implementation")
}  # fmt: skip
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:gib|gb)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What is asked: the form's settings and the card they are held against (None: this
    machine)."""

    config: RunConfig
    card: Card | None

    @classmethod
    def of(cls, studio: Studio, form: Form, raw: Mapping[str, Any], target: Any) -> Question:
        """From the controls' values. Raises ConfigError or DeviceError."""
        config = build_config(config_values(form, dict(raw)))
        return cls(config, card_of(studio, target))

    @property
    def key(self) -> str:
        """The same for the same question: what was worked out for another one is out of date."""
        text = json.dumps(
            [dump_config(self.config), self.card and self.card.vram_bytes], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def card_of(studio: Studio, target: Any) -> Card | None:
    """What the dropdown means: this machine, a number of GiB, a card. Raises DeviceError."""
    text = str(target or "").strip()
    if text in ("", HERE):
        return None
    size = _SIZE.match(text)
    return card_of_gib(float(size[1])) if size else studio.memory.card(text)


def facts_of(studio: Studio, book: TokenBook, config: RunConfig) -> tuple[DataFacts, str]:
    """What is known of the rows' lengths, and the sentence about it. Counts nothing."""
    train = config.train
    if train.packing:
        rows = train.per_device_train_batch_size
        words = f"Rows are packed: {rows * train.max_length:,} tokens at once, always"
        return _summary_of(studio, book, config) or DataFacts(), words
    facts = _summary_of(studio, book, config)
    if facts is None or facts.longest_tokens is None:
        why = (
            "the tokens of this data set are not counted for this model" if config.data.path
            else "no data set is chosen"
        )  # fmt: skip
        length = f"{train.max_length:,} tokens long (max length)"
        return DataFacts(), f"Every row is taken to be {length}: {why}"
    longest = facts.longest_tokens
    if longest > train.max_length:
        rows = facts.rows_cut(train.max_length)
        return facts, (
            f"The longest of the rows has {longest:,} tokens; {rows:,} "
            f"{'row is' if rows == 1 else 'rows are'} cut at {train.max_length:,}"
        )
    return facts, (
        f"The longest of the rows has {longest:,} tokens: a larger max length costs nothing"
    )


def _summary_of(studio: Studio, book: TokenBook, config: RunConfig) -> DataFacts | None:
    if not studio.datasets.has(str(config.data.path or "")):
        return None
    look = Look.of({
        "model_id": config.model.id, "loss_on": config.train.loss_on,
        "system_prompt": config.data.system_prompt,
    })  # fmt: skip
    summary = book.get(studio.datasets.get(str(config.data.path)), look)
    return None if summary is None else DataFacts.of(summary)


class Bars:
    """Answers a page's questions by arithmetic, and keeps the last ones: a knob moved by hand is
    answered without the whole form. Thread safe. `book`: tokens of data sets, where counted."""

    def __init__(self, studio: Studio, book: TokenBook | None = None) -> None:
        self.book = book or TokenBook()
        self._studio = studio
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, Question] = OrderedDict()

    def of(self, form: Form, raw: Mapping[str, Any], target: Any) -> dict[str, Any]:
        """The bar's value for the form as it is. No child is asked."""
        try:
            asked = Question.of(self._studio, form, raw, target)
            return self._answer(asked)
        except StudioError as error:
            return fault_value(error)

    def moved(self, key: str, texts: Mapping[str, str]) -> dict[str, Any]:
        """The same for a question asked before, with some of `KNOBS` as they stand in the page.
        Raises ConfigError where one is none of them; what a value may be, the config says."""
        for path in texts:
            if path not in KNOBS:
                raise ConfigError(
                    "That is no knob of the memory bar", value=path, allowed=", ".join(KNOBS)
                )
        with self._lock:
            before = self._asked.get(key)
        if before is None:
            return {"state": "forgotten"}
        values = dump_config(before.config)
        for path, text in texts.items():
            section, _, name = path.partition(".")
            values[section][name] = from_control(KNOBS[path], text)
        try:
            if texts.get(TARGETS, "attention") not in ("all-linear", "attention"):
                raise ConfigError("Modules by name are the form's to ask for", value=texts[TARGETS])
            return self._answer(Question(build_config(values), before.card))
        except StudioError as error:
            return fault_value(error)

    def _answer(self, asked: Question) -> dict[str, Any]:
        memory, model_id = self._studio.memory, asked.config.model.id
        with self._lock:
            self._asked[asked.key] = asked
            self._asked.move_to_end(asked.key)
            while len(self._asked) > KEPT:
                self._asked.popitem(last=False)
        if not memory.is_measured(model_id, asked.config, card=asked.card):
            return {"state": "measuring", "sentence": MEASURING, "n": secrets.token_hex(4)}
        facts, words = facts_of(self._studio, self.book, asked.config)
        answer = memory.estimate(
            model_id, asked.config, facts=facts, card=asked.card, measure=False
        )  # fmt: skip
        return {**bar_value(answer, asked, words), "more": self._may_help(answer, asked)}

    def _may_help(self, answer: MemoryAnswer, asked: Question) -> bool:
        """Whether 4-bit, which saves most, is not among the advice only because nobody counted its
        step for this model."""
        if answer.fits is not False or any(c.title == "4-bit" for c in answer.advice):
            return False
        able = asked.card is not None or self._studio.machine.capabilities().get("bnb") is not False
        rung = next((r for r in rungs(answer.config, can_4bit=able) if r.title == "4-bit"), None)
        if rung is None:
            return False
        wanted = changed(asked.config, rung.values)
        return not self._studio.memory.is_measured(
            asked.config.model.id, wanted, card=asked.card
        )  # fmt: skip


def measured(studio: Studio, form: Form, raw: Mapping[str, Any], target: Any) -> dict[str, Any]:
    """Count what the question needs (seconds); then the page asks again with what stands in the
    form by that time."""
    try:
        asked = Question.of(studio, form, raw, target)
        studio.memory.estimate(asked.config.model.id, asked.config, card=asked.card)
    except StudioError as error:
        return fault_value(error)
    return {"state": "measured", "n": secrets.token_hex(4)}


def fault_value(error: StudioError) -> dict[str, Any]:
    """A sentence in the bar's place."""
    issues = list(error.issues.values()) if isinstance(error, ConfigError) else []
    return {"state": "fault", "sentence": f"No estimate: {issues[0] if issues else error}"}


def bar_value(answer: MemoryAnswer, asked: Question, words: str) -> dict[str, Any]:
    """All that is drawn, in bytes and in words."""
    found, device = answer.estimate, answer.device
    config = answer.config
    notes = [words, *answer.warnings]
    if config.train.max_length < asked.config.train.max_length:
        notes.append(f"The model reads at most {config.train.max_length:,} tokens")
    sizes = {"low": gib(found.low), "expected": gib(found.expected), "high": gib(found.high)}
    return {
        "state": "bar", "key": asked.key, "sentence": answer.sentence, "tone": tone_of(answer),
        "place": place_of(device), "free": device.free_bytes,
        "free_text": None if device.free_bytes is None else f"{gib(device.free_bytes)} free",
        "low": found.low, "expected": found.expected, "high": found.high,
        "range": range_words(sizes, unknown=bool(found.unknown)),
        "items": [_item(item) for item in found.items],
        "unknown": [
            {"title": name.capitalize(), "why": "cannot be counted for this model"}
            for name in found.unknown
        ],
        "notes": [f"{note.rstrip('.')}." for note in notes],
        "knobs": {
            path: getattr(getattr(asked.config, path.split(".")[0]), path.split(".")[1])
            for path in KNOBS
        },
    }  # fmt: skip


def _item(item: Any) -> dict[str, Any]:
    return {
        "name": item.name, "title": item.title, "bytes": item.bytes, "size": gib(item.bytes),
        "exact": f"{item.bytes:,} bytes", "when": WHEN.get(item.phase, item.phase),
        "why": item.why,
    }  # fmt: skip


def range_words(sizes: Mapping[str, str], *, unknown: bool) -> str:
    """The three ends of an estimate."""
    if unknown:
        return f"At least {sizes['expected']} expected, and what is unknown"
    return f"{sizes['expected']} expected, {sizes['low']} to {sizes['high']}"


def place_of(device: Device) -> str:
    """What the bar is held against."""
    if device.free_bytes is None:
        return f"{device.name}: nobody tells how much is free"
    total = "" if device.total_bytes is None else f" of {gib(device.total_bytes)}"
    return f"{gib(device.free_bytes)}{total} free: {device.name}"


def tone_of(answer: MemoryAnswer) -> str:
    """ok, warn (only with luck), bad or unknown."""
    free, found = answer.device.free_bytes, answer.estimate
    if free is not None and found.expected > free:
        return "bad"
    if answer.fits is None:
        return "unknown"
    return "ok" if answer.fits else "warn"
