"""A run as a zip, and a zip from elsewhere as a read-only run.

What comes in is hostile until checked: names stay inside the folder, no links, a budget on count
and decoded bytes, weights as safetensors only, no configuration that asks for foreign code.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from studio.core.errors import BusyError, ModelError, StoreError
from studio.core.runs import RunPaths, is_run_id, new_run_id, read_json
from studio.core.safetensors_header import read_header
from studio.hardware.platforms import make_folder, store_error, sync_folder, write_json

MAX_FILES, MAX_TOTAL_BYTES = 500, 4 << 30
MAX_TEXT_BYTES = 256 << 20  # metrics and log of a very long run
MAX_JSON_BYTES = 8 << 20  # JSON takes twenty times its size to read
MAX_TOKENIZER_BYTES = 64 << 20  # never read, only handed on
_MAX_DIRECTORY_BYTES = 1 << 20  # the zip's own list of its files
_STALE_S, _EMPTY_S = 3600.0, 60.0
_RUN_FILES = (
    "run.json", "meta.json", "config.yaml", "state.json", "exit.json", "metrics.jsonl",
    "samples.jsonl", "log.txt",
)  # fmt: skip
_SUFFIXES = (".json", ".jsonl", ".yaml", ".txt", ".md", ".safetensors", ".jinja", ".model")
_ADAPTER_FILE = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # names of Windows' devices
_EARLIER_EXIT = re.compile(r"^exit-\d{1,6}\.json$")
_FOREIGN_CODE_KEYS = ("auto_map", "trust_remote_code")


# What the zip library raises for damage, depending on where it is.
_NO_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError,
    UnicodeError, struct.error,
)  # fmt: skip


def zip_run(paths: RunPaths, tmp: Path) -> Path:
    """Everything of the run but checkpoints, locks and commands."""
    files = [paths.root / name for name in _RUN_FILES]
    files += sorted(p for p in paths.root.glob("exit-*.json") if _EARLIER_EXIT.match(p.name))
    files += sorted(paths.adapter.glob("*")) if paths.adapter.is_dir() else []
    return _write_zip(tmp, f"{paths.id}-run.zip", paths, paths.root.parent, files)


def zip_adapter(paths: RunPaths, tmp: Path) -> Path:
    """The kept adapter, as a folder that plain peft loads."""
    files = sorted(paths.adapter.glob("*")) if paths.adapter.is_dir() else []
    if not any(file.suffix == ".safetensors" for file in files):
        raise StoreError(
            "The run has no adapter yet", value=paths.id, remedy="Wait for it to end or be paused"
        )
    return _write_zip(tmp, f"{paths.id}-adapter.zip", paths, paths.root, files)


def _write_zip(tmp: Path, name: str, paths: RunPaths, base: Path, files: list[Path]) -> Path:
    make_folder(tmp)
    _sweep(tmp)
    before = _identity(paths)
    # A folder of its own: whoever handed a zip out removes it, and must not remove another's.
    target = make_folder(tmp / f"zip-{secrets.token_hex(6)}") / name
    staged = target.with_name(f".{name}")
    try:
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as bundle:
            for file in files:
                if file.is_file() and not file.is_symlink():
                    # Weights do not compress: storing them is ten times faster.
                    method = zipfile.ZIP_STORED if file.suffix == ".safetensors" else None
                    bundle.write(file, file.relative_to(base).as_posix(), compress_type=method)
        os.replace(staged, target)
    except OSError as error:
        shutil.rmtree(target.parent, ignore_errors=True)
        _refuse_changed(paths, before)  # the likelier reason why a file is not there
        raise store_error(target, error) from error
    try:
        _refuse_changed(paths, before)
    except BusyError:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise
    return target


def _identity(paths: RunPaths) -> tuple[int | None, ...]:
    """Changes when the run is moved away, or another adapter comes in the place of its own."""
    return tuple(p.stat().st_ino if p.is_dir() else None for p in (paths.root, paths.adapter))


def _refuse_changed(paths: RunPaths, before: tuple[int | None, ...]) -> None:
    """A zip of half a run, or of two adapters, must not pass for the run."""
    if _identity(paths) != before:
        what = "got another adapter" if paths.root.is_dir() else "was deleted"
        raise BusyError(f"The run {what} while it was packed", value=paths.id, remedy="Try again")


def _sweep(tmp: Path) -> None:
    """Remove zips that were handed out long ago, and the folders of those already removed.

    Another download may remove its own meanwhile.
    """
    for folder in tmp.glob("zip-*"):
        with contextlib.suppress(FileNotFoundError):
            age_s = time.time() - folder.stat().st_mtime
            if age_s > _STALE_S or (age_s > _EMPTY_S and not any(folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)


def open_zip(path: Path, runs: Path, tmp: Path) -> str:
    """Check and unpack a run zip into `runs`, marked read-only. Returns the id it got.

    Raises:
        StoreError: the file is no run zip, or holds something that may not come in.
    """
    staged = make_folder(tmp / f"import-{secrets.token_hex(6)}")
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as bundle:
            prefix = _check_names(bundle)
            _extract(bundle, prefix, staged)
        run = _check_content(staged)
        run_id = prefix.rstrip("/")
        if not is_run_id(run_id) or (runs / run_id).exists():
            run_id = new_run_id()
        _neutralise(staged, run)
        write_json(
            staged / "imported.json",
            {"file": path.name[:200], "time": datetime.now(UTC).isoformat(timespec="seconds")},
        )
        os.rename(staged, runs / run_id)
        sync_folder(runs)
    except _NO_ZIP as error:
        raise _refusal(f"it is not a zip that can be read ({str(error)[:200]})") from error
    except OSError as error:
        raise store_error(path, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return run_id


def _check_directory(path: Path) -> None:
    """Refuse a zip whose list of files would fill the memory before anybody could count them."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise zipfile.BadZipFile("it has no list of its files")
    count, directory_bytes = struct.unpack("<HI", tail[at + 10 : at + 16])
    if count == 0xFFFF or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _refusal(f"it lists too many files; a run has at most {MAX_FILES}")


def _check_names(bundle: zipfile.ZipFile) -> str:
    """The one folder that holds the run ("id/", or "" where run.json lies at the top)."""
    entries = [entry for entry in bundle.infolist() if not entry.is_dir()]
    if len(bundle.infolist()) > MAX_FILES:
        raise _refusal(f"it holds {len(bundle.infolist())} files; a run has at most {MAX_FILES}")
    if sum(entry.file_size for entry in entries) > MAX_TOTAL_BYTES:
        raise _refusal(f"it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB")
    seen = set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        escapes = entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename
        if escapes or ":" in entry.filename or "\0" in entry.filename or len(parts) > 3:
            raise _refusal(f"the name {entry.filename[:80]!r} leads out of the run's folder")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _refusal(f"{entry.filename[:80]!r} is a link")
        if entry.flag_bits & 0x1:
            raise _refusal(f"{entry.filename[:80]!r} is encrypted")
        if entry.filename.lower() in seen:
            raise _refusal(f"{entry.filename[:80]!r} is there twice")
        seen.add(entry.filename.lower())
    tops = [entry.filename for entry in entries if entry.filename.endswith("run.json")]
    run_files = [name for name in tops if name == "run.json" or name.endswith("/run.json")]
    if len(run_files) != 1:
        raise _refusal("it holds no run.json, so it is not a run of this studio")
    return run_files[0].removesuffix("run.json")


def _extract(bundle: zipfile.ZipFile, prefix: str, staged: Path) -> None:
    budget_bytes = MAX_TOTAL_BYTES
    for entry in bundle.infolist():
        if entry.is_dir():
            continue
        name = entry.filename.removeprefix(prefix)
        if not entry.filename.startswith(prefix) or not _is_allowed(name):
            raise _refusal(
                f"{entry.filename[:80]!r} is no part of a run (weights come as safetensors only)"
            )
        target = staged / name
        make_folder(target.parent)
        limit = min(budget_bytes, _limit_bytes(name))
        written = 0
        with bundle.open(entry) as source, target.open("xb") as sink:
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > limit:
                    raise _refusal(f"{name[:80]!r} is too large when unpacked")
                sink.write(chunk)
        budget_bytes -= written


def _limit_bytes(name: str) -> int:
    """What a file may unpack to."""
    if name.endswith(".safetensors"):
        return MAX_TOTAL_BYTES
    if name == "adapter/tokenizer.json":
        return MAX_TOKENIZER_BYTES
    return MAX_TEXT_BYTES if name.endswith((".jsonl", ".txt")) else MAX_JSON_BYTES


def _is_allowed(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder == "":
        return file in _RUN_FILES or bool(_EARLIER_EXIT.match(file))
    is_plain = _ADAPTER_FILE.fullmatch(file) and not _RESERVED.fullmatch(file.partition(".")[0])
    return folder == "adapter" and bool(is_plain) and Path(file).suffix in _SUFFIXES


def _check_content(staged: Path) -> dict[str, Any]:
    for file in sorted(staged.rglob("*")):
        if file.suffix == ".safetensors":
            try:
                read_header(file)
            except ModelError as error:
                raise _refusal(str(error)) from error
        if file.suffix == ".json" and file.name != "tokenizer.json":
            _check_json(file)
    run = read_json(staged / "run.json")
    if run is None or not isinstance(run.get("config"), dict):
        raise _refusal("its run.json cannot be read")
    return run


def _check_json(file: Path) -> None:
    try:
        value = json.loads(file.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"{file.name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise _refusal(f"{file.name} is no JSON object")
    for key, held in _walk(value):
        if key in _FOREIGN_CODE_KEYS and held not in (None, False, {}):
            raise _refusal(f"{file.name} asks for foreign code ({key})")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _neutralise(staged: Path, run: dict[str, Any]) -> None:
    """Paths of another machine mean nothing here, and a sender must not choose ours."""
    for section in ("model", "dataset"):
        if isinstance(run.get(section), dict):
            run[section] = {**run[section], "path": None}
    run.pop("request_id", None)
    run.pop("foreground", None)
    write_json(staged / "run.json", run)


def _refusal(reason: str) -> StoreError:
    return StoreError(
        f"The zip was not opened: {reason}", remedy="Ask for a zip made by `Download run`"
    )
