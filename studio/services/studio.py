"""The studio's parts, wired: what the page, the HTTP endpoints and the command line work with.

Owns construction, the workspace lock and shutdown; no logic of its own. Closing ends the chat and
inspection children; trainings go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from dataclasses import dataclass, field

from studio.core.presets import Preset, load_presets
from studio.core.runs import read_json
from studio.hardware.platforms import held_lock, remove_staged, write_json
from studio.hardware.probe import MachineProbe
from studio.services.chat import ChatService
from studio.services.datasets import DatasetStore
from studio.services.edits import Edits
from studio.services.inspect import InspectService
from studio.services.measured_memory import MeasuredMemory, use_kept
from studio.services.memory import MemoryService
from studio.services.memory_doctor import MemoryDoctor
from studio.services.models import ModelStore
from studio.services.read_only import guard, holder_record, holder_words
from studio.services.runs import RunParts
from studio.services.settings import UPLOADS, Settings, prepare_workspace
from studio.services.store import RunStore
from studio.services.supervisor import Supervisor

log = logging.getLogger(__name__)

_LEFTOVER_S = 24 * 3600.0
READ_ONLY = (
    "; this one is read-only: look and chat, but start, change, import and delete in that one."
)
EVICTED = "The chat's model was unloaded to make room for the training; ask again when it is over."


@dataclass
class Studio:
    """All services of one workspace."""

    settings: Settings
    datasets: DatasetStore
    edits: Edits
    runs: RunStore
    supervisor: Supervisor
    chat: ChatService
    inspector: InspectService
    models: ModelStore
    machine: MachineProbe
    presets: list[Preset]
    parts: RunParts
    memory: MemoryService
    doctor: MemoryDoctor
    measured: MeasuredMemory
    notice: str | None = None
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """End what must not outlive the page; trainings go on. May be called twice."""
        self._exits.close()


def build_parts(settings: Settings) -> RunParts:
    """What makes runs: stores and probe, no thread, no child, no lock (for the command line)."""
    return RunParts(
        workspace=settings.workspace,
        runs=RunStore(settings.workspace),
        datasets=DatasetStore(settings.workspace, settings.presets_dir),
        models=ModelStore(settings.workspace, settings.presets_dir),
        machine=MachineProbe(settings.workspace),
    )


def build_studio(settings: Settings) -> Studio:
    """Construct all services, take the workspace's lock and start the supervisor thread.

    A workspace that another studio holds is opened read-only, with a notice.

    Raises:
        StoreError: the workspace cannot be used.
        PresetError: a preset file is wrong.
    """
    prepare_workspace(settings.workspace)
    presets = load_presets(settings.presets_dir)
    exits = contextlib.ExitStack()
    settings, notice = _claim_workspace(settings, exits)
    parts = build_parts(settings)
    runs, models = parts.runs, parts.models
    chat = ChatService(settings.workspace, runs, models)
    inspector = InspectService(settings.workspace, models)
    memory = MemoryService(settings.workspace, models, parts.machine)
    use_kept(settings.workspace, memory.fit_constants)
    measured = MeasuredMemory(
        settings.workspace, runs, memory.fit_constants, read_only=settings.read_only
    )
    exits.callback(chat.close)
    exits.callback(inspector.close)
    exits.callback(memory.close)
    holder = notice and notice.removesuffix(READ_ONLY)
    supervisor = Supervisor(
        parts, free_device=lambda device: _evict_chat(chat, device), read_only=holder
    )
    if not settings.read_only:
        _sweep(settings)
        supervisor.run_in_background()
        exits.callback(supervisor.close)
    return Studio(
        settings=settings, datasets=guard("datasets", parts.datasets, holder),
        edits=guard("edits", Edits(parts.datasets, settings.workspace), holder),
        runs=guard("runs", runs, holder), supervisor=guard("supervisor", supervisor, holder),
        chat=chat, inspector=inspector, models=guard("models", models, holder),
        machine=parts.machine, presets=presets, notice=notice, parts=parts, memory=memory,
        doctor=MemoryDoctor(parts, memory, supervisor),
        measured=measured, _exits=exits,
    )  # fmt: skip


def _sweep(settings: Settings) -> None:
    """Remove what a killed process left half-written, and in the staging area long ago."""
    for folder in (settings.workspace, *settings.workspace.glob("runs/*")):
        remove_staged(folder)
    for entry in settings.tmp.iterdir():
        age_s = time.time() - entry.lstat().st_mtime
        if age_s < _LEFTOVER_S or entry.name == UPLOADS:
            continue
        log.info("removing a leftover: %s", entry)
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _evict_chat(chat: ChatService, device: str) -> str | None:
    """Unload the chat's model where a training needs its GPU; returns what to tell the user."""
    return None if device == "cpu" else chat.evict(EVICTED)


def _claim_workspace(
    settings: Settings, exits: contextlib.ExitStack
) -> tuple[Settings, str | None]:
    """Take the workspace's lock for this process's life, or open read-only and say who has it."""
    holder_file = settings.workspace / "studio.json"
    if exits.enter_context(held_lock(settings.workspace / "studio.lock")):
        write_json(holder_file, holder_record(settings.url))
        return settings, None
    notice = holder_words(read_json(holder_file) or {}) + READ_ONLY
    log.warning(notice)
    return dataclasses.replace(settings, read_only=True), notice
