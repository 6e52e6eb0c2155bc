"""`python -m studio models ...`: base models, without a browser.

Owns the commands' options and output; the work is done by `services.models`. Mounted by
`studio/cli.py` with `app.add_typer(models_app, name="models")`; errors are raised for it to print.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from studio.services.models import ModelInfo, ModelStore

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

models_app = typer.Typer(help="Base models.", no_args_is_help=True, rich_markup_mode=None)


def store_for(workspace: Path | None) -> ModelStore:
    """The models of a workspace."""
    from studio.services.models import ModelStore
    from studio.services.settings import Settings, choose_workspace, prepare_workspace

    settings = Settings(workspace=choose_workspace(workspace))
    prepare_workspace(settings.workspace)
    return ModelStore(settings.workspace, settings.presets_dir)


@models_app.command("list")
def list_models(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """The bundled model, what is downloaded, and the catalogue."""
    infos = store_for(workspace).list()
    if as_json:
        print(json.dumps({"models": [_record(info) for info in infos]}, ensure_ascii=False))
        return
    for info in infos:
        place = "here" if info.local else f"{info.gb:.1f} GB to download" if info.gb else ""
        params = f"{info.params / 1e6:,.0f} M" if info.params else "?"
        print(f"{info.id:45} {params:>9}  {place:20} {info.licence or '':20} {info.note}")


@models_app.command()
def download(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="owner/name of the hub.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model, or the rest of it. Ctrl-C keeps what is here for the next time."""
    store = store_for(workspace)
    size = store.size(model_id, revision)
    free = f"; {size.free_bytes / 1e9:.1f} GB free" if size.free_bytes is not None else ""
    sys.stderr.write(
        f"{model_id} at {size.commit[:12]}, licence {size.licence or 'not stated'}: "
        f"{size.missing_bytes / 1e6:,.0f} MB to download{free}\n"
    )
    try:
        for share, words in store.fetch(model_id, revision):
            sys.stderr.write(f"\r{100 * share:5.1f} %  {words:60}")
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; the same command continues\n")
        raise typer.Exit(130) from None
    sys.stderr.write("\n")
    path = store.resolve(model_id, revision)
    if as_json:
        print(json.dumps({"id": model_id, "commit": size.commit, "path": str(path)}))
    else:
        print(path)


@models_app.command()
def token(
    remove: Annotated[bool, typer.Option("--remove", help="Forget the token.")] = False,
    workspace: Workspace = None,
) -> None:
    """Keep an access token for gated models. It is read from the terminal or from stdin."""
    if remove:
        given = ""
    elif sys.stdin.isatty():
        given = getpass.getpass("Hugging Face token (not shown): ")
    else:
        given = sys.stdin.readline()
    if not remove and not given.strip():
        raise typer.BadParameter("no token was given; --remove forgets the one that is kept")
    store_for(workspace).set_token(given)
    sys.stderr.write("Token removed\n" if remove else "Token kept; only you can read it\n")


def _record(info: ModelInfo) -> dict[str, Any]:
    values = dataclasses.asdict(info)
    return {**values, "path": str(info.path) if info.path else None}
