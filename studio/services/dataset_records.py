"""What the workspace keeps about a data set: dataset.json as a value.

Owns the schema of dataset.json, names and ids. Pure: reads and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.split import num_held_out

SCHEMA_VERSION = 1
DEFAULT_VAL_FRAC = 0.1
_ID = re.compile(r"^[0-9a-f]{12}-[a-z0-9][a-z0-9-]{0,59}$")


def is_dataset_id(text: str) -> bool:
    """Whether text may name a data set's folder."""
    return bool(_ID.match(text))


def slug(name: str) -> str:
    """A name as part of a folder's name."""
    stem = re.sub(r"(\.(csv|tsv|tab|jsonl?|ndjson|parquet|txt|md|gz))+$", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:48].strip("-") or "data"


def dataset_id(
    digest: str, name: str, format: str, mapping: Mapping[str, str] | None,
    options: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """The content's id; another one where format, mapping or reading were chosen by hand."""
    if format != "auto" or mapping or options:
        parts = [digest, format, dict(mapping or {}), *([dict(options)] if options else [])]
        chosen = json.dumps(parts, sort_keys=True)
        digest = hashlib.sha256(chosen.encode()).hexdigest()
    return f"{digest[:12]}-{slug(name)}"


def ending(name: str) -> str:
    """The file's extension as part of a file name of ours: short, plain characters only."""
    found = "".join(Path(name.lower()).suffixes[-2:])
    return found if len(found) <= 16 and found.replace(".", "").isalnum() else ""


@dataclass(frozen=True)
class DatasetInfo:
    """One imported data set.

    Attributes:
        rows, used, left_out: of the source; used + left_out = rows.
        problems: the first rows left out: line, row, reason, remedy, count (rows of that reason).
        problem_reasons: every reason with its number of rows; the counts add up to left_out.
        reasons: why this format was detected. notes: what was guessed while reading.
        preview: the first source rows as short texts.
        files: of a zip or folder: {"name", "first_row"} of each file; lines are those of the file.
        fingerprint: sha256 of data.jsonl; the same fingerprint is the same training data.
        offsets: {"every": n, "bytes": [...]}: where each n-th example begins.
        checks: what the checks found, see services.findings.summary.
        base, steps: of an edited set: the id of the imported one, and what was changed.
        held_out: what is held out by choice: {"rows": positions in data.jsonl}, and of another
            data set its "dataset", "fingerprint", "name" and "after", the number behind which its
            rows are numbered; None: a share drawn by chance.
    """

    id: str
    name: str
    format: str
    mapping: dict[str, str]
    columns: list[str]
    rows: int
    used: int
    left_out: int
    problems: list[dict[str, Any]]
    fingerprint: str
    folder: Path
    sample: bool
    created: str
    system_prompt_share: float
    val_frac_default: float = DEFAULT_VAL_FRAC
    source: dict[str, Any] = field(default_factory=dict)
    problem_reasons: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    preview: list[dict[str, str]] = field(default_factory=list)
    offsets: dict[str, Any] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    base: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Any] | None = None

    def num_held_out(self, val_frac: float) -> int:
        """How many of its rows are held out: those of choice, else the share."""
        if self.held_out is None:
            return num_held_out(self.used, val_frac)
        return len(self.held_out.get("rows") or ())

    def file_of(self, i: int) -> str | None:
        """Which file of a zip or folder row `i` of the source comes from; None for one file."""
        at = bisect_right([file["first_row"] for file in self.files], i)
        return str(self.files[at - 1]["name"]) if at else None

    @property
    def data_file(self) -> Path:
        """The normalised examples, one JSON object a line."""
        return self.folder / "data.jsonl"

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> DatasetInfo:
        """From dataset.json. Raises KeyError or TypeError where it is not one."""
        counts = record["counts"]
        return cls(
            id=folder.name, name=record["name"], format=record["format"],
            mapping=dict(record["mapping"]), columns=list(record["columns"]),
            rows=counts["rows"], used=counts["used"], left_out=counts["left_out"],
            problems=list(record["problems"]), fingerprint=record["fingerprint"], folder=folder,
            sample=bool(record["sample"]), created=record["created"],
            system_prompt_share=record["system_prompt_share"],
            val_frac_default=record["val_frac_default"], source=dict(record["source"]),
            problem_reasons=dict(record["problem_reasons"]), reasons=list(record["reasons"]),
            notes=list(record["notes"]), preview=list(record["preview"]),
            offsets=dict(record["offsets"]), files=list(record.get("files") or []),
            checks=list(record.get("checks") or []),
            base=record.get("base"), steps=list(record.get("steps") or []),
            held_out=record.get("held_out"),
        )  # fmt: skip


def new_record(
    facts: Mapping[str, Any], *, id: str, name: str, source: Mapping[str, Any], sample: bool
) -> dict[str, Any]:
    """dataset.json for the facts that an import brought back."""
    return {
        "schema": SCHEMA_VERSION,
        "id": id,
        "name": name,
        "source": dict(source),
        "sample": sample,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "val_frac_default": DEFAULT_VAL_FRAC,
        "superseded_by": None,
        **facts,
    }
