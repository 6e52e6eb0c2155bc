"""`python -m studio chat RUN "prompt"`: one answer of a run's adapter or of its base.

Owns the command's options and output; the work is done by `services.chat`. Mounted by
`studio/cli.py` with `app.command("chat")(chat)`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.core.chat_request import ChatRequest
from studio.core.errors import StudioError

if TYPE_CHECKING:
    from studio.services.chat import ChatService

_FIELDS = ChatRequest.model_fields


def chat(
    run: Annotated[str, typer.Argument(help="Id of a run; `latest` for the newest that can chat.")],
    prompt: Annotated[str, typer.Argument(help="The question.")],
    base: Annotated[bool, typer.Option("--base", help="Ask the base model: adapter off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help=str(_FIELDS["temperature"].description))
    ] = _FIELDS["temperature"].default,
    top_p: Annotated[float, typer.Option(help=str(_FIELDS["top_p"].description))] = _FIELDS[
        "top_p"
    ].default,
    max_tokens: Annotated[int, typer.Option(help=str(_FIELDS["max_tokens"].description))] = _FIELDS[
        "max_tokens"
    ].default,
    seed: Annotated[int, typer.Option(help=str(_FIELDS["seed"].description))] = _FIELDS[
        "seed"
    ].default,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
    ] = None,
) -> None:
    """Ask a trained model one question. Greedy unless a temperature is given."""
    from studio.services.chat import ChatService
    from studio.services.models import ModelStore
    from studio.services.settings import Settings, choose_workspace, prepare_workspace
    from studio.services.store import RunStore

    settings = Settings(workspace=choose_workspace(workspace))
    prepare_workspace(settings.workspace)
    runs = RunStore(settings.workspace)
    run_id = latest_run(runs) if run == "latest" else run
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    options = {
        "which": "base" if base else "adapter", "temperature": temperature, "top_p": top_p,
        "max_tokens": max_tokens, "seed": seed,
    }  # fmt: skip
    service = ChatService(
        settings.workspace,
        runs,
        ModelStore(settings.workspace, settings.presets_dir),
        name="chat-cli",
    )
    try:
        result = asyncio.run(ask(service, run_id, messages, options, show=not as_json))
    finally:
        service.close()
    if as_json:
        print(json.dumps({"run_id": run_id, **result}, ensure_ascii=False))


def latest_run(runs: Any) -> str:
    """Id of the newest run one can chat with."""
    found = next((run.id for run in runs.list() if run.can_chat), None)
    if found is None:
        raise StudioError("There is no finished run to chat with", remedy="Train one first")
    return str(found)


async def ask(
    service: ChatService,
    run_id: str,
    messages: list[dict[str, str]],
    options: dict[str, Any],
    *,
    show: bool,
) -> dict[str, Any]:
    """The whole answer with its figures; with `show` it is printed while it grows."""
    text, end = "", {}
    async with aclosing(service.stream(run_id, messages, **options)) as events:
        async for event in events:
            if "error" in event:
                raise StudioError(
                    str(event["error"].get("what")), remedy=event["error"].get("remedy")
                )
            if told := event.get("message") or event.get("notice"):
                sys.stderr.write(f"{told}\n")
            text += event.get("delta", "")
            if show and "delta" in event:
                sys.stdout.write(event["delta"])
                sys.stdout.flush()
            if event.get("done"):
                end = {key: event[key] for key in ("tokens", "truncated", "tokens_per_s")}
    if show:
        sys.stdout.write("\n")
        if end.get("truncated"):
            sys.stderr.write(f"Cut at {end['tokens']} tokens; raise --max-tokens\n")
    return {"which": options["which"], "answer": text, **end}
