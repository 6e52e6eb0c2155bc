"""`python -m studio data ...`: what a data file holds, without a browser.

Owns the command's output; the work is done by services.datasets, the file is opened by
`cli_source`. Mounted by `studio/cli.py` with `app.add_typer(data_app, name="data")`; errors are
raised for it to print.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli_render import statistics_text, token_statistics
from studio.cli_source import (
    EncodingOption,
    FileArgument,
    FormatOption,
    JsonOption,
    OverridesOption,
    WorkspaceOption,
    data_config,
    opened_dataset,
    progress_line,
)
from studio.core.checks import LEFT_OUT_CHECKS

if TYPE_CHECKING:
    from studio.services.dataset_records import DatasetInfo

SHOWN_REASONS = 10
SHOWN_LINES = 100  # of each check, in --json
SHOWN_PLACES = 5  # of each check, in the text

data_app = typer.Typer(help="Data files.", no_args_is_help=True, rich_markup_mode=None)


@data_app.callback()
def data() -> None:
    """Data files."""


@data_app.command()
def check(
    file: FileArgument,
    as_json: JsonOption = False,
    format: FormatOption = "auto",
    encoding: EncodingOption = "detect",
    model: Annotated[
        str | None, typer.Option(help="Also count tokens, as this model reads the rows.")
    ] = None,
    near: Annotated[
        bool | None,
        typer.Option(help="Look for near-duplicates (default: up to 20,000 rows)."),
    ] = None,
    overrides: OverridesOption = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: WorkspaceOption = None,
) -> None:
    """Format, mapping, rows that train, are held out or left out, and why; what checks found."""
    from studio.services.near_duplicates import find_near_duplicates, is_automatic

    config = data_config(format, encoding, overrides)
    with opened_dataset(file, config.data, workspace) as info:
        if is_automatic(info) if near is None else near:
            find_near_duplicates(info, progress=progress_line())
        report = to_report(info, config.data.val_frac, config.train.seed)
        if model is not None:
            report["tokens"] = token_statistics(info.folder, model, config, workspace)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        sys.stdout.write(_to_text(info, report))
        if model is not None:
            sys.stdout.write(statistics_text(report["tokens"]))


def to_report(info: DatasetInfo, val_frac: float, seed: int = 42) -> dict[str, Any]:
    """The object that `--json` prints. Reads the data set's folder."""
    held_out = info.num_held_out(val_frac)
    return {
        "file": info.name,
        "format": info.format,
        "mapping": info.mapping,
        "columns": info.columns,
        "rows": {
            "train": info.used - held_out,
            "held_out": held_out,
            "left_out": info.left_out,
        },
        "problems": [
            {"line": p["line"], "row": p["row"], "reason": p["reason"], "remedy": p["remedy"]}
            for p in info.problems
        ],
        "problem_reasons": info.problem_reasons,
        "checks": _checks(info, val_frac, seed),
        "notes": [*info.reasons, *info.notes],
        "fingerprint": info.fingerprint,
    }


def _checks(info: DatasetInfo, val_frac: float, seed: int) -> list[dict[str, Any]]:
    """What the checks found, each with the lines (or, without lines, numbers) of its first rows.

    A check that was not made is there with a count of null and the reason.
    """
    from studio.services.check_lists import check_summaries, list_check
    from studio.services.near_duplicates import expected_s, found_near_duplicates

    entries = []
    for entry in check_summaries(info, val_frac=val_frac, seed=seed):
        hits = list_check(info, entry["id"], 0, SHOWN_LINES, val_frac=val_frac, seed=seed)
        entries.append({
            **{key: entry[key] for key in ("id", "title", "level", "count", "remedy", "fix")},
            "lines": [hit["line"] for hit in hits if hit["line"] is not None],
            "rows": [hit["i"] for hit in hits],
            "first": entry["first"],
        })  # fmt: skip
    if found_near_duplicates(info.folder) is None:
        why = f"not looked for in {info.used:,} rows: about {expected_s(info):.0f} s with --near"
        entries.append({"id": "near_duplicate", "count": None, "reason": why})
    return entries


def _to_text(info: DatasetInfo, report: dict[str, Any]) -> str:
    rows = report["rows"]
    mapping = ", ".join(f"{role} = {column}" for role, column in info.mapping.items())
    lines = [
        f"{info.name}: {info.format} ({mapping})",
        *(f"  {note}" for note in report["notes"]),
        f"  {_counted(rows['train'], 'row trains', 'rows train')}, "
        f"{_counted(rows['held_out'], 'is', 'are')} held out, "
        f"{_counted(rows['left_out'], 'is', 'are')} left out",
    ]
    first: dict[str, dict[str, Any]] = {}
    for problem in info.problems:
        first.setdefault(problem["reason"], problem)
    for reason, count in list(info.problem_reasons.items())[:SHOWN_REASONS]:
        problem = first.get(reason, {"line": None, "row": "?", "remedy": ""})
        place = f"row {problem['row']}" if problem["line"] is None else f"line {problem['line']}"
        lines.append(f"  {count:,} x {reason} (first: {place}). {problem['remedy']}.")
    lines += [_check_line(entry) for entry in report["checks"] if not _is_told(entry)]
    return "\n".join(lines) + "\n"


def _is_told(entry: dict[str, Any]) -> bool:
    """Rows that are left out stand among the problems already."""
    return entry["id"] in LEFT_OUT_CHECKS


def _check_line(entry: dict[str, Any]) -> str:
    if entry["count"] is None:
        return f"  near-duplicates: {entry['reason']}"
    places = entry["lines"][:SHOWN_PLACES] or entry["rows"][:SHOWN_PLACES]
    what = ("line" if entry["lines"] else "row") + ("s" if len(places) > 1 else "")
    listed = ", ".join(f"{place:,}" for place in places)
    more = ", ..." if entry["count"] > len(places) else ""
    return (
        f"  {entry['level']}: {entry['title']}: {entry['count']:,} ({what} {listed}{more}). "
        f"{entry['remedy']}."
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
