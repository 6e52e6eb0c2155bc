"""Rows from a zip of data files or of texts.

Owns: what an archive may be (how many members, how much they unpack to, which names) and which of
its members are read: data files of one kind behind each other, or each text file as one document.
Members are read one after the other and never written out, except a Parquet file, which has to be
read from its end. Nothing is extracted under a name of the archive. Runs in the import child.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from studio.core.errors import DatasetError
from studio.core.examples import shown
from studio.services.json_documents import SPLIT_NAMES
from studio.services.json_rows import NumberedRow
from studio.services.read_options import DETECT
from studio.services.source_bytes import CHUNK_BYTES, PARQUET_MAGIC, Source, file_error
from studio.services.source_coding import text_coding
from studio.services.table_rows import read_document

MAX_MEMBERS = 10_000
MAX_RATIO = 200  # of a member above 1 MiB; honest text packs 3 to 20 times
RATIO_FROM_BYTES = 1 << 20
MAX_NAME_CHARS = 500
MAX_NOTES = 5
KINDS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".parquet": "parquet", ".txt": "text", ".md": "text", ".text": "text",
    ".markdown": "text",
}  # fmt: skip
NESTED = (
    ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".gzip",
)  # fmt: skip
_ABOUT = re.compile(r"^(readme|licen[cs]e|notice|changelog|citation|dataset_infos?)\b", re.I)
_SPLIT = re.compile(r"(?:^|[/._-])(" + "|".join(SPLIT_NAMES) + r")(?=[/._-])", re.I)
_END = struct.Struct("<4s4H2LH")  # end of the central directory
_REMEDY = "Make the zip again, or unpack it and choose a file"


class MemberSource(Source):
    """One member, read like a file of its own within the budget of the whole archive."""

    is_member = True

    def __init__(self, outer: Source, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.path = outer.path
        self.name = f"{outer.name} > {shown(info.filename)}"
        self.max_bytes = outer.max_bytes
        self.options = replace(outer.options, split=None)  # the split was chosen
        self.done_bytes = 0
        self.size_bytes = info.file_size
        self.is_gzip = False
        self._raw: BinaryIO | None = None
        self._archive, self._info = archive, info

    def open(self) -> io.BufferedReader:
        """Its bytes from the start."""
        with self._told():
            stream = self._archive.open(self._info)
        return io.BufferedReader(_Member(stream, self), CHUNK_BYTES)

    def written_to(self, path: Path) -> None:
        """A copy of it, for readers that need to jump."""
        with self.open() as stream, path.open("wb") as target:
            shutil.copyfileobj(stream, target, CHUNK_BYTES)
        self.path = path

    def damaged(self, error: Exception) -> DatasetError:
        """What is wrong with it, whatever the library said."""
        return file_error(
            self.name, "the zip data is damaged or of an unknown kind", remedy=_REMEDY
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise self.damaged(error) from error


_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class _Member(io.RawIOBase):
    """Bytes of a member; the library checks their sum and reads no more than was stated."""

    def __init__(self, inner: Any, source: MemberSource) -> None:
        self._inner, self._source = inner, source

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except _DAMAGED as error:
            raise self._source.damaged(error) from error
        buffer[: len(data)] = data
        return len(data)


class Archive:
    """A zip file with the members that are read.

    Attributes:
        members: those that are read, in the order of their names.
        kind: csv, tsv, json, parquet or text.
        notes: what was chosen and left, for the user.
        files: which rows come from which member, filled while they are read.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.notes: list[str] = []
        self.files: list[dict[str, Any]] = []
        infos = self._checked()
        self.kind, self.members = self._chosen(infos)

    def rows(self, open_member: Callable[[Source], Any]) -> Iterator[NumberedRow]:
        """The rows of all members, one behind the other; lines are those of the member.

        Args:
            open_member: makes the stream of rows of a member.
        """
        counted = noted = 0
        said: Counter[str] = Counter()
        scratch = self._source.path.parent / "member"
        for info in self.members:
            member = MemberSource(self._source, self._archive, info)
            name = shown(info.filename)
            self.files.append({"name": name, "first_row": counted + 1})
            if self.kind == "text" and self._source.options.text_unit in (DETECT, "document"):
                counted += 1
                yield _document(member, name)
            elif info.file_size:
                with member.open() as stream:
                    is_parquet = stream.read(4) == PARQUET_MAGIC
                if is_parquet:
                    member.written_to(scratch)
                rows = open_member(member)
                for numbered in rows.open():
                    counted += 1
                    yield numbered
                for note in rows.notes:
                    said[note] += 1
                    if said[note] == 1 and noted < MAX_NOTES:
                        noted += 1
                        self.notes.append(f"{name}: {note}")
                scratch.unlink(missing_ok=True)
            self._source.done_bytes += info.compress_size

    def _checked(self) -> list[zipfile.ZipInfo]:
        """The members, or DatasetError where an archive like this is not read."""
        source, name = self._source, self._source.name
        count = _stated_members(source)
        if count > MAX_MEMBERS:
            raise file_error(
                name, f"the zip holds {count:,} files", allowed=f"{MAX_MEMBERS:,}",
                remedy="Join the files, or split the zip",
            )  # fmt: skip
        try:
            self._archive = zipfile.ZipFile(source.path)
            infos = self._archive.infolist()
        except _DAMAGED as error:
            raise file_error(
                name, "the zip archive is damaged or incomplete", remedy=_REMEDY
            ) from error
        _refuse_programs(name, [info.filename for info in infos])
        files = [info for info in infos if not info.is_dir()]
        seen: set[str] = set()
        for info in files:
            _require_plain(name, info)
            if info.filename in seen:
                raise file_error(
                    name, "two files of the zip have the same name", value=shown(info.filename),
                    remedy=_REMEDY,
                )  # fmt: skip
            seen.add(info.filename)
        if sum(info.file_size for info in files) > source.max_bytes:
            raise source.too_big()
        return files

    def _chosen(self, infos: list[zipfile.ZipInfo]) -> tuple[str, list[zipfile.ZipInfo]]:
        name = self._source.name
        by_kind: dict[str, list[zipfile.ZipInfo]] = {}
        for info in infos:
            path = PurePosixPath(info.filename)
            if not _is_hidden(path) and (kind := KINDS.get(path.suffix.lower())) is not None:
                by_kind.setdefault(kind, []).append(info)
        for kind in ("text", "json"):  # what is said about the data is no data, where there is any
            about = [
                info for info in by_kind.get(kind, ())
                if _ABOUT.match(PurePosixPath(info.filename).name)
            ]  # fmt: skip
            if about and len(about) < sum(map(len, by_kind.values())):
                by_kind[kind] = [i for i in by_kind[kind] if i not in about]
        by_kind = {kind: found for kind, found in by_kind.items() if found}
        if len(by_kind) > 1:
            by_kind.pop("text", None)
        if not by_kind:
            raise file_error(
                name, "the zip holds no data file", value=", ".join(_names(infos)[:5]) or "nothing",
                allowed=", ".join(KINDS), remedy="Choose a zip of data files or of texts",
            )  # fmt: skip
        if len(by_kind) > 1:
            raise file_error(
                name, "the zip holds data files of several kinds", value=", ".join(sorted(by_kind)),
                remedy="Zip the files of one kind alone",
            )  # fmt: skip
        kind, found = next(iter(by_kind.items()))
        found.sort(key=lambda info: info.filename)
        found = self._of_split(kind, found)
        left = [info for info in infos if info not in found]
        what = "texts, each of them one document" if kind == "text" else f"{kind} files"
        self.notes.append(f"{len(found):,} {what}" if len(found) > 1 else
                          f"the rows are those of {_names(found)[0]!r}")  # fmt: skip
        if left:
            more = f" and {len(left) - 5:,} more" if len(left) > 5 else ""
            self.notes.append(f"not used: {', '.join(_names(left)[:5])}{more}")
        return kind, found

    def _of_split(self, kind: str, found: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
        """The members of one split where their names say that there are several: rows to train
        on and rows to test on must not be mixed by accident."""
        splits: dict[str, list[zipfile.ZipInfo]] = {}
        for info in found:
            match = _SPLIT.search(info.filename) if kind != "text" else None
            splits.setdefault(match.group(1).lower() if match else "", []).append(info)
        wanted = self._source.options.split
        if wanted is not None:
            if wanted.lower() not in splits:
                raise file_error(
                    self._source.name, "there is no such split in it", value=wanted,
                    allowed=", ".join(filter(None, splits)) or "none: it has no splits",
                    remedy="Choose one of its splits",
                )  # fmt: skip
            return splits[wanted.lower()]
        named = [name for name in SPLIT_NAMES if name in splits]
        return splits[named[0]] if len(named) > 1 else found


def _document(member: MemberSource, name: str) -> NumberedRow:
    """A text file as one row."""
    if not member.size_bytes or not member.head().strip():
        return next(read_document(lambda: io.StringIO("")))
    coding = text_coding(member)
    line, row = next(read_document(lambda: member.open_text(coding)))
    return line, {"file": name, **row} if isinstance(row, dict) else row


def _stated_members(source: Source) -> int:
    """How many files the archive says it holds, before its list is read into memory."""
    with source.path.open("rb") as file:
        file.seek(max(0, source.size_bytes - 65_557))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size:
        raise file_error(source.name, "the zip archive is damaged or incomplete", remedy=_REMEDY)
    return int(_END.unpack_from(tail, at)[4])


def _refuse_programs(name: str, names: list[str]) -> None:
    """Zip files that are something else: documents, models, programs."""
    parts = {PurePosixPath(found).parts[0] for found in names if found.strip("/")}
    for mark, kind, remedy in (
        ("xl", "an Excel file", "Save the sheet as CSV"),
        ("word", "a Word document", "Save it as plain text"),
        ("ppt", "a PowerPoint file", "Copy its text into a TXT file"),
        ("META-INF", "a program or a book", "Copy its text into TXT files"),
    ):
        if mark in parts and ("[Content_Types].xml" in parts or mark == "META-INF"):
            raise file_error(name, f"this is {kind}, not a data file", remedy=remedy)
    if "[Content_Types].xml" in parts or {"content.xml", "mimetype"} <= parts:
        raise file_error(
            name, "this is an Office file, not a data file",
            remedy="Save the sheet as CSV or the text as TXT",
        )  # fmt: skip
    if any(found.endswith("data.pkl") for found in names):
        raise file_error(
            name, "this is a PyTorch file, not a data file", remedy="Choose a data file"
        )


def _require_plain(name: str, info: zipfile.ZipInfo) -> None:
    """Raise DatasetError for a member that no honest archive of data has."""
    path, reason = info.filename, None
    mode = info.external_attr >> 16
    if path.startswith(("/", "\\")) or "\\" in path or re.match(r"[A-Za-z]:", path) or ".." in \
            PurePosixPath(path).parts or len(path) > MAX_NAME_CHARS:  # fmt: skip
        reason = "a file of the zip has a path that leads out of it"
    elif stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        reason = "a file of the zip is a link or a device"
    elif info.flag_bits & 1:
        reason = "the zip is encrypted"
    elif path.lower().endswith(NESTED):
        reason = "the zip holds another archive"
    elif info.file_size > max(RATIO_FROM_BYTES, MAX_RATIO * info.compress_size):
        reason = f"a file of the zip unpacks to more than {MAX_RATIO} times its size"
    if reason is not None:
        raise file_error(name, reason, value=shown(path)[:200], remedy=_REMEDY)


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _names(infos: list[zipfile.ZipInfo]) -> list[str]:
    return [shown(info.filename)[:80] for info in infos]
