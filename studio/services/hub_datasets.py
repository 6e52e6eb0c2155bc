"""Data sets of the Hugging Face hub, before they are fetched: configurations, splits, first rows.

Owns: what an id may be, the access token for the child, and the two looks that the page offers.
The `datasets` library runs in a child process of its own (studio.backend.hub_rows), streams, and
keeps nothing in the workspace. Fetching rows to keep is services.datasets' business. Blocks;
`cancelled` ends the child.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.errors import HubError
from studio.hardware.platforms import make_folder, store_error
from studio.services import hub_token
from studio.services.import_process import CancelledFn, Job, Limits, run_job

HUB_PREFIX = "hf:"
PREVIEW_ROWS, MAX_PREVIEW_ROWS = 20, 200
LOOK_S = 120.0
MEMORY_BYTES = 16 * 2**30  # of a child that holds pyarrow; rows are streamed


@dataclass(frozen=True)
class HubLook:
    """What a data set offers.

    Attributes:
        configs: its configurations. config: the one whose splits are told.
        splits: {"name": ..., "rows": number or None where the hub does not say}.
    """

    hub_id: str
    configs: list[str]
    config: str
    splits: list[dict[str, Any]]


@dataclass(frozen=True)
class HubPreview:
    """The first rows of a split as short texts, and the names of its columns."""

    columns: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)


def hub_id_of(reference: str) -> str:
    """The id that a user typed, with or without hf:. Raises HubError."""
    hub_id = reference.strip().removeprefix(HUB_PREFIX).strip("/")
    if not hub_id or hub_id.count("/") > 1 or ".." in hub_id or ":" in hub_id:
        raise HubError(
            "This is no Hugging Face data set id", value=hub_id,
            allowed="owner/name, for example databricks/databricks-dolly-15k",
        )  # fmt: skip
    return hub_id


def hub_environment() -> dict[str, str]:
    """The hub token, for the child alone."""
    token = hub_token.read_token()
    return {} if token is None else {"HF_TOKEN": token}


class HubDatasets:
    """Looks at data sets of the hub.

    Args:
        workspace: its tmp folder is worked in.
    """

    def __init__(self, workspace: Path) -> None:
        self._tmp = workspace / "tmp"

    def look(
        self, hub_id: str, config: str | None = None, *, cancelled: CancelledFn | None = None
    ) -> HubLook:
        """Its configurations, and the splits of one (by default the first).

        Raises:
            HubError: it cannot be read, and why.
        """
        facts = self._ask(hub_id, {"task": "look", "config": config}, cancelled)
        return HubLook(hub_id_of(hub_id), facts["configs"], facts["config"], facts["splits"])

    def preview(
        self,
        hub_id: str,
        config: str | None = None,
        split: str = "train",
        *,
        rows: int = PREVIEW_ROWS,
        cancelled: CancelledFn | None = None,
    ) -> HubPreview:
        """The first rows of a split, streamed. Raises HubError."""
        if not 1 <= rows <= MAX_PREVIEW_ROWS:
            raise HubError(
                "The number of rows is out of range", value=rows, allowed=f"1 to {MAX_PREVIEW_ROWS}"
            )
        wanted = {"task": "preview", "config": config, "split": split, "max_rows": rows}
        facts = self._ask(hub_id, wanted, cancelled)
        return HubPreview(facts["columns"], facts["rows"])

    def _ask(
        self, hub_id: str, wanted: dict[str, Any], cancelled: CancelledFn | None
    ) -> dict[str, Any]:
        hub_id = hub_id_of(hub_id)
        make_folder(self._tmp)
        try:
            folder = tempfile.TemporaryDirectory(prefix="hub-", dir=self._tmp)
        except OSError as error:
            raise store_error(self._tmp, error) from error
        with folder as stage:
            job = Job(
                "studio.backend.hub_rows", Path(stage), hub_id, {"hub_id": hub_id, **wanted},
                Limits(memory_bytes=MEMORY_BYTES, wall_s=LOOK_S), hub_environment(),
            )  # fmt: skip
            return run_job(job, cancelled=cancelled)
