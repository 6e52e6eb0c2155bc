"""`python -m studio token ...`: who may open a studio that listens for others.

A token is printed once, when it is made. None is ever given on the command line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from studio.access import TOKEN_PARAMETER
from studio.core.runs import read_json
from studio.listening import own_addresses
from studio.rights import OWNER
from studio.tokens import TokenStore

token_app = typer.Typer(
    help="Tokens of viewers and of the owner.", no_args_is_help=True, rich_markup_mode=None
)
Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Option("--name", help="Whose token it is.")]


def _store(workspace: Path | None) -> TokenStore:
    from studio.services.settings import choose_workspace, prepare_workspace

    chosen = choose_workspace(workspace)
    prepare_workspace(chosen)
    return TokenStore(chosen)


def _address(workspace: Path | None) -> str:
    """Where the studio of the workspace was started last, as far as it is known."""
    from studio.services.settings import choose_workspace

    known = (read_json(choose_workspace(workspace) / "studio.json") or {}).get("url")
    if not isinstance(known, str):
        return "http://THE-STUDIO"
    machine = next(iter(own_addresses()), "127.0.0.1")
    return known.replace("://0.0.0.0", f"://{machine}").replace("://[::]", f"://{machine}")


@token_app.command("new")
def new_token(
    role: Annotated[Literal["viewer", "owner"], typer.Option("--role", help="What it may.")],
    name: Name = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, once. A new owner's token ends the old one."""
    store = _store(workspace)
    token = store.renew_owner() if role == OWNER else store.new_viewer(name)
    link = f"{_address(workspace)}/?{TOKEN_PARAMETER}={token}"
    if as_json:
        print(json.dumps({"role": role, "name": name or role, "token": token, "link": link}))
        return
    sys.stderr.write("It is shown this once. Give it to one person.\n")
    print(link)


@token_app.command("list")
def list_tokens(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Names and dates of viewers' tokens; never the tokens."""
    viewers = _store(workspace).viewers()
    if as_json:
        print(json.dumps({"viewers": [{"name": v.name, "created": v.created} for v in viewers]}))
        return
    for viewer in viewers:
        print(f"{viewer.created}  {viewer.name}")
    if not viewers:
        print("No viewer has a token. Make one with: python -m studio token new --role viewer "
              "--name NAME")  # fmt: skip


@token_app.command("revoke")
def revoke_token(
    name: Annotated[str, typer.Argument(metavar="NAME")], workspace: Workspace = None
) -> None:
    """End a viewer's token at once."""
    _store(workspace).revoke(name)
    print(f"The token of {name} opens nothing any more.")
