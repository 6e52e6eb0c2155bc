"""The mapping that a user chose for columns like these before: asked when a file is imported.

A mapping is saved with its data set, so nothing else is kept: the newest data set whose file had
the same columns and whose reading was corrected by hand tells how the next one is read. Pure but
for the store's list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.services.dataset_records import DatasetInfo

if TYPE_CHECKING:
    from studio.services.datasets import DatasetStore


def is_by_hand(info: DatasetInfo) -> bool:
    """Whether a data set was read otherwise than detected: its id then is not its file's."""
    digest = str(info.source.get("sha256") or "")
    return info.base is None and bool(digest) and not info.id.startswith(digest[:12])


def known_mapping(store: DatasetStore, info: DatasetInfo) -> DatasetInfo | None:
    """The data set whose mapping fits a freshly imported one; None where none was chosen by hand,
    or the file's own reading is the same."""
    if not info.columns or is_by_hand(info) or info.base is not None:
        return None
    for other in store.list():
        origin = store.get(other.base) if other.base else other
        if origin.id == info.id or sorted(origin.columns) != sorted(info.columns):
            continue
        if not is_by_hand(origin):
            continue
        same = (origin.format, origin.mapping) == (info.format, info.mapping)
        return None if same else origin
    return None
