"""What the commands about a data file share: its arguments, its settings, and how it is opened.

Owns the options that `data check` and `data render` both have. A file is read in a temporary
workspace, so that a look at it leaves nothing behind; a data set is read where it lies.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.core.config_io import apply_overrides, build_config

if TYPE_CHECKING:
    from studio.core.config import DataSection, RunConfig
    from studio.services.dataset_records import DatasetInfo
    from studio.services.import_process import ProgressFn

FileArgument = Annotated[str, typer.Argument(help="A file, a data set's id, a sample or hf:<id>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FormatOption = Annotated[str, typer.Option(help="Row format; auto: detected.")]
EncodingOption = Annotated[
    str, typer.Option(help="Encoding of the text, as windows-1251; detect: told from the bytes.")
]
OverridesOption = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
]


def data_config(format: str, encoding: str, overrides: Sequence[str]) -> RunConfig:
    """The settings that the options of a command mean. Raises ConfigError."""
    chosen = {"format": (format, "auto"), "encoding": (encoding, "detect")}
    data: dict[str, Any] = {key: value for key, (value, usual) in chosen.items() if value != usual}
    return build_config(apply_overrides({"data": data} if data else {}, list(overrides)))


@contextlib.contextmanager
def opened_dataset(
    reference: str, options: DataSection, workspace: Path | None
) -> Iterator[DatasetInfo]:
    """The data set that a reference means; a file is read into a folder that is gone afterwards."""
    from studio.services.datasets import DatasetStore
    from studio.services.settings import choose_workspace

    chosen = choose_workspace(workspace)
    if DatasetStore(chosen).has(reference) and not Path(reference).is_file():
        yield DatasetStore(chosen).check_again(reference, progress=progress_line())
        return
    with tempfile.TemporaryDirectory(prefix="lora-studio-check-") as folder:
        store = DatasetStore(Path(folder))
        yield store.resolve(
            reference, format=options.format, mapping=options.mapping, progress=progress_line(),
            options={"split": options.split, "text_unit": options.text_unit,
                     "encoding": options.encoding},
        )  # fmt: skip


def progress_line() -> ProgressFn | None:
    """How far the work is, in one line of the terminal; None where nobody looks."""
    return _show_progress if sys.stderr.isatty() else None


def _show_progress(frac: float | None, text: str) -> None:
    share = "" if frac is None else f"{100 * frac:3.0f} %  "
    sys.stderr.write(f"\r{share}{text}   ")
