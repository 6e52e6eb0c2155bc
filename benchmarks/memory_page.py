"""docs/memory.md and its plots, from the recorded results of `benchmarks/memory.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.core.config import LoraSection
from studio.core.memory import CPU, CUDA
from studio.core.memory_methods import (
    CARD_GIB,
    METHODS,
    Method,
    base_weights,
    family,
    rank_in_numbers,
    resident_bytes,
)

GIB = 2**30
OUTSIDE = 0.20


@dataclass(frozen=True)
class Line:
    """One number against the wanted one."""

    what: str
    figure: str
    wanted: str
    is_met: bool


def summary(kept: dict[str, Any]) -> list[Line]:
    """The table of `make memory`; parts without results are left out."""
    lines = []
    if rows := kept.get("exact"):
        wrong = sum(len(row["wrong"]) for row in rows)
        total = sum(row["numbers"] for row in rows)
        lines.append(Line("countable numbers equal to the byte", f"{total - wrong} of {total}",
                          "all", wrong == 0))  # fmt: skip
    if rows := kept.get("steps"):
        worst = max(abs(_error(row["predicted"], row["real"])) for row in rows)
        figure = f"worst {worst:.1%} of {len(rows)} held-out steps"
        lines.append(Line("what a step holds", figure, "60 or more, within 5 %",
                          worst <= 0.05 and len(rows) >= 60))  # fmt: skip
    if rows := kept.get("published"):
        errors = sorted(abs(_error(row["predicted"], row["measured"])) for row in rows)
        inside = sum(error <= OUTSIDE for error in errors)
        figure = f"median {statistics.median(errors):.1%}, {inside} of {len(errors)} within 20 %"
        lines.append(Line("published rows", figure, "median 12 %",
                          statistics.median(errors) <= 0.12))  # fmt: skip
        outside = [r for r in rows if abs(_error(r["predicted"], r["measured"])) > OUTSIDE]
        told = sum(bool(row["note"]) for row in outside)
        lines.append(Line("rows outside 20 % that are explained", f"{told} of {len(outside)}",
                          "all", told == len(outside)))  # fmt: skip
    if rows := [row for row in kept.get("rss", []) if "low" in row]:
        lines.append(_rss_line("peak RSS of CPU runs", rows))
        held_out = [row for row in rows if not row["fitted"]]
        lines.append(_rss_line("of these held out from the fit", held_out))
    return lines


def _rss_line(what: str, rows: list[dict[str, Any]]) -> Line:
    errors = sorted(abs(_error(row["predicted"], row["measured"])) for row in rows)
    ninth = errors[math.ceil(0.9 * len(errors)) - 1]
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    figure = (f"median {statistics.median(errors):.1%}, nine in ten {ninth:.1%}, {inside} of "
              f"{len(rows)} in the range that is told")  # fmt: skip
    return Line(what, figure, "median 10 %, nine in ten 25 %",
                statistics.median(errors) <= 0.10 and ninth <= 0.25)  # fmt: skip


def _error(predicted: float, real: float) -> float:
    return predicted / real - 1


def write_page(root: Path, kept: dict[str, Any]) -> None:
    """docs/memory.md and the plots beside it."""
    images = root / "docs" / "images"
    parts = [_INTRO, _numbers(kept), _methods(), _TERMS.format(
        cuda=CUDA.context_bytes >> 20, cuda_gaps=f"{CUDA.fragmentation:.0%}",
        cpu=CPU.context_bytes >> 20, cpu_gaps=f"{CPU.fragmentation:.0%}",
    )]  # fmt: skip
    if rows := kept.get("published"):
        points = [(row["predicted"], row["measured"]) for row in rows]
        (images / "memory-published.svg").write_text(_svg(points, "GB"), encoding="utf-8")
        parts.append(_published(rows))
    if rows := [row for row in kept.get("rss", []) if "low" in row]:
        fitted, others = (
            [(r["predicted"] / GIB, r["measured"] / GIB) for r in rows if r["fitted"] is wanted]
            for wanted in (True, False)
        )
        plot = _svg(others, "GiB", hollow=fitted)
        (images / "memory-rss.svg").write_text(plot, encoding="utf-8")
        parts.append(_rss(rows, kept.get("machine", "")))
    (root / "docs" / "memory.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


_INTRO = """# Will it fit? How memory is predicted

This page is written by `make memory`; do not edit it. The estimate is `studio/core/memory.py`; ask
it with `python -m studio plan CONFIG --gpu "RTX 4090"`."""


def _numbers(kept: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {line.what} | {line.figure} | {line.wanted} | {'yes' if line.is_met else 'no'} |"
        for line in summary(kept)
    )
    return f"## The numbers\n\n| what | measured | wanted | met |\n|---|---|---|---|\n{rows}"


def _methods() -> str:
    sizes = family()
    head = "| method | " + " | ".join(sizes) + " | smallest card for 7 B |\n|" + "---|" * 6
    lines = []
    for method in METHODS:
        cells = [resident_bytes(profile, method, LoraSection()) for profile in sizes.values()]
        fitting = [gib for gib in CARD_GIB if cells[0] + 2 * GIB <= gib * GIB]
        card = f"{fitting[0]} GB" if fitting else "none"
        lines.append(f"| {method.title} | " + " | ".join(f"{c / GIB:.1f} GiB" for c in cells)
                     + f" | {card} |")  # fmt: skip
    double = Method("x", "x", packing="4bit_double")
    weights = sum(base_weights(sizes["65 B"], double)) / GIB
    frozen, trained = rank_in_numbers(4096, 4096, 8)
    rows = "\n".join(lines)
    return f"""## Methods and sizes

Weights, trained numbers, gradients and AdamW's states, without activations; LoRA with r = 16 on
all linear layers. The card is the smallest of {", ".join(map(str, CARD_GIB))} GB that leaves 2 GiB.

{head}
{rows}

- 16 bytes x 7 B = 112 GB for full fp32 (weight, gradient, two moments); with the 6.74 B that
  LLaMA's 7 B has, 108 GB.
- "65 B QLoRA in 12 GB", which circulates, is impossible: the 4-bit weights alone are
  {weights:.1f} GiB (64.8 B quantized weights x 4.127 bits, 0.5 B others x 2 bytes).
- What rank does: a matrix of 4096 x 4096 has {frozen:,} frozen numbers and, at r = 8,
  {trained:,} trained ones: 8 x (4096 + 4096)."""


_TERMS = """## The terms

Each is a function in `studio/core/memory_terms.py` with formula, source and deviation. What is
there all the time adds up; of what comes and goes (the layers, the head, the update, an evaluation,
the sampled answers) the largest counts.

| term | how | deviation |
|---|---|---|
| weights, 4-bit, 8-bit, adapter, gradients, optimizer states | counted from shapes | none |
| activations, a layer's working space, evaluation | a short stack of the model runs forward and \
backward without storage (torch's FakeTensorMode) at a few sizes; a polynomial in rows, tokens, \
rank and layers is fitted | see above |
| output head | TRL's fused head: one tile of 4,096 x 32,768 scores; in place with Triton (CUDA) | \
below 1 % on CPU; not measured on CUDA |
| unpacked 4-bit matrix | the largest, in the compute dtype | none known |
| sampled answers | keys and values of 3 prompts and 96 new tokens each | sliding windows less |
| driver and libraries | {cuda} MiB on CUDA (published: 300 to 800), {cpu} MiB on CPU (fitted) | \
fitted from runs of a card |
| gaps of the allocator | {cuda_gaps} of what comes and goes on CUDA, {cpu_gaps} on CPU (fitted) | \
a range around the total |
| weights file | CPU: 2 bytes a parameter while it is read, then gone; none where the weights are \
the file's own pages (16 bits, not quantized) | weights stored in 32 bits |
| desktop on the card | NVML's free bytes; 400 MiB for a named card | 0.3 to 1 GB |

Not covered: several cards, offloading, kernels that replace transformers' layers (Liger, Unsloth),
checkpointing of every n-th layer (no setting of the studio). No GPU was at hand when this page was
written: the CUDA figures rest on counted operators and on the published rows below. A model whose
step cannot be counted gets the item "activations: unknown" instead of a guess."""


def _published(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        error = _error(row["predicted"], row["measured"])
        why = row["note"] if abs(error) > 0.12 else ""
        lines.append(
            f"| [{row['model']}]({row['source']}) | {row['method']} | {row['batch']} x "
            f"{row['tokens']} | {row['measured']} | {row['predicted']:.1f} | {error:+.0%} | {why} |"
        )
    table = "\n".join(lines)
    return f"""## Published measurements

Rows of LoRA and QLoRA on one card whose length is told; GB are 10^9 bytes. Left out: full
fine-tuning and trained embeddings (no method of the studio), several cards, Unsloth's kernels, rows
without a length. These runs used the full head (all scores at once) and did not evaluate; a run
here needs less for a large vocabulary.

![predicted against measured](images/memory-published.svg)

| model | method | rows x tokens | measured GB | predicted GB | error | outside 12 %: why |
|---|---|---|---|---|---|---|
{table}"""


def _rss(rows: list[dict[str, Any]], machine: str) -> str:
    table = "\n".join(
        f"| {row['what']}{'' if 'measured_phases' in row else ' (earlier)'} | "
        f"{row['measured'] / GIB:.2f} | {row['predicted'] / GIB:.2f} | "
        f"{_error(row['predicted'], row['measured']):+.1%} | {'yes' if row['fitted'] else ''} |"
        for row in rows
    )
    earlier = sum("measured_phases" not in row for row in rows)
    stale = (
        f"""

{earlier} of the {len(rows)} rows, those that say "earlier", were run before the loading gave memory
back and the head was copied for no prompt. That took 0.1 to 0.9 GiB off the peaks of bf16 and of
4 bits, where these rows are most likely too high; `make memory ARGS="--only rss --resume"` runs
them anew."""
        if earlier
        else ""
    )
    return f"""## Runs on a CPU

Peak resident memory (the kernel's high-water mark) of whole runs with random weights: two steps,
some of them also evaluated and asked for answers before and after. 5M is the starter's shape, 135M
SmolLM2's, 0.5B Qwen2.5's. The two constants of the CPU (libraries, gaps of the allocator) were
fitted on the rows that say so and on no other; the range that is told was widened until nine in ten
of the others lie in it.

- fp32 at 0.5B: the peak is the loading. The file's pages (0.92 GiB) lie beside the weights.
- bf16, not quantized: the weights are the file's pages and come into memory at their first use, so
  the loading phase of such a run measures the libraries alone (0.58 GiB).
- Not counted, and the largest error that is left: what glibc keeps free between the tensors of a
  step. After the training of the 0.5B shape in bf16, 1 x 128, 0.37 GiB more were resident than the
  run held; at 135M in fp32, 1 x 512, 1.0 GiB. One share for all ("gaps") is right for 5M and too
  little for 135M and for 0.5B in bf16: the rows with more than 12 % are all of these, all too low.

Machine: {machine}.{stale}

![predicted against measured, hollow: fitted on](images/memory-rss.svg)

| run | measured GiB | predicted GiB | error | fitted on |
|---|---|---|---|---|
{table}"""


def _svg(
    points: list[tuple[float, float]], unit: str, *, hollow: Sequence[tuple[float, float]] = ()
) -> str:
    """Predicted against measured on logarithmic axes, with the line of equality and 20 % bands."""
    size, edge = 420, 50
    values = [value for point in (*points, *hollow) for value in point]
    low, high = math.log(min(values) / 1.3), math.log(max(values) * 1.3)

    def at(value: float) -> float:
        return edge + (math.log(value) - low) / (high - low) * (size - 2 * edge)

    def line(factor: float, style: str) -> str:
        a, b = math.exp(low) * max(1.0, 1 / factor), math.exp(high) / max(1.0, factor)
        return (f'<line x1="{at(a):.1f}" y1="{size - at(a * factor):.1f}" x2="{at(b):.1f}" '
                f'y2="{size - at(b * factor):.1f}" {style}/>')  # fmt: skip

    ticks = [t for t in (0.5, 1, 2, 4, 8, 16, 32, 64) if low < math.log(t) < high]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" '
        f'width="{size}" font-family="sans-serif" font-size="12">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
        f'<rect x="{edge}" y="{edge}" width="{size - 2 * edge}" height="{size - 2 * edge}" '
        'fill="none" stroke="#999"/>',
        line(1.0, 'stroke="#333"'),
        line(1.2, 'stroke="#bbb" stroke-dasharray="4 3"'),
        line(1 / 1.2, 'stroke="#bbb" stroke-dasharray="4 3"'),
    ]
    for tick in ticks:
        parts.append(f'<text x="{at(tick):.1f}" y="{size - edge + 16}" text-anchor="middle">'
                     f"{tick:g}</text>")  # fmt: skip
        parts.append(f'<text x="{edge - 6}" y="{size - at(tick) + 4:.1f}" text-anchor="end">'
                     f"{tick:g}</text>")  # fmt: skip
    parts += [f'<circle cx="{at(said):.1f}" cy="{size - at(real):.1f}" r="4" fill="#2563eb" '
              'fill-opacity="0.7"/>' for said, real in points]  # fmt: skip
    parts += [f'<circle cx="{at(said):.1f}" cy="{size - at(real):.1f}" r="4" fill="none" '
              'stroke="#2563eb" stroke-width="1.5"/>' for said, real in hollow]  # fmt: skip
    parts += [
        f'<text x="{size / 2}" y="{size - 12}" text-anchor="middle">predicted {unit}</text>',
        f'<text x="16" y="{size / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {size / 2})">measured {unit}; dashed: 20 %</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
