"""The studio's parts, wired: what the page, the HTTP endpoints and the command line work with.

Owns construction, the workspace lock and shutdown; no logic of its own. Closing ends the chat and
inspection children; trainings go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from dataclasses import dataclass, field

from studio.core.presets import Preset, load_presets
from studio.core.runs import read_json
from studio.hardware.platforms import held_lock, write_json
from studio.hardware.probe import MachineProbe
from studio.services.chat import ChatService
from studio.services.datasets import DatasetStore
from studio.services.inspect import InspectService
from studio.services.models import ModelStore
from studio.services.settings import Settings, prepare_workspace
from studio.services.store import RunStore
from studio.services.supervisor import Supervisor

log = logging.getLogger(__name__)


@dataclass
class Studio:
    """All services of one workspace."""

    settings: Settings
    datasets: DatasetStore
    runs: RunStore
    supervisor: Supervisor
    chat: ChatService
    inspector: InspectService
    models: ModelStore
    machine: MachineProbe
    presets: list[Preset]
    notice: str | None = None
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """End what must not outlive the page; trainings go on. May be called twice."""
        self._exits.close()


def build_studio(settings: Settings, *, serve: bool = True) -> Studio:
    """Construct all services on a workspace.

    Args:
        serve: take the workspace's lock and start the supervisor thread (the page). The command
            line passes False: it launches its own trainer and may run beside the page.

    Raises:
        StoreError: the workspace cannot be used.
        PresetError: a preset file is wrong.
    """
    prepare_workspace(settings.workspace)
    exits = contextlib.ExitStack()
    notice = None
    if serve:
        settings, notice = _claim_workspace(settings, exits)
    datasets = DatasetStore(settings.workspace)
    models = ModelStore(settings.workspace, settings.presets_dir)
    runs = RunStore(settings.workspace)
    machine = MachineProbe(settings.workspace)
    chat = ChatService(settings.workspace, runs, models)
    inspector = InspectService(settings.workspace, models)
    supervisor = Supervisor(
        settings, runs, datasets=datasets, models=models, machine=machine, chat=chat
    )
    exits.callback(chat.close)
    exits.callback(inspector.close)
    studio = Studio(
        settings, datasets, runs, supervisor, chat, inspector, models, machine,
        load_presets(settings.presets_dir), notice, exits,
    )  # fmt: skip
    if serve and not settings.read_only:
        supervisor.run_in_background()
        exits.callback(supervisor.close)
    return studio


def _claim_workspace(
    settings: Settings, exits: contextlib.ExitStack
) -> tuple[Settings, str | None]:
    """Take the workspace's lock for this process's life, or open read-only and say who has it."""
    holder_file = settings.workspace / "studio.json"
    if exits.enter_context(held_lock(settings.workspace / "studio.lock")):
        write_json(holder_file, {"pid": os.getpid(), "url": settings.url})
        return settings, None
    holder = read_json(holder_file) or {}
    notice = (
        f"Another studio (process {holder.get('pid', 'unknown')}, {holder.get('url', 'address ?')}) "
        "holds this workspace; this one is read-only."
    )
    log.warning(notice)
    return dataclasses.replace(settings, read_only=True), notice
