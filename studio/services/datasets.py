"""The data sets of a workspace: import, list, read, correct the mapping.

Owns workspace/datasets. A data set is a folder made in a staging area and renamed into place once
it is whole; its id comes from the content, so importing the same file twice gives the same data
set. A data set never changes once it is there, because saved runs refer to its rows: another
mapping makes another data set and hides the first. Parsing happens in a limited child process.
Thread safe; methods that import block.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from studio.core.errors import DatasetError, HubError, StoreError
from studio.core.formats import FORMATS
from studio.core.runs import read_json
from studio.hardware.platforms import make_folder, store_error, sync_folder, write_json
from studio.services.check_again import check_again, needs_checks
from studio.services.dataset_records import (
    DatasetInfo,
    dataset_id,
    ending,
    is_dataset_id,
    new_record,
)
from studio.services.hub_datasets import HUB_PREFIX, hub_environment, hub_id_of
from studio.services.import_process import (
    CancelledFn,
    Job,
    Limits,
    ProgressFn,
    clear_scraps,
    run_job,
    while_copying,
)
from studio.services.read_options import ReadOptions
from studio.services.settings import PROJECT_ROOT
from studio.services.source_file import is_address, local_path, shown_name, take

log = logging.getLogger(__name__)

SAMPLE_PREFIX = "sample:"
MAX_HUB_ROWS = 100_000
TWO_WORKERS_BYTES = 16 * 2**20  # starting the second process takes as long as reading some 4 MiB
_STAGED, _EDITS = "dataset.json", "edits.json"


class DatasetStore:
    """All data sets of one workspace.

    Args:
        workspace: its root folder; created by whoever starts the studio.
        presets_dir: holds data/samples.yaml and the sample files.
    """

    def __init__(self, workspace: Path, presets_dir: Path = PROJECT_ROOT / "presets") -> None:
        self._datasets = workspace / "datasets"
        self._tmp = workspace / "tmp"
        self._samples_dir = presets_dir / "data"

    # ---------------------------------------------------------------- reading

    def list(self) -> list[DatasetInfo]:
        """Data sets, newest first, without those replaced by another mapping."""
        found = []
        for folder in self._datasets.glob("*/") if self._datasets.is_dir() else ():
            record = read_json(folder / _STAGED)
            if record is None or record.get("superseded_by"):
                continue
            with contextlib.suppress(KeyError, TypeError):  # a damaged one is reported by get()
                found.append(DatasetInfo.from_record(record, folder))
        return sorted(found, key=lambda info: (info.created, info.id), reverse=True)

    def get(self, id: str) -> DatasetInfo:
        """One data set, also a replaced one: old runs still refer to it."""
        folder = self._datasets / id
        if not is_dataset_id(id) or not folder.is_dir():
            raise DatasetError(
                "There is no such data set in the workspace", value=id,
                remedy="Choose one from the list or import the file again",
            )  # fmt: skip
        try:
            return DatasetInfo.from_record(read_json(folder / _STAGED) or {}, folder)
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"The data set's {_STAGED} is damaged", value=id,
                remedy=f"Delete the folder {folder} and import the file again",
            ) from error  # fmt: skip

    def rows(self, id: str, start: int, count: int) -> list[dict[str, Any]]:
        """Up to `count` examples from number `start` (from 0), as they stand in data.jsonl."""
        info = self.get(id)
        start = max(0, start)
        every = int(info.offsets.get("every") or 1)
        marks = info.offsets.get("bytes") or [0]
        mark = min(start // every, len(marks) - 1)
        found: list[dict[str, Any]] = []
        try:
            with info.data_file.open("rb") as file:
                file.seek(marks[mark])
                for number, line in enumerate(file, mark * every):
                    if number >= start + count:
                        break
                    if number >= start:
                        found.append(json.loads(line))
        except OSError as error:
            raise store_error(info.data_file, error) from error
        return found

    def samples(self) -> list[dict[str, Any]]:
        """The sample sets: id, title, file, why, licence, format, path."""
        listing = self._samples_dir / "samples.yaml"
        try:
            entries = yaml.safe_load(listing.read_text(encoding="utf-8"))
        except OSError as error:
            raise store_error(listing, error) from error
        return [{**entry, "path": self._samples_dir / entry["file"]} for entry in entries]

    # ---------------------------------------------------------------- importing

    def import_file(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        format: str = "auto",
        mapping: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        sample: bool = False,
        progress: ProgressFn | None = None,
        cancelled: CancelledFn | None = None,
    ) -> DatasetInfo:
        """Import a file, a zip or a folder of them, or find that it has been imported.

        Args:
            name: what it is called; by default the file's name.
            options: how it is read where its content leaves a choice (read_options).
            progress: called with (share done or None, text).
            cancelled: asked now and then; True ends the import and keeps nothing.

        Raises:
            DatasetError: the file cannot be used; nothing is kept.
            StoreError: the workspace cannot hold it.
        """
        path = local_path(path)
        name = shown_name(path if name is None else Path(name))
        if format != "auto" and format not in FORMATS:
            raise DatasetError(
                "Unknown format", value=format, allowed=f"auto, {', '.join(FORMATS)}"
            )
        chosen = ReadOptions.of(options).to_record()
        with self._staging() as stage:
            told = while_copying(name, progress, cancelled)
            digest, size = take(path, stage / "source", name, told)
            id = dataset_id(digest, name, format, mapping, chosen)
            existing = self._existing(id)
            if existing is not None:
                return existing
            facts = run_job(
                _import_job(stage, name, size, format, mapping, chosen),
                progress=progress,
                cancelled=cancelled,
            )
            twin = self._twin(digest, facts, chosen)
            if twin is not None:
                return twin
            stored = f"source{ending(name)}"
            source = {"file": name, "bytes": size, "sha256": digest, "stored": stored,
                      **({"options": chosen} if chosen else {})}  # fmt: skip
            record = new_record(facts, id=id, name=name, source=source, sample=sample)
            return self._adopt(stage, record)

    def import_sample(
        self, id: str, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
    ) -> DatasetInfo:
        """Import one of the sample sets."""
        entries = {entry["id"]: entry for entry in self.samples()}
        if id not in entries:
            raise DatasetError("There is no such sample set", value=id, allowed=", ".join(entries))
        return self.import_file(
            entries[id]["path"], sample=True, progress=progress, cancelled=cancelled
        )

    def import_hub(
        self,
        hub_id: str,
        *,
        config: str | None = None,
        split: str = "train",
        max_rows: int = 10_000,
        progress: ProgressFn | None = None,
        cancelled: CancelledFn | None = None,
    ) -> DatasetInfo:
        """Fetch rows of a Hugging Face data set and import them.

        Raises:
            HubError: the id is wrong, access is refused or the network is not there.
        """
        hub_id = hub_id_of(hub_id)
        if not 1 <= max_rows <= MAX_HUB_ROWS:
            raise HubError(
                "The number of rows is out of range", value=max_rows, allowed=f"1 to {MAX_HUB_ROWS}"
            )
        with self._staging() as stage:
            job = Job(
                "studio.backend.hub_rows", stage, hub_id,
                {"hub_id": hub_id, "config": config, "split": split, "max_rows": max_rows},
                Limits(memory_bytes=16 * 2**30), hub_environment(),
            )  # fmt: skip
            run_job(job, progress=progress, cancelled=cancelled)
            name = "-".join(filter(None, (hub_id.replace("/", "-"), config, split))) + ".jsonl"
            return self.import_file(
                stage / "rows.jsonl", name=name, progress=progress, cancelled=cancelled
            )

    def remap(
        self,
        id: str,
        format: str,
        mapping: Mapping[str, str] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        progress: ProgressFn | None = None,
        cancelled: CancelledFn | None = None,
    ) -> DatasetInfo:
        """The same file read with another format or mapping, as a data set of its own.

        The old one leaves the list; runs that used it still find it. Coming back to an earlier
        mapping brings its data set back.
        """
        old = self.get(id)
        before = old.source.get("options") or {}
        chosen = before if options is None else ReadOptions.of(options).to_record()
        same_columns = format == old.format and (mapping is None or dict(mapping) == old.mapping)
        if same_columns and chosen == before:
            return old
        source = old.folder / old.source["stored"]
        new = self.import_file(
            source, name=old.name, format=format, mapping=mapping, options=chosen,
            sample=old.sample, progress=progress, cancelled=cancelled,
        )  # fmt: skip
        if new.id != old.id:
            self._mark_superseded(old.folder, new.id)
        self._mark_superseded(new.folder, None)
        return new

    def check_again(
        self, id: str, *, progress: ProgressFn | None = None, cancelled: CancelledFn | None = None
    ) -> DatasetInfo:
        """The data set with its checks, made now where it was imported before there were any."""
        info = self.get(id)
        if needs_checks(info):
            check_again(info, progress=progress, cancelled=cancelled)
        return self.get(id)

    def has(self, id: str) -> bool:
        """Whether the workspace holds a data set of this id."""
        return is_dataset_id(id) and (self._datasets / id).is_dir()

    def resolve(
        self,
        reference: str,
        *,
        format: str = "auto",
        mapping: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        progress: ProgressFn | None = None,
    ) -> DatasetInfo:
        """The data set that a configuration's `data.path` means, imported if need be.

        Args:
            reference: a data set's id, sample:<id> or a sample's id, hf:<id>, or a file.
            format, mapping, options: as in `import_file`; where they differ from what the data set
                has, it is read again with them. The split of a hub's data set is fetched.
        """
        options = ReadOptions.of(options).to_record()
        info = self._known(reference, options, progress)
        if info is None:
            return self.import_file(
                reference, format=format, mapping=mapping, options=options, progress=progress
            )
        if reference.startswith(HUB_PREFIX):
            options.pop("split", None)
        if format == "auto" and not mapping and not options:
            return info
        chosen = info.format if format == "auto" else format
        return self.remap(info.id, chosen, mapping, options=options or None, progress=progress)

    def _known(
        self, reference: str, options: Mapping[str, str], progress: ProgressFn | None
    ) -> DatasetInfo | None:
        """What a reference names, or None where it must be a file."""
        if reference.startswith(HUB_PREFIX) and not is_address(reference):
            split = options.get("split", "train")
            return self.import_hub(reference, split=split, progress=progress)
        if reference.startswith(SAMPLE_PREFIX):
            return self.import_sample(reference.removeprefix(SAMPLE_PREFIX), progress=progress)
        if self.has(reference):
            return self.get(reference)
        is_sample = reference in {entry["id"] for entry in self.samples()}
        if is_sample and not local_path(reference).exists():
            return self.import_sample(reference, progress=progress)
        return None

    # ---------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A private folder beside the data sets, gone at the end unless it was adopted."""
        make_folder(self._datasets)
        make_folder(self._tmp)
        try:
            stage = Path(tempfile.mkdtemp(prefix="import-", dir=self._tmp))
        except OSError as error:
            raise store_error(self._tmp, error) from error
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _existing(self, id: str) -> DatasetInfo | None:
        """The data set of this content, whatever its name; a replaced one is listed again."""
        for folder in self._datasets.glob(f"{id.partition('-')[0]}-*"):
            if read_json(folder / _STAGED) is not None:
                return self._shown(folder)
        return None

    def _shown(self, folder: Path) -> DatasetInfo:
        """An imported set is in the list again: as it was edited, where it was (services.edits)."""
        current = str((read_json(folder / _EDITS) or {}).get("current") or folder.name)
        if not self.has(current):
            current = folder.name
        self._mark_superseded(self._datasets / current, None)
        return self.get(current)

    def _twin(
        self, digest: str, facts: Mapping[str, Any], options: Mapping[str, str]
    ) -> DatasetInfo | None:
        """The data set that the same file gave before with the same format and mapping."""
        for file in self._datasets.glob(f"*/{_STAGED}"):
            record = read_json(file) or {}
            same = all(record.get(key) == facts[key] for key in ("format", "mapping"))
            if record.get("base") is not None:  # an edited one is never what a file gives
                continue
            source = record.get("source", {})
            same = same and (source.get("options") or {}) == options
            if same and source.get("sha256") == digest:
                return self._shown(file.parent)
        return None

    def _adopt(self, stage: Path, record: Mapping[str, Any]) -> DatasetInfo:
        """Make the staged folder a data set. Another import of the same file may have won."""
        folder = self._datasets / record["id"]
        try:
            (stage / "source").rename(stage / record["source"]["stored"])
            put_in_place(stage, folder, record)
        except OSError as error:
            if read_json(folder / _STAGED) is None:
                raise store_error(folder, error) from error
        return self.get(record["id"])

    def _mark_superseded(self, folder: Path, by: str | None) -> None:
        record = read_json(folder / _STAGED)
        if record is not None and record.get("superseded_by") != by:
            write_json(folder / _STAGED, {**record, "superseded_by": by})


def put_in_place(stage: Path, folder: Path, record: Mapping[str, Any]) -> None:
    """Make what a child has left in its folder a data set. Raises OSError."""
    clear_scraps(stage)
    write_json(stage / _STAGED, dict(record))
    os.rename(stage, folder)
    sync_folder(folder.parent)


def _import_job(
    stage: Path, name: str, size: int, format: str, mapping: Mapping[str, str] | None,
    options: Mapping[str, str],
) -> Job:  # fmt: skip
    workers = 2 if size >= TWO_WORKERS_BYTES and (os.cpu_count() or 1) > 1 else 1
    request = {"source": str(stage / "source"), "format": format, "mapping": dict(mapping or {}),
               "options": dict(options), "workers": workers}  # fmt: skip
    return Job("studio.services.import_child", stage, name, request, Limits.for_file(size))
