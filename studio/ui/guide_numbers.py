"""One's own numbers in the guide: what each knob means for this model, these settings, this card.

Every byte is the estimator's: `own_numbers` asks it for the settings at hand with one knob changed.
What is not counted yet is called so. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Callable

from studio.core.config import RunConfig
from studio.core.errors import StudioError
from studio.core.fit_memory import changed
from studio.core.memory import Estimate
from studio.services.memory import MemoryAnswer
from studio.ui.guide_text import Here
from studio.ui.text import count, gib, plain, plural, short_count

Ask = Callable[[RunConfig], MemoryAnswer]
RANKS = (8, 16, 32, 64, 128)
BATCHES = (1, 2, 4, 8)
LENGTHS = (512, 1024, 2048, 4096)
NOT_COUNTED = "not counted yet"
_TRAINED = ("adapter", "gradients", "optimizer")
_WEIGHTS = ("weights", "weights_quantized", "weights_other")


def own_numbers(
    ask: Ask, config: RunConfig, steps: tuple[int, int] | None, of_rows: str
) -> dict[str, Here]:
    """By the names in the guide.

    Args:
        ask: the estimate of a configuration.
        steps: in an epoch and in all, where a data set is chosen.
        of_rows: how long the rows are taken to be, a sentence.

    Raises:
        StudioError: nothing can be said of this model or these settings.
    """
    own = ask(config)
    # No auto is left in it: each question below changes one knob and nothing else.
    config = own.config
    return {
        "rank": _rank(ask, config), "alpha": _alpha(config), "targets": _targets(ask, config),
        "method": _method(ask, config), "learning_rate": _learning_rate(config),
        "epochs": _epochs(config, steps), "batch": _batch(ask, config),
        "max_length": _max_length(ask, config, of_rows), "dora": _dora(ask, config),
    }  # fmt: skip


def held_against(own: MemoryAnswer, model_id: str) -> str:
    """What the numbers are for: "Qwen/Qwen3-8B on RTX 4090, 20.1 GiB free. Fits with ..."."""
    free = own.device.free_bytes
    told = "free memory unknown" if free is None else f"{gib(free)} free"
    return f"{model_id} on {own.device.name}, {told}. {own.sentence}."


def bytes_of(estimate: Estimate, names: tuple[str, ...]) -> int:
    """Of the items with these names."""
    return sum(item.bytes for item in estimate.items if item.name in names)


def trained(estimate: Estimate) -> int:
    """Trained numbers: adapters are fp32."""
    return bytes_of(estimate, ("adapter",)) // 4


def _total(found: Estimate) -> str:
    return NOT_COUNTED if found.unknown else gib(found.expected)


def _rank(ask: Ask, config: RunConfig) -> Here:
    rows = []
    for r in sorted({*RANKS, config.lora.r}):
        found = ask(changed(config, {"lora.r": r})).estimate
        mark = " (yours)" if r == config.lora.r else ""
        rows.append((f"r = {r}{mark}", count(trained(found)), gib(bytes_of(found, _TRAINED)),
                     _total(found)))  # fmt: skip
    head = ("Rank", "Trained numbers", "With gradients and optimizer", "Training in all")
    return Here("Trained numbers are fp32, whatever the base is kept in.", head, tuple(rows))


def _alpha(config: RunConfig) -> Here:
    lora = config.lora
    root = plain(round(lora.lora_alpha / lora.r**0.5, 4))
    ratio = plain(round(lora.lora_alpha / lora.r, 4))
    used, other = (root, ratio) if lora.use_rslora else (ratio, root)
    names = ("alpha / sqrt(r)", "alpha / r")
    used_name, other_name = names if lora.use_rslora else reversed(names)
    turned = "without" if lora.use_rslora else "with"
    return Here(
        f"{lora.lora_alpha} and r = {lora.r}: {used_name} = {used}; {turned} rsLoRA {other_name} = "
        f"{other}."
    )


def _targets(ask: Ask, config: RunConfig) -> Here:
    rows = []
    for title, value in (("All linear layers", "all-linear"), ("Attention only", "attention")):
        try:
            found = ask(changed(config, {"lora.target_modules": value})).estimate
        except StudioError as error:  # a model whose attention has other names
            rows.append((title, error.what, "", ""))
            continue
        rows.append((title, count(trained(found)), gib(bytes_of(found, _TRAINED)), _total(found)))
    head = ("Adapters on", "Trained numbers", "With gradients and optimizer", "Training in all")
    return Here(f"At r = {config.lora.r}:", head, tuple(rows))


def _method(ask: Ask, config: RunConfig) -> Here:
    ways = (
        (f"LoRA, {config.model.dtype}", {"quantization.load_in_4bit": False}),
        ("QLoRA, 4-bit", {"quantization.load_in_4bit": True,
                          "quantization.bnb_4bit_use_double_quant": False}),
        ("QLoRA, double quantization", {"quantization.load_in_4bit": True,
                                        "quantization.bnb_4bit_use_double_quant": True}),
    )  # fmt: skip
    rows = []
    for title, values in ways:
        try:
            found = ask(changed(config, values))
        except StudioError as error:  # this device has no 4-bit
            rows.append((title, error.what, ""))
            continue
        rows.append((title, gib(bytes_of(found.estimate, _WEIGHTS)), _total(found.estimate)))
    return Here("The frozen base of your model:", ("Method", "Base weights", "Training in all"),
                tuple(rows))  # fmt: skip


def _learning_rate(config: RunConfig) -> Here:
    train = config.train
    return Here(f"{plain(train.learning_rate)} at its highest, schedule {train.lr_scheduler_type}.")


def _epochs(config: RunConfig, steps: tuple[int, int] | None) -> Here:
    train = config.train
    if steps is None:
        return Here("Choose training data to see the steps.")
    asked = f"{plain(train.num_train_epochs)} epochs"
    if train.max_steps > 0:
        asked = plural(train.max_steps, "step")
    return Here(f"{asked} asked for: {plural(steps[0], 'step')} an epoch, {steps[1]:,} in all.")


def _batch(ask: Ask, config: RunConfig) -> Here:
    name = "train.per_device_train_batch_size"
    batch = config.train.per_device_train_batch_size
    rows = []
    for size in sorted({*BATCHES, batch}):
        found = ask(changed(config, {name: size})).estimate
        mark = " (yours)" if size == batch else ""
        rows.append((f"{plural(size, 'row')}{mark}", _total(found)))
    accumulated = config.train.gradient_accumulation_steps
    say = (f"{plural(batch, 'row')} x {accumulated:,} = {batch * accumulated:,} rows a step, of "
           f"{config.train.max_length:,} tokens at most.")  # fmt: skip
    return Here(say, ("Batch", "Training in all"), tuple(rows))


def _max_length(ask: Ask, config: RunConfig, of_rows: str) -> Here:
    length = config.train.max_length
    rows = []
    for tokens in sorted({*LENGTHS, length}):
        found = ask(changed(config, {"train.max_length": tokens})).estimate
        mark = " (yours)" if tokens == length else ""
        rows.append((f"{tokens:,} tokens{mark}", _total(found)))
    return Here(f"{of_rows}.", ("Max length", "Training in all"), tuple(rows))


def _dora(ask: Ask, config: RunConfig) -> Here:
    with_it = trained(ask(changed(config, {"lora.use_dora": True})).estimate)
    without = trained(ask(changed(config, {"lora.use_dora": False})).estimate)
    now = "on" if config.lora.use_dora else "off"
    return Here(
        f"{now}; it trains {count(with_it - without)} numbers more, {short_count(with_it)} in all."
    )
