"""What a user should know about rows of a format before they are learned.

Owns: the notes that follow from the format itself and from a sample of its rows. Pure; what was
guessed while reading the file is noted by the readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studio.core.format_cells import ColumnMap, Row
from studio.core.turns import CALL_ROLES, REASONING_KEYS, SPEAKER_KEYS

_BY_FORMAT = {
    "preference": (
        "the chosen answers are learned; the rejected ones stay in the source file and are not "
        "learned",
    ),
    "kto": (
        "answers labelled true are learned; rows labelled false are left out",
    ),
}  # fmt: skip


def notes_of(format: str, mapping: ColumnMap, rows: Sequence[Row]) -> list[str]:
    """Notes for the data set, each a sentence without a full stop.

    Args:
        rows: some of its source rows.
    """
    notes = list(_BY_FORMAT.get(format, ()))
    if format == "classification":
        column = mapping["label"]
        labels = {row[column] for row in rows if _is_number(row.get(column))}
        if labels:
            shown = ", ".join(str(label) for label in sorted(labels, key=str)[:4])
            notes.append(
                f"the labels are numbers ({shown}{', ...' if len(labels) > 4 else ''}); what they "
                "stand for is not in the rows, so the model learns to answer with the numbers"
            )
    turns = list(_turns(mapping, rows))
    if "tools" in mapping or any(_calls(turn) for turn in turns):
        notes.append(
            "rows use tools: a model whose chat template cannot write tools leaves them out, with "
            "that reason"
        )
    if any(turn.get("weight") == 0 for turn in turns):
        notes.append("answers with weight 0 are read by the model and not learned")
    key = next((k for k in REASONING_KEYS if any(turn.get(k) for turn in turns)), None)
    if key is not None:
        notes.append(f"the reasoning beside the answers ({key}) is not learned")
    return notes


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().isdigit()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _turns(mapping: ColumnMap, rows: Sequence[Row]) -> Iterator[Mapping[str, Any]]:
    """The turns of the rows' conversations, as far as they stand there as lists."""
    for row in rows:
        for column in mapping.values():
            value = row.get(column)
            for turn in value if isinstance(value, (list, tuple)) else ():
                if isinstance(turn, Mapping):
                    yield turn


def _calls(turn: Mapping[str, Any]) -> bool:
    speaker = next((turn[key] for key in SPEAKER_KEYS if turn.get(key)), "")
    return bool(turn.get("tool_calls") or turn.get("function_call")) or speaker in CALL_ROLES
