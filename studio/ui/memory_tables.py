"""Other cards and methods: what the chosen model needs on each card, the sizes that figures are
usually quoted for, and what the rank does. HTML and SVG.

Owns the drawings; figures come from `services.memory` and the inspector. All are held against what
a card leaves free beside a desktop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studio.core.cards import card_of_gib
from studio.core.errors import StudioError
from studio.core.memory_methods import (
    CARD_GIB,
    METHODS,
    base_weights,
    family,
    rank_in_numbers,
)
from studio.ui.memory_bar import Question, facts_of
from studio.ui.text import clip, count, escape, gib, percent, plural, short_count

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.services.studio import Studio
    from studio.ui.data_look import TokenBook

COUNTING = (
    "<p class='hint' role='status'>Measuring this model with each method (up to a minute the first "
    "time).</p>"
)
_VERDICTS = {
    "yes": ("&#10003;", "fits"), "maybe": ("~", "fits barely"), "no": ("&#10005;", "does not fit"),
    "unknown": ("?", "not known"),
}  # fmt: skip
_DRAWN_PX = 220


def tables_of(
    studio: Studio, form: Any, book: TokenBook, raw: Mapping[str, Any], target: Any
) -> Iterator[str]:
    """First what is arithmetic, then the table that may have to be counted."""
    try:
        asked = Question.of(studio, form, raw, target)
        rank, sizes = rank_html(studio, asked.config), family_html(studio, asked.config)
    except StudioError as error:
        yield f"<p class='failure' role='alert'>{escape(error)}</p>"
        return
    yield COUNTING + rank + sizes
    try:
        facts, _ = facts_of(studio, book, asked.config)
        rows = studio.memory.table(asked.config.model.id, asked.config, facts=facts)
    except StudioError as error:
        yield f"<p class='warn' role='alert'>{escape(error)}</p>{rank}{sizes}"
        return
    yield cards_html(asked.config, rows) + rank + sizes


def verdict(row: Mapping[str, Any], budget_bytes: int) -> str:
    """Whether a row of the table fits a budget: yes, maybe (only below the upper end), no."""
    if row["bytes"] > budget_bytes:
        return "no"
    if row.get("unknown"):
        return "unknown"
    return "yes" if row.get("high_bytes", row["bytes"]) <= budget_bytes else "maybe"


def cards_html(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """Methods x cards for the chosen model and settings, with a bar for what each needs."""
    largest = max((row["bytes"] for row in rows), default=1)
    train = config.train
    words = (
        f"{config.model.id}, r {config.lora.r}, batch {train.per_device_train_batch_size}, max "
        f"length {train.max_length:,}: one card, checkpointing as on a GPU unless set"
    )
    heads = "".join(f"<th scope='col'>{size} GB</th>" for size in CARD_GIB)
    body = "".join(_cards_row(row, largest) for row in rows)
    legend = " &middot; ".join(f"{sign} {word}" for sign, word in _VERDICTS.values())
    return (
        f"<section class='mem-section'><h3>This model on other cards</h3>"
        f"<p class='hint'>{escape(words)}.</p>{_open_wrap('This model on other cards')}"
        f"<table><thead><tr><th scope='col'>Method</th><th scope='col'>Needs</th>{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
        f"<p class='hint'>{legend}; 0.4 GiB of each card is left to the screen.</p></section>"
    )


def _cards_row(row: Mapping[str, Any], largest: int) -> str:
    budgets = [card_of_gib(size).budget_bytes for size in CARD_GIB]
    cells = ""
    for budget in budgets:
        fits = verdict(row, budget)
        sign, word = _VERDICTS[fits]
        cells += (
            f"<td class='fits-{fits}'><span aria-hidden='true'>{sign}</span>"
            f"<span class='mem-unseen'>{word}</span></td>"
        )
    at_least = "at least " if row.get("unknown") else ""
    return (
        f"<tr><th scope='row'>{escape(row['method'])}</th><td class='needs'>{at_least}"
        f"{gib(row['bytes'])}<i style='width:{100 * row['bytes'] / max(1, largest):.1f}%'></i></td>"
        f"{cells}</tr>"
    )


def _open_wrap(name: str) -> str:
    """A table may be wider than a phone: then it scrolls by itself, by keyboard as well."""
    return f"<div class='mem-wrap' tabindex='0' role='group' aria-label='{escape(name)}'>"


def family_html(studio: Studio, config: RunConfig) -> str:
    """Methods x sizes: what stays all the time, with the card each would need at least."""
    rows = studio.memory.table(None, config)
    sizes = list(dict.fromkeys(row["model"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(row["model"], row["method"]): row["bytes"] for row in rows}
    largest = max(found.values(), default=1)
    heads = "".join(f"<th scope='col'>{size}</th>" for size in sizes)
    body = ""
    for method in methods:
        cells = "".join(
            f"<td class='needs'>{gib(found[size, method], 0 if found[size, method] > 1e11 else 1)}"
            f"<i style='width:{100 * found[size, method] / largest:.1f}%'></i></td>"
            for size in sizes
        )
        body += f"<tr><th scope='row'>{escape(method)}</th>{cells}</tr>"
    largest_size, smallest = family()[sizes[-1]], METHODS[-1]
    weights, least = sum(base_weights(largest_size, smallest)), found[sizes[-1], methods[-1]]
    return (
        "<section class='mem-section mem-sizes'><h3>Models of 7 to 65 B</h3>"
        f"<p class='hint'>Weights, what is trained (r {config.lora.r} on all linear layers), "
        "gradients and AdamW's states, before the first token: activations come on top.</p>"
        f"{_open_wrap('Models of 7 to 65 B')}<table><thead><tr><th scope='col'>Method</th>{heads}"
        f"</tr></thead><tbody>{body}</tbody></table></div>"
        "<p class='hint'>Full fp32 takes 16 bytes a parameter (weight, gradient and two states of "
        f"4 bytes each): 16 x 7 B = 112 GB. &ldquo;{sizes[-1]} with QLoRA in 12 GB&rdquo; cannot "
        f"be: its weights at 4.127 bits each, with embeddings and head, are {gib(weights)} by "
        f"themselves, {gib(least)} with what is trained."
        "</p></section>"
    )


def rank_html(studio: Studio, config: RunConfig) -> str:
    """Frozen against trained numbers of the model's largest adapted matrix, drawn to scale."""
    r = config.lora.r
    known = studio.inspector.adapter(config.model.id, config.lora.model_dump(mode="json"))
    matched = sorted(known.get("matched") or [], key=lambda m: -m["in"] * m["out"])
    if matched:
        largest = matched[0]
        name, wide, high = str(largest["name"]), int(largest["in"]), int(largest["out"])
        whose = f"{name} of this model, {plural(int(largest['count']), 'matrix', 'matrices')}"
    else:
        name, wide, high, whose = "W", 4096, 4096, "an example"
    frozen, trained = rank_in_numbers(wide, high, r)
    return (
        f"<section class='mem-section'><h3>What does rank do here?</h3><div class='rank'>"
        f"{rank_svg(wide, high, r, name)}<div><p class='rank-said'><b>{high:,} x {wide:,}</b> = "
        f"{count(frozen)} frozen numbers ({escape(whose)}). The adapter adds B ({high:,} x {r}) "
        f"and A ({r} x {wide:,}): <b>r x ({high:,} + {wide:,}) = {count(trained)}</b> trained "
        f"ones, {percent(trained / frozen)} of them.</p><p class='hint'>All adapters of this model "
        f"together: {short_count(known.get('trainable_params'))} numbers, 16 bytes each while "
        "training with AdamW (number, gradient, two states). Twice the rank: twice as many; the "
        f"frozen ones stay.{_example(wide, high, r)}</p></div></div></section>"
    )


def _example(wide: int, high: int, r: int) -> str:
    """The usual example, where the model's own figures are others."""
    if (wide, high, r) == (4096, 4096, 8):
        return ""
    frozen, trained = rank_in_numbers(4096, 4096, 8)
    return (
        f" The usual example: 4,096 x 4,096 = {short_count(frozen)} frozen against {trained:,} "
        "trained at r = 8."
    )


def rank_svg(wide: int, high: int, r: int, name: str) -> str:
    """W with B at its left and A above it, all to one scale (at least one pixel thin)."""
    scale = _DRAWN_PX / max(wide, high)
    w, h, thin = max(1, wide * scale), max(1, high * scale), max(1.0, r * scale)
    gap, line = 6, 16
    left, top = thin + gap, thin + gap
    bottom, whole = top + h, max(left + w + 1, 150)  # the words below need some room
    label = (
        f"To scale: the frozen matrix {high:,} x {wide:,}, and beside it the trained B {high:,} x "
        f"{r} and A {r} x {wide:,}"
    )
    return (
        f"<svg class='rank-draw' viewBox='0 0 {whole:.1f} {bottom + 2 * line + 4:.1f}' "
        f"style='max-width:{whole:.0f}px' role='img' aria-label='{label}'>"
        f"<rect class='w' x='{left:.1f}' y='{top:.1f}' width='{w:.1f}' height='{h:.1f}' rx='3'/>"
        f"<rect class='ab' x='0' y='{top:.1f}' width='{thin:.2f}' height='{h:.1f}'/>"
        f"<rect class='ab' x='{left:.1f}' y='0' width='{w:.1f}' height='{thin:.2f}'/>"
        f"<text x='0' y='{bottom + line:.1f}'>{escape(clip(name, 16))}, frozen</text>"
        f"<text class='t' x='0' y='{bottom + 2 * line:.1f}'>B and A, trained</text></svg>"
    )
