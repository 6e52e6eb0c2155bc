"""Fetches rows of a Hugging Face data set, or tells what it holds, in a process of its own.

    python -m studio.backend.hub_rows REQUEST.json

Owns: the call to the `datasets` library and the sentences for its failures. Streams, so a data set
of any size costs only the rows asked for. Never runs code of the data set (the library cannot any
more). Leaves result.json, and rows.jsonl where rows are to be kept, in the request's folder; what
the rows mean is decided by the import that follows. The token comes in the environment (HF_TOKEN)
and is written nowhere.

REQUEST.json: {task, hub_id, config, split, max_rows, folder}; task: rows (the default), look
(configurations and splits) or preview (the first rows as short texts).
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.core.errors import HubError, StudioError

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
PROGRESS_EVERY_ROWS = 100
PROBE_TIMEOUT_S = 10.0
PREVIEW_CHARS = 400
# What the library says of a configuration or split that is not there.
_UNKNOWN_PART = ("BuilderConfig", "Config name is missing", "Unknown split", "Bad split:")


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    """Do the task; for rows: write up to max_rows of them and return {"rows": count}."""
    hub_id, folder = request["hub_id"], Path(request["folder"])
    offline = next((name for name in OFFLINE_VARIABLES if _is_set(name)), None)
    if offline is not None:
        raise HubError(
            f"The Hugging Face hub is switched off by {offline}", value=hub_id,
            remedy=f"Unset {offline} and try again, or use a file",
        )  # fmt: skip
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    _require_hub(hub_id)
    try:
        if request.get("task") == "look":
            return _look(request)
        if request.get("task") == "preview":
            return _preview(request)
        count = _write_rows(request, folder)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError) as error:
        raise _hub_error(hub_id, error) from error
    if count == 0:
        raise HubError("The data set has no rows", value=hub_id, remedy="Choose another split")
    return {"rows": count}


def _require_hub(hub_id: str) -> None:
    """Knock once: without network the library would try for half a minute."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise _unreachable(hub_id) from error


def _unreachable(hub_id: str) -> HubError:
    return HubError(
        "The Hugging Face hub cannot be reached", value=hub_id,
        remedy="Check the network and try again, or use a file",
    )  # fmt: skip


def _look(request: dict[str, Any]) -> dict[str, Any]:
    """Its configurations, and the splits of one with their rows where the hub tells them."""
    import datasets

    configs = list(datasets.get_dataset_config_names(request["hub_id"]))
    config = request["config"] or (configs[0] if configs else None)
    builder = datasets.load_dataset_builder(request["hub_id"], name=config)
    told = builder.info.splits or {}
    names = list(told) or datasets.get_dataset_split_names(request["hub_id"], config)
    splits = [
        {"name": name, "rows": told[name].num_examples or None if name in told else None}
        for name in names
    ]
    return {"configs": configs, "config": config, "splits": splits}


def _preview(request: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {str(name): _short(value) for name, value in row.items()} for row in _stream(request)
    ]  # fmt: skip
    return {"columns": list(dict.fromkeys(name for row in rows for name in row)), "rows": rows}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(
        value, ensure_ascii=False, default=_plain
    )  # fmt: skip
    return text[:PREVIEW_CHARS].encode("utf-8", "replace").decode()


def _stream(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The first max_rows rows, with the names of labels in the place of their numbers."""
    import datasets

    rows = datasets.load_dataset(
        request["hub_id"], name=request["config"], split=request["split"], streaming=True
    )
    labels = {
        name: feature for name, feature in (rows.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }  # fmt: skip
    for row in rows.decode(False).take(request["max_rows"]):
        for name, feature in labels.items():
            if isinstance(row.get(name), int) and row[name] >= 0:
                row[name] = feature.int2str(row[name])
        yield row


def _write_rows(request: dict[str, Any], folder: Path) -> int:
    count = 0
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in _stream(request):
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
            count += 1
            if count % PROGRESS_EVERY_ROWS == 0:
                _tell(folder, count, request["max_rows"])
    return count


def _plain(value: Any) -> str:
    """What JSON has no word for, as text: dates, decimals, bytes."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _tell(folder: Path, count: int, total: int) -> None:
    staged = folder / "progress.tmp"
    staged.write_text(json.dumps({"frac": count / total, "text": f"{count:,} rows fetched"}))
    staged.replace(folder / "progress.json")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")


def _hub_error(hub_id: str, error: Exception) -> StudioError:
    """One sentence for what the hub or the network answered."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    names = {type(link).__name__ for link in chain}
    status = next(
        (
            link.response.status_code
            for link in chain
            if getattr(link, "response", None) is not None
        ),
        None,
    )
    text = str(error)
    if "GatedRepoError" in names or status in (401, 403) or "gated" in text.lower():
        return HubError(
            "The data set is gated, private or does not exist", value=hub_id,
            remedy=f"Accept its licence at https://huggingface.co/datasets/{hub_id} and store "
            "your token, or check the spelling",
        )  # fmt: skip
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError"} or status == 404:
        return HubError(
            "There is no such data set on the hub, or it is private", value=hub_id,
            allowed="owner/name, for example databricks/databricks-dolly-15k",
            remedy="Check the spelling, or store a token that may read it",
        )  # fmt: skip
    if names & {"ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError",
                "MaxRetryError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}:  # fmt: skip
        return _unreachable(hub_id)
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return HubError(
            "The data set needs a program of its own to be loaded, which is never run",
            value=hub_id, remedy="Choose a data set of plain files (Parquet, JSON, CSV), or export "
            "it elsewhere and import the file",
        )  # fmt: skip
    if any(mark in text for mark in _UNKNOWN_PART):
        return HubError(
            f"There is no such configuration or split: {text.strip().splitlines()[0][:300]}",
            value=hub_id, remedy="Choose one of those that the data set has",
        )  # fmt: skip
    first = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
    return HubError(
        f"The data set cannot be fetched: {first}", value=hub_id,
        remedy="Check configuration and split",
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Do the request and leave result.json."""
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    try:
        result: dict[str, Any] = {"facts": fetch(request)}
    except StudioError as error:
        result = {"error": error.to_dict()}
    (Path(request["folder"]) / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
