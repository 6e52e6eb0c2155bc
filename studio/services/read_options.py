"""How a data file is read where its content leaves a choice.

Owns: the choices (which split, what is one row of a plain text, in which encoding its text is
written) and their names in a record. They are part of a data set's identity: the same file read
otherwise is another data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.core.errors import DatasetError

DETECT = "detect"
TEXT_UNITS = (DETECT, "paragraph", "line", "document")
# By their name here: what people call them. Python knows each under its own name, too.
ENCODINGS = {
    "utf-8": "UTF-8", "utf-16": "UTF-16", "windows-1252": "Windows-1252, Western European",
    "latin-1": "Latin-1 (ISO 8859-1)", "iso8859-15": "Latin-9 (ISO 8859-15)",
    "mac-roman": "Mac Roman", "cp850": "DOS Western European (850)",
    "windows-1250": "Windows-1250, Central European", "iso8859-2": "Latin-2 (ISO 8859-2)",
    "windows-1251": "Windows-1251, Cyrillic", "koi8-r": "KOI8-R, Cyrillic",
    "windows-1253": "Windows-1253, Greek", "windows-1254": "Windows-1254, Turkish",
    "windows-1255": "Windows-1255, Hebrew", "windows-1256": "Windows-1256, Arabic",
    "windows-1257": "Windows-1257, Baltic", "windows-1258": "Windows-1258, Vietnamese",
    "cp874": "Windows-874, Thai", "shift-jis": "Shift-JIS, Japanese", "euc-jp": "EUC-JP, Japanese",
    "gb18030": "GB 18030 (GBK), Chinese", "big5": "Big5, Chinese", "euc-kr": "EUC-KR, Korean",
}  # fmt: skip
_CHOICES = ("split", "text_unit", "encoding")


@dataclass(frozen=True)
class ReadOptions:
    """What was chosen.

    Attributes:
        split: which of a file's splits to read; None: train, or the first usual one there is.
        text_unit: what is one row of a plain text.
        encoding: of its text, a key of ENCODINGS; DETECT: told from the bytes.
    """

    split: str | None = None
    text_unit: str = DETECT
    encoding: str = DETECT

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> ReadOptions:
        """From a record or from keyword-like choices. Raises DatasetError."""
        found = dict(record or {})
        unknown = [key for key in found if key not in _CHOICES]
        if unknown:
            raise DatasetError(
                "There is no such choice of how to read a file", value=unknown[0],
                allowed=", ".join(_CHOICES),
            )  # fmt: skip
        unit = found.get("text_unit") or DETECT
        if unit not in TEXT_UNITS:
            raise DatasetError(
                "Unknown unit of a plain text", value=str(unit), allowed=", ".join(TEXT_UNITS)
            )
        encoding = found.get("encoding") or DETECT
        if encoding not in (DETECT, *ENCODINGS):
            raise DatasetError(
                "Unknown encoding", value=str(encoding)[:60],
                allowed=", ".join((DETECT, *ENCODINGS)),
            )  # fmt: skip
        return cls(str(found.get("split") or "").strip() or None, unit, encoding)

    def to_record(self) -> dict[str, str]:
        """Only what differs from the defaults."""
        chosen = {"split": self.split, "text_unit": self.text_unit, "encoding": self.encoding}
        return {key: value for key, value in chosen.items() if value not in (None, DETECT)}
