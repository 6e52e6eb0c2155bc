"""`python -m studio plan CONFIG`: will it fit, item by item, and what would make it fit.

Owns the command's options and output; the work is done by `services.memory`. Mounted by
`studio/cli.py`; errors are raised for it to print.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from studio.core.cards import Card
    from studio.core.fit_memory import Change, Proposal
    from studio.services.memory import MemoryAnswer, MemoryService


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file: a config or a preset.")],
    gpu: Annotated[str | None, typer.Option(help='A card, for example "RTX 4090".')] = None,
    vram_gib: Annotated[float | None, typer.Option(help="A card's memory in GiB.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")
    ] = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Memory of a run by item, against this machine or a card; and settings that fit."""
    from studio.core.config_io import load_config
    from studio.services.measured_memory import use_kept
    from studio.services.memory import MemoryService
    from studio.services.settings import Settings, choose_workspace, prepare_workspace
    from studio.services.studio import build_parts

    wanted = load_config(config, overrides)
    settings = Settings(workspace=choose_workspace(workspace))
    prepare_workspace(settings.workspace)
    parts = build_parts(settings)
    service = MemoryService(settings.workspace, parts.models, parts.machine)
    use_kept(settings.workspace, service.fit_constants)
    try:
        card = _card(service, gpu, vram_gib)
        found = service.estimate(wanted.model.id, wanted, card=card)
        proposal = None
        if found.fits is False:
            proposal = service.propose(wanted.model.id, wanted, card=card)
    finally:
        service.close()
    if as_json:
        print(json.dumps(record(wanted.model.id, found, proposal), allow_nan=False))
    else:
        _show(found, proposal)


def _card(service: MemoryService, gpu: str | None, vram_gib: float | None) -> Card | None:
    from studio.core.cards import card_of_gib
    from studio.core.errors import ConfigError

    if gpu is not None and vram_gib is not None:
        raise ConfigError(
            "--gpu and --vram-gib exclude each other", value=f"{gpu}, {vram_gib}",
            remedy="Give one of them",
        )  # fmt: skip
    if gpu is not None:
        return service.card(gpu)
    return None if vram_gib is None else card_of_gib(vram_gib)


def record(model_id: str, found: MemoryAnswer, proposal: Proposal | None) -> dict[str, Any]:
    """The object that --json prints; all sizes in bytes."""
    device = found.device
    return {
        "model": model_id,
        "device": {"name": device.name, "total_bytes": device.total_bytes,
                   "free_bytes": device.free_bytes},
        **found.estimate.to_dict(),
        "fits": found.fits,
        "answer": found.sentence,
        "advice": [_change(change) for change in found.advice],
        "proposal": None if proposal is None else {
            "fits": proposal.fits, "needs_bytes": proposal.needs_bytes,
            "changes": [_change(change) for change in proposal.changes],
        },
        "warnings": list(found.warnings),
    }  # fmt: skip


def _change(change: Change) -> dict[str, Any]:
    return {**asdict(change), "values": dict(change.values)}


def _show(found: MemoryAnswer, proposal: Proposal | None) -> None:
    from studio.core.memory_words import gib

    for item in found.estimate.items:
        moves = "  (may move to host memory)" if item.may_move else ""
        print(f"{item.bytes / 2**30:8.2f} GiB  {item.title:28} {item.why}{moves}")
    total = found.estimate
    print(f"{total.expected / 2**30:8.2f} GiB  in all, {gib(total.low)} to {gib(total.high)}")
    for part in total.unknown:
        print(f"       ? GiB  {part}: unknown")
    free = found.device.free_bytes
    print(f"{found.device.name}: {gib(free) if free is not None else 'unknown'} free")
    for warning in found.warnings:
        print(f"Note: {warning}")
    print(found.sentence + ".")
    if proposal is None:
        return
    steps = "; ".join(
        f"{change.title} (saves {gib(change.saved_bytes)}, {change.speed})"
        for change in proposal.changes
    )
    if proposal.fits:
        print(f"Fits in {gib(proposal.needs_bytes)} with: {steps}.")
    else:
        print(f"Does not fit even with: {steps or 'the smallest settings'}. "
              "Choose a smaller model.")  # fmt: skip
