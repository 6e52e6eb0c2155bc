"""`python -m studio data ...`: what a data file holds, without a browser.

Owns the command's options and output; the work is done by services.datasets. A file is read in a
temporary workspace, so that a check leaves nothing behind. Mounted by `studio/cli.py` with
`app.add_typer(data_app, name="data")`; errors are raised for it to print.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.core.config_io import apply_overrides, build_config
from studio.core.split import num_held_out

if TYPE_CHECKING:
    from studio.core.config import DataSection
    from studio.services.dataset_records import DatasetInfo

SHOWN_REASONS = 10

data_app = typer.Typer(help="Data files.", no_args_is_help=True, rich_markup_mode=None)


@data_app.callback()
def data() -> None:
    """Data files."""


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A file, a data set's id, a sample or hf:<id>.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    format: Annotated[str, typer.Option(help="Row format; auto: detected.")] = "auto",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")
    ] = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
    ] = None,
) -> None:
    """Format, mapping, rows that train, are held out or left out, and why."""
    values: dict[str, Any] = {} if format == "auto" else {"data": {"format": format}}
    options = build_config(apply_overrides(values, overrides)).data
    info = _read(file, options, workspace)
    report = to_report(info, options.val_frac)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        sys.stdout.write(_to_text(info, report))


def _read(reference: str, options: DataSection, workspace: Path | None) -> DatasetInfo:
    from studio.services.datasets import DatasetStore
    from studio.services.settings import choose_workspace

    chosen = choose_workspace(workspace)
    if DatasetStore(chosen).has(reference) and not Path(reference).is_file():
        return DatasetStore(chosen).get(reference)
    with tempfile.TemporaryDirectory(prefix="lora-studio-check-") as folder:
        store = DatasetStore(Path(folder))
        progress = _show_progress if sys.stderr.isatty() else None
        return store.resolve(
            reference, format=options.format, mapping=options.mapping, progress=progress
        )


def to_report(info: DatasetInfo, val_frac: float) -> dict[str, Any]:
    """The object that `--json` prints."""
    held_out = num_held_out(info.used, val_frac)
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
        "notes": [*info.reasons, *info.notes],
        "fingerprint": info.fingerprint,
    }


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
    return "\n".join(lines) + "\n"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _show_progress(frac: float | None, text: str) -> None:
    share = "" if frac is None else f"{100 * frac:3.0f} %  "
    sys.stderr.write(f"\r{share}{text}   ")
