"""How a data file is read where its content leaves a choice.

Owns: the choices (which split, what is one row of a plain text) and their names in a record. They
are part of a data set's identity: the same file read otherwise is another data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.core.errors import DatasetError

DETECT = "detect"
TEXT_UNITS = (DETECT, "paragraph", "line", "document")


@dataclass(frozen=True)
class ReadOptions:
    """What was chosen.

    Attributes:
        split: which of a file's splits to read; None: train, or the first usual one there is.
        text_unit: what is one row of a plain text.
    """

    split: str | None = None
    text_unit: str = DETECT

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> ReadOptions:
        """From a record or from keyword-like choices. Raises DatasetError."""
        found = dict(record or {})
        unknown = [key for key in found if key not in ("split", "text_unit")]
        if unknown:
            raise DatasetError(
                "There is no such choice of how to read a file", value=unknown[0],
                allowed="split, text_unit",
            )  # fmt: skip
        unit = found.get("text_unit") or DETECT
        if unit not in TEXT_UNITS:
            raise DatasetError(
                "Unknown unit of a plain text", value=str(unit), allowed=", ".join(TEXT_UNITS)
            )
        return cls(str(found.get("split") or "").strip() or None, unit)

    def to_record(self) -> dict[str, str]:
        """Only what differs from the defaults."""
        chosen = {} if self.split is None else {"split": self.split}
        return chosen if self.text_unit == DETECT else {**chosen, "text_unit": self.text_unit}
