"""Base models: the bundled one, folders on this machine, and those of the hub.

Owns `workspace/models/<owner>--<name>/`: where a download goes, its pinned commit, and when it is
complete (`download.json`, written last). Knows nothing of torch.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.core.catalogue import CatalogueModel, load_catalogue
from studio.core.errors import BusyError, HubError, ModelError, StoreError, StudioError
from studio.core.runs import read_json
from studio.hardware.platforms import free_bytes, held_lock, make_folder, write_json
from studio.services import hub_token
from studio.services.hub import Hub, HubFile, HubModel, is_hub_id
from studio.services.model_folder import (
    check_config,
    check_model_folder,
    check_sizes,
    context_tokens,
    count_params,
    read_config,
)

STARTER = "starter"
STARTER_LICENCE = "CC-BY-SA-4.0"
MANIFEST = "download.json"
PROGRESS = "download-part.json"
SPARE_BYTES = 512 << 20  # left free on the disk after a download
_TICK_S = 0.25

# Called with bytes here, bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ModelInfo:
    """One line of the model list. `local`: it can be used now, at `path`."""

    id: str
    title: str
    kind: str
    path: Path | None
    params: int | None
    context: int | None
    licence: str | None
    gb: float | None
    note: str
    local: bool


@dataclass(frozen=True)
class DownloadSize:
    """What a download would take, and whether the disk has room for it."""

    id: str
    commit: str
    total_bytes: int
    missing_bytes: int
    free_bytes: int | None
    is_gated: bool
    licence: str | None

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.missing_bytes + SPARE_BYTES <= self.free_bytes


class ModelStore:
    """Finds, checks and downloads base models. Thread safe."""

    def __init__(self, workspace: Path, presets_dir: Path, *, endpoint: str | None = None) -> None:
        self.root = workspace / "models"
        self._presets_dir = presets_dir
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._catalogue: list[CatalogueModel] | None = None
        self._cancelled: dict[str, threading.Event] = {}

    # -- what there is ---------------------------------------------------------------------------

    def list(self) -> list[ModelInfo]:
        """The bundled model, the downloaded ones, then the catalogue's others. Asks no network."""
        found = [self.info(STARTER)]
        known = {model.id: model for model in self.catalogue()}
        here = [model_id for model_id in self.downloaded() if model_id not in known]
        found += [self.info(model_id) for model_id in sorted(here)]
        return found + [self.info(model_id) for model_id in known]

    def catalogue(self) -> list[CatalogueModel]:
        """The short list of recommended models."""
        with self._lock:
            if self._catalogue is None:
                folder = self._presets_dir / "catalogue"
                self._catalogue = load_catalogue(folder) if folder.is_dir() else []
            return list(self._catalogue)

    def downloaded(self) -> list[str]:
        """Ids of the hub models that are here and complete."""
        records = (read_json(file) or {} for file in self.root.glob(f"*/{MANIFEST}"))
        return [str(r["id"]) for r in records if is_hub_id(str(r.get("id"))) and not r.get("asked")]

    def info(self, model_id: str) -> ModelInfo:
        """What is known of one model, also of one that is not in the list."""
        entry = next((model for model in self.catalogue() if model.id == model_id), None)
        try:
            path: Path | None = self.resolve(model_id)
            problem = ""
        except StudioError as error:
            path, problem = None, "" if is_hub_id(model_id) else str(error)
        params = count_params(path) if path else entry.params if entry else None
        kind = STARTER if model_id == STARTER else "hub" if is_hub_id(model_id) else "folder"
        licence = entry.licence if entry else self._licence(path)
        return ModelInfo(
            id=model_id, kind=kind, path=path, params=params, local=path is not None,
            title=entry.title if entry else _title(model_id), licence=licence,
            context=context_tokens(path) if path else entry.context if entry else None,
            gb=2 * params / 1e9 if params else None, note=problem or _note(entry),
        )  # fmt: skip

    def resolve(self, model_id: str, revision: str | None = None) -> Path:
        """The folder of a model that can be used now. Asks no network.

        Args:
            model_id: `starter`, a folder, or an id of the hub that was downloaded.

        Raises:
            ModelError: the folder is unfit. HubError: the id is not downloaded, or none.
        """
        model_id = model_id.strip()
        if model_id == STARTER:
            return check_model_folder(self._presets_dir / STARTER)
        folder = _folder_of(model_id)
        if folder is not None:
            return check_model_folder(folder)
        if not is_hub_id(model_id):
            raise ModelError(
                "There is no such model", value=model_id,
                allowed="starter, a folder with safetensors, or owner/name of the hub",
            )  # fmt: skip
        place = self._place(model_id, revision)
        if not (place / MANIFEST).is_file():
            raise HubError(
                "This model is not on this machine yet", value=model_id,
                remedy="Download it first: in the Train tab, or with python -m studio models "
                f"download {model_id}",
            )  # fmt: skip
        return check_model_folder(place)

    def inspect_path(self, model_id: str) -> Path:
        """A folder with the model's config.json: its own, else the catalogue's."""
        entry = next((model for model in self.catalogue() if model.id == model_id), None)
        try:
            return self.resolve(model_id)
        except HubError:
            if entry is None:
                raise
            return entry.folder.absolute()

    # -- downloads -------------------------------------------------------------------------------

    def size(self, model_id: str, revision: str | None = None) -> DownloadSize:
        """What a download would take, against the free disk. Asks the hub. Raises HubError."""
        return self._size(self._hub().describe(model_id, revision), self._place(model_id, revision))

    def download(
        self,
        model_id: str,
        revision: str | None = None,
        progress: Progress = lambda here, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Fetch a model, or the rest of it. Returns its folder.

        A broken or cancelled download is continued by the next call, at the commit it began with.

        Raises:
            HubError: refused, unknown, gated, cancelled, no network. StoreError: no disk space.
            ModelError: it needs code of its own, or has no safetensors. BusyError: under way.
        """
        place = self._place(model_id, revision)
        make_folder(self.root)
        with held_lock(self.root / f".{place.name}.lock") as got:
            if not got:
                raise BusyError("This model is being downloaded already", value=model_id,
                                remedy="Wait until it is here")  # fmt: skip
            if (place / MANIFEST).is_file():
                return check_model_folder(place)
            hub = self._hub()
            begun = read_json(place / PROGRESS) or {}
            model = hub.describe(model_id, begun.get("commit") or revision)
            size = self._size(model, place)
            if not size.fits:
                raise _no_space(size)
            make_folder(place)
            write_json(place / PROGRESS, {"id": model_id, "commit": model.commit})
            self._fetch_all(hub, model, place, progress, cancelled)
            check_model_folder(place)
            self._complete(model, place, revision)
        return place

    def fetch(self, model_id: str, revision: str | None = None) -> Iterator[tuple[float, str]]:
        """`download` as progress: share of the whole and a sentence, a few times a second.

        Closing the iterator cancels; `cancel` does so from elsewhere.
        """
        stop = threading.Event()
        with self._lock:
            self._cancelled[model_id] = stop
        news: queue.Queue[tuple[int, int] | StudioError | None] = queue.Queue()

        def work() -> None:
            try:
                self.download(
                    model_id, revision, lambda here, total: news.put((here, total)), stop.is_set
                )
                news.put(None)
            except StudioError as error:
                news.put(error)

        thread = threading.Thread(target=work, name=f"download {model_id}", daemon=True)
        thread.start()
        try:
            yield from _tell(news, thread)
        finally:
            stop.set()
            with self._lock:
                if self._cancelled.get(model_id) is stop:
                    del self._cancelled[model_id]

    def cancel(self, model_id: str) -> None:
        """Stop a running `fetch`; what is here stays and is used when it is started again."""
        with self._lock:
            stop = self._cancelled.get(model_id)
        if stop is not None:
            stop.set()

    def set_token(self, token: str) -> None:
        """Keep the access token for gated models (mode 0600); an empty one removes it."""
        hub_token.save_token(token)

    def has_token(self) -> bool:
        """Whether there is a token. The token itself is never handed out."""
        return hub_token.read_token() is not None

    # -- inside ----------------------------------------------------------------------------------

    def _hub(self) -> Hub:
        return Hub(endpoint=self._endpoint, token=hub_token.read_token())

    def _place(self, model_id: str, revision: str | None) -> Path:
        if not is_hub_id(model_id):
            raise HubError(
                "This is not a model id of the hub", value=model_id,
                allowed="owner/name, for example Qwen/Qwen3-0.6B",
            )  # fmt: skip
        name = model_id.replace("/", "--")
        if revision not in (None, "", "main"):
            name += "@" + re.sub(r"[^\w.-]", "-", str(revision))
        return self.root / name

    def _size(self, model: HubModel, place: Path) -> DownloadSize:
        here = sum(_bytes_here(place, file) for file in model.files)
        return DownloadSize(
            id=model.id, commit=model.commit, total_bytes=model.total_bytes,
            missing_bytes=max(0, model.total_bytes - here), free_bytes=free_bytes(self.root),
            is_gated=model.is_gated, licence=model.licence,
        )  # fmt: skip

    def _fetch_all(
        self, hub: Hub, model: HubModel, place: Path, progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        done = 0
        for file in model.files:
            before = done
            target = place / file.name
            if not (target.exists() and target.stat().st_size == file.size_bytes):
                hub.fetch(
                    model, file, target, cancelled=cancelled,
                    on_bytes=lambda have, before=before: progress(before + have, model.total_bytes),
                )  # fmt: skip
            done += file.size_bytes
            progress(done, model.total_bytes)
            if file.name.endswith("config.json"):
                # Before the weights: a model that cannot be used shall not cost gigabytes.
                config = read_config(target)
                check_config(config, file.name)
                check_sizes(config)

    def _complete(self, model: HubModel, place: Path, revision: str | None) -> None:
        asked = revision if place.name != model.id.replace("/", "--") else None
        write_json(place / MANIFEST, {
            "id": model.id, "commit": model.commit, "licence": model.licence, "asked": asked,
            "files": {f.name: {"bytes": f.size_bytes, "sha256": f.sha256} for f in model.files},
        })  # fmt: skip
        (place / PROGRESS).unlink(missing_ok=True)

    def _licence(self, path: Path | None) -> str | None:
        if path is not None and path.parent == self._presets_dir.absolute():
            return STARTER_LICENCE
        licence = (read_json(path / MANIFEST) or {}).get("licence") if path else None
        return str(licence) if licence else None


def _title(model_id: str) -> str:
    if model_id == STARTER:
        return "Starter (bundled)"
    return model_id if is_hub_id(model_id) else Path(model_id).name


def _note(entry: CatalogueModel | None) -> str:
    if entry is None:
        return ""
    gate = "; gated: accept its licence on the hub first" if entry.gated else ""
    return f"{entry.why} QLoRA from {entry.vram_gib} GB{gate}."


def _bytes_here(place: Path, file: HubFile) -> int:
    for name in (file.name, f"{file.name}.part"):
        if (place / name).is_file():
            return min((place / name).stat().st_size, file.size_bytes)
    return 0


def _no_space(size: DownloadSize) -> StoreError:
    return StoreError(
        f"Not enough disk space: {size.id} needs {size.missing_bytes / 1e9:.1f} GB more, and "
        f"{SPARE_BYTES / 1e9:.1f} GB are kept free",
        value=f"{(size.free_bytes or 0) / 1e9:.1f} GB free",
        remedy="Free some space, or choose a smaller model or another --workspace",
    )


def _tell(
    news: queue.Queue[tuple[int, int] | StudioError | None], thread: threading.Thread
) -> Iterator[tuple[float, str]]:
    """Turn the downloading thread's news into shares and sentences."""
    started, first = time.monotonic(), None
    item: Any = ()
    while item is not None:
        item = news.get()
        latest = item
        while not news.empty() and isinstance(item, tuple):
            item = news.get()
            latest = item if isinstance(item, tuple) else latest
        if isinstance(latest, tuple):
            here, total = latest
            first = here if first is None else first
            words = _words(here, total, here - first, time.monotonic() - started)
            yield (here / total if total else 0.0), words
        if isinstance(item, StudioError):
            raise item
        thread.join(_TICK_S)


def _words(here: int, total: int, fetched: int, seconds: float) -> str:
    text = f"{here / 1e6:,.0f} of {total / 1e6:,.0f} MB"
    if seconds < 1.0 or fetched <= 0:
        return text
    rate = fetched / seconds
    left_s = (total - here) / rate
    left = f"{left_s / 60:.0f} min" if left_s > 90 else f"{left_s:.0f} s"
    return f"{text}, {rate / 1e6:.1f} MB/s, about {left} left"


def _folder_of(model_id: str) -> Path | None:
    """The folder that an id means, None where it can only be a name."""
    try:
        folder = Path(model_id).expanduser()
        is_folder = folder.is_absolute() or folder.is_dir() or model_id.startswith(".")
    except (OSError, RuntimeError) as error:  # too long for the system; no such user
        raise ModelError(
            "There is no such model", value=model_id[:120],
            allowed="starter, a folder with safetensors, or owner/name of the hub",
            remedy="Choose a model from the list",
        ) from error  # fmt: skip
    return folder if model_id and is_folder else None
