"""`python -m studio data render`, and the token statistics of `data check --model`.

Owns the command's options and output. What a row becomes is the backend's, by the code that the
trainer runs; this is a one-shot command, so it loads the tokenizer itself. Mounted by
`studio/cli.py` with `data_app.command("render")(render)`; errors are raised for it to print.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli_source import (
    EncodingOption,
    FileArgument,
    FormatOption,
    JsonOption,
    OverridesOption,
    WorkspaceOption,
    data_config,
    opened_dataset,
)
from studio.core.errors import DatasetError
from studio.core.split import split, split_chosen
from studio.core.token_stats import (
    Cut,
    cut_at,
    explain,
    histogram,
    length_that_keeps,
    padding,
)

if TYPE_CHECKING:
    from studio.core.config import RunConfig

LEARNED = ("[[", "]]")  # around what is learned, in the text for people
PERCENTILES = (50, 90, 95, 99, 100)


def render(
    file: FileArgument,
    model: Annotated[
        str | None, typer.Option(help="Catalogue id or folder (default: model.id).")
    ] = None,
    row: Annotated[
        int | None, typer.Option(help="Number of one row, as data check names it.")
    ] = None,
    count: Annotated[int, typer.Option("-n", help="How many rows, from the first.", min=1)] = 3,
    as_json: JsonOption = False,
    format: FormatOption = "auto",
    encoding: EncodingOption = "detect",
    overrides: OverridesOption = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: WorkspaceOption = None,
) -> None:
    """What the model reads of a row: text, tokens, and which of them it learns."""
    config = data_config(format, encoding, overrides)
    with opened_dataset(file, config.data, workspace) as info:
        rows = rendered_rows(info.folder, model or config.model.id, config, workspace,
                             row=row, count=count)  # fmt: skip
    if as_json:
        print(json.dumps({"file": info.name, "model": model or config.model.id,
                          "max_length": config.train.max_length, "rows": rows},
                         ensure_ascii=False))  # fmt: skip
    else:
        sys.stdout.write("\n".join(map(_to_text, rows)))


def rendered_rows(
    data_folder: Path, model: str, config: RunConfig, workspace: Path | None, *,
    row: int | None = None, count: int = 1,
) -> list[dict[str, Any]]:  # fmt: skip
    """Some rows as the trainer feeds them.

    Each: row, line, text (whole), input_ids and labels (cut to max_length, -100: not learned),
    mask (1: learned), cut_ids, trained_tokens, end_token; or row, line and refused, the reason.

    Raises:
        DatasetError: there is no such row.
    """
    from studio.backend.data import load_rows
    from studio.backend.end_token import end_token_report
    from studio.backend.inspector import generation_stops
    from studio.backend.rendering import load_tokenizer
    from studio.backend.tokenize import IGNORED, encode_examples
    from studio.core.examples import RowProblem

    path = _model_path(model, workspace)
    tokenizer = load_tokenizer(path)
    rows = load_rows(data_folder)
    chosen = list(_choose(rows, row, count))
    if not chosen:
        raise DatasetError(
            "There is no such row among those that can be used", value=row,
            remedy="`data check` names the rows that were left out",
        )  # fmt: skip
    encoded = encode_examples(
        tokenizer, chosen, loss_on=config.train.loss_on, max_length=config.train.max_length,
        system_prompt=config.data.system_prompt,
    )  # fmt: skip
    results = []
    for example, item in zip(chosen, encoded, strict=True):
        place = {"row": example.get("i"), "line": example.get("line")}
        if isinstance(item, RowProblem):
            results.append({**place, "refused": str(item)})
            continue
        results.append({
            **place, "text": item.text, "input_ids": item.input_ids, "labels": item.labels,
            "mask": [int(label != IGNORED) for label in item.labels], "cut_ids": item.cut_ids,
            "trained_tokens": item.trained_tokens,
            "tokens": [str(token) for token in tokenizer.convert_ids_to_tokens(item.input_ids)],
            "end_token": end_token_report(tokenizer, item, generation_stops(path)),
            "shown": _marked(item.text, item.offsets, item.labels),
        })  # fmt: skip
    return results


def token_statistics(
    data_folder: Path, model: str, config: RunConfig, workspace: Path | None
) -> dict[str, Any]:
    """The `tokens` object of `data check --model M --json`.

    Tokens are kept in the workspace of the data set, where its runs find them.
    """
    from studio.backend.data import load_held_out, load_rows, token_table
    from studio.backend.rendering import load_tokenizer
    from studio.backend.token_cache import TokenCache
    from studio.backend.token_stats import summarise

    tokenizer = load_tokenizer(_model_path(model, workspace))
    train = config.train
    table = token_table(
        tokenizer, load_rows(data_folder), loss_on=train.loss_on,
        system_prompt=config.data.system_prompt,
        cache=TokenCache.of_workspace(data_folder.parent.parent),
    )  # fmt: skip
    summary = summarise(table, max_length=train.max_length)
    cut = cut_at(summary, train.max_length)
    train_rows = _train_rows(len(table), load_held_out(data_folder), config)
    epoch = summarise(table, rows=train_rows)
    learning = cut_at(epoch, train.max_length)
    batches = padding(
        epoch, train.max_length, batch_size=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
    )  # fmt: skip
    return {
        "model": model, "refused": summary.refused, "refused_reasons": summary.refused_reasons,
        **cut.to_dict(), "longest": summary.longest,
        "mean": round(summary.tokens / summary.rows, 1) if summary.rows else 0,
        "percentiles": {str(p): length_that_keeps(summary, p / 100) for p in PERCENTILES},
        "epoch": {"rows": epoch.rows - learning.no_trained_token, "tokens": learning.tokens,
                  "trained_tokens": learning.trained_tokens},
        "histogram": histogram(summary), "batches": [vars(way) for way in batches],
        "rows_of": summary.first_rows, "exact": summary.exact,
    }  # fmt: skip


def _train_rows(count: int, held_out: list[int] | None, config: RunConfig) -> list[int]:
    """The rows that train: all but those held out by choice, else by chance."""
    if held_out is not None:
        return split_chosen(count, held_out)[0]
    return split(count, config.data.val_frac, config.train.seed)[0]


def statistics_text(tokens: dict[str, Any]) -> str:
    """The same in four lines for people."""
    cut = Cut(**{name: tokens[name] for name in Cut.__dataclass_fields__})
    ways = ", ".join(
        f"{way['way']} {100 * way['waste_share']:.0f} % ({way['steps_per_epoch']:,} steps an epoch)"
        for way in tokens["batches"]
    )
    lengths = ", ".join(f"{p} %: {value:,}" for p, value in tokens["percentiles"].items())
    return (
        f"  tokens of {tokens['model']}: {tokens['epoch']['tokens']:,} an epoch, "
        f"{100 * tokens['trained_share']:.0f} % learned\n"
        f"  tokens of a row, so many rows have at most: {lengths}\n"
        f"  at max_length {tokens['max_length']:,}: {explain(cut)}\n"
        f"  padding: {ways}\n"
    )


def _model_path(model: str, workspace: Path | None) -> Path:
    from studio.services.models import ModelStore
    from studio.services.settings import PROJECT_ROOT, choose_workspace

    return ModelStore(choose_workspace(workspace), PROJECT_ROOT / "presets").resolve(model)


def _choose(rows: Sequence[dict[str, Any]], row: int | None, count: int) -> Iterator[Any]:
    if row is None:
        return islice(iter(rows), count)
    return islice((example for example in rows if example.get("i") == row), 1)


def _marked(text: str, offsets: Sequence[tuple[int, int]], labels: Sequence[int]) -> str:
    """The text with brackets around what is learned, and a line where it is cut."""
    pieces, position, inside = [], 0, False
    for place, (_, end) in enumerate(offsets):
        learned = 0 < place < len(labels) and labels[place] != -100
        if learned != inside and end > position:
            pieces.append(LEARNED[0] if learned else LEARNED[1])
            inside = learned
        if place == len(labels):
            pieces.append("\n---- cut at max_length ----\n")
        pieces.append(text[position:end])
        position = max(position, end)
    return "".join(pieces) + (LEARNED[1] if inside else "")


def _to_text(row: dict[str, Any]) -> str:
    head = f"row {row['row']}" + (f", line {row['line']}" if row["line"] else "")
    if "refused" in row:
        return f"{head}: cannot be used: {row['refused']}\n"
    total = len(row["input_ids"]) + len(row["cut_ids"])
    cut = f", {len(row['cut_ids']):,} cut" if row["cut_ids"] else ""
    return (
        f"{head}: {total:,} tokens, {row['trained_tokens']:,} learned{cut}. "
        f"{row['end_token']['message']}\n{row['shown']}\n"
    )
