"""The model hub over HTTP: what a model consists of, and fetching its files.

Owns requests, their errors as sentences, resuming and checking of files. Only the files a causal
language model needs are asked for; weights in safetensors only. Knows nothing of the workspace.

API as of huggingface_hub 1.x: `GET /api/models/{id}/revision/{revision}?blobs=true` names files
with sizes and hashes; `GET /{id}/resolve/{commit}/{file}` redirects to the content; the header
`X-Error-Code` says GatedRepo, RepoNotFound, RevisionNotFound or EntryNotFound.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from studio.core.errors import HubError, ModelError
from studio.hardware.platforms import store_error

DEFAULT_ENDPOINT = "https://huggingface.co"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
_REVISION = re.compile(r"^[\w][\w./-]{0,99}$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SMALL_FILES = re.compile(
    r"^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template)\.json$|^(merges|vocab)\.txt$|^chat_template\.jinja$|^LICEN[CS]E(\.\w+)?$"
    r"|^model\.safetensors\.index\.json$"
)
_SHARD = re.compile(r"^model-\d{5}-of-\d{5}\.safetensors$")
_ONE_FILE = "model.safetensors"
_MAX_SMALL_BYTES = 128 << 20
_CHUNK_BYTES = 1 << 20
_RETRIES = 4
_OFFLINE_WORDS = ("1", "true", "yes", "on")

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class HubFile:
    """One file of a model at one commit."""

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def is_weights(self) -> bool:
        return self.name.endswith(".safetensors")


@dataclass(frozen=True)
class HubModel:
    """A model at one commit: what would be downloaded."""

    id: str
    commit: str
    files: tuple[HubFile, ...]
    is_gated: bool
    licence: str | None

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Hub:
    """A model hub. Thread safe; each call opens its own connection.

    Args:
        endpoint: by default HF_ENDPOINT of the environment, else huggingface.co.
        token: sent to the endpoint itself only, never to where it redirects.
    """

    def __init__(self, *, endpoint: str | None = None, token: str | None = None) -> None:
        chosen = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        self.endpoint = chosen.rstrip("/")
        parts = urlsplit(self.endpoint)
        is_safe = parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._token = token if is_safe else None

    def describe(self, model_id: str, revision: str | None = None) -> HubModel:
        """Files, sizes, licence and commit of a model.

        Raises:
            HubError: malformed or unknown id, no network, no safetensors.
        """
        _check_names(model_id, revision)
        suffix = f"/revision/{quote(revision, safe='')}" if revision else ""
        url = f"{self.endpoint}/api/models/{model_id}{suffix}"
        with self._errors(model_id, revision), self._client() as client:
            response = client.get(url, params={"blobs": "true"})
            self._check(response, model_id, revision)
            return _hub_model(model_id, response.json())

    def fetch(
        self,
        model: HubModel,
        file: HubFile,
        target: Path,
        *,
        on_bytes: OnBytes,
        cancelled: Callable[[], bool],
    ) -> None:
        """Download one file to `target`, continuing `target`.part where it stopped.

        A connection that breaks is taken up again as long as it brings something. The file appears
        under its name only when size and hash are right.

        Args:
            on_bytes: called with the bytes of this file that are here.
            cancelled: asked about at every piece that arrives.

        Raises:
            HubError: refused, cancelled, no network, or the content is not what was announced.
        """
        part = target.with_name(f"{target.name}.part")
        failures = 0
        while True:
            before = _size(part)
            try:
                with self._errors(model.id, model.commit):
                    self._continue(model, file, part, on_bytes, cancelled)
                break
            except _BrokenOff as broken:
                failures = 0 if _size(part) > before else failures + 1
                if failures >= _RETRIES:
                    raise HubError(
                        "The connection to the hub keeps breaking", value=file.name,
                        remedy="Try again later; the download continues where it stopped",
                    ) from broken  # fmt: skip
        _verify(file, part)
        try:
            os.replace(part, target)
        except OSError as error:
            raise store_error(target, error) from error

    def _continue(
        self, model: HubModel, file: HubFile, part: Path, on_bytes: OnBytes,
        cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        have = _size(part)
        if have > file.size_bytes:
            part.unlink()
            have = 0
        if have == file.size_bytes and part.exists():
            return
        url = f"{self.endpoint}/{model.id}/resolve/{model.commit}/{quote(file.name)}"
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._client() as client, client.stream("GET", url, headers=headers) as response:
            self._check(response, model.id, model.commit)
            if have and response.status_code != 206:
                have = 0  # a server without ranges sends the whole file again
            try:
                with part.open("ab" if have else "wb") as out:
                    for chunk in response.iter_bytes():
                        if cancelled():
                            raise HubError(
                                "The download was cancelled", value=model.id,
                                remedy="Start it again and it continues where it stopped",
                            )  # fmt: skip
                        have += len(chunk)
                        if have > file.size_bytes:
                            raise _wrong_content(file)
                        out.write(chunk)
                        on_bytes(have)
            except OSError as error:
                raise store_error(part, error) from error
        if have < file.size_bytes:
            raise _BrokenOff(file.name)

    def _client(self) -> httpx.Client:
        headers = {"User-Agent": "lora-studio", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"  # httpx drops it on another host
        return httpx.Client(
            headers=headers, follow_redirects=True, max_redirects=5,
            timeout=httpx.Timeout(30.0, connect=10.0),
        )  # fmt: skip

    @contextmanager
    def _errors(self, model_id: str, revision: str | None) -> Iterator[None]:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE_WORDS:
            raise HubError(
                "The hub is switched off by HF_HUB_OFFLINE", value=model_id,
                remedy="Unset it, or give the folder of a model on this machine",
            )  # fmt: skip
        try:
            yield
        except httpx.ConnectError as error:
            raise self._no_network(model_id) from error
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise self._no_network(model_id) from error
            raise _BrokenOff(model_id) from error
        except (ValueError, RecursionError) as error:  # not JSON, or not of the known shape
            raise HubError(
                f"{self.endpoint} does not answer like a model hub", value=model_id,
                remedy="Check HF_ENDPOINT and the connection (a login page of the network?)",
            ) from error  # fmt: skip

    def _no_network(self, model_id: str) -> HubError:
        return HubError(
            f"{urlsplit(self.endpoint).hostname} cannot be reached", value=model_id,
            remedy="Check the connection, or give the folder of a model on this machine",
        )  # fmt: skip

    def _check(self, response: httpx.Response, model_id: str, revision: str | None) -> None:
        """Raise a HubError for every answer that is not the content."""
        status, code = response.status_code, response.headers.get("x-error-code", "")
        if status in (200, 206):
            return
        if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
            step = "and use a token of that account" if self._token else "then keep a token here"
            raise HubError(
                "This model is gated: its owner wants its licence accepted first", value=model_id,
                remedy=f"Accept it at {self.endpoint}/{model_id} with your account, {step}",
            )  # fmt: skip
        if code == "RevisionNotFound":
            raise HubError("The model has no such revision", value=revision, allowed="main")
        if code == "RepoNotFound" or status in (401, 404):
            hint = "" if self._token else "; a private model needs a token"
            raise HubError(
                "The hub knows no such model", value=model_id,
                remedy=f"Check the spelling of owner/name{hint}",
            )  # fmt: skip
        if status == 416:
            raise HubError("The file changed while it was downloaded", value=model_id,
                           remedy="Start the download again")  # fmt: skip
        raise HubError(
            f"The hub answered with status {status}",
            value=model_id,
            remedy="Too many requests: wait some minutes" if status == 429 else "Try again later",
        )


class _BrokenOff(HubError):
    """The connection ended before the file did; shown only where nothing takes it up again."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "The connection to the hub broke", value=name, remedy="Check the connection, try again"
        )


def is_hub_id(text: str) -> bool:
    """Whether the text has the shape owner/name."""
    return bool(HUB_ID.match(text)) and ".." not in text and "--" not in text


def _check_names(model_id: str, revision: str | None) -> None:
    if not is_hub_id(model_id):
        raise HubError(
            "This is not a model id of the hub", value=model_id,
            allowed="owner/name, for example Qwen/Qwen3-0.6B",
        )  # fmt: skip
    if revision is not None and (not _REVISION.match(revision) or ".." in revision):
        raise HubError("This is not a revision", value=revision, allowed="a branch, tag or commit")


def _hub_model(model_id: str, record: Any) -> HubModel:
    """Read the hub's answer. Raises ValueError where its shape is unknown."""
    if not isinstance(record, dict) or not isinstance(record.get("siblings"), list):
        raise ValueError("not a model record")
    commit = str(record.get("sha") or "")
    if not _COMMIT.match(commit):
        raise ValueError("no commit")
    card = record.get("cardData")
    licence = card.get("license") if isinstance(card, dict) else None
    listed = [_hub_file(entry) for entry in record["siblings"]]
    return HubModel(
        id=model_id, commit=commit, files=tuple(_choose(model_id, listed)),
        is_gated=bool(record.get("gated")), licence=str(licence) if licence else None,
    )  # fmt: skip


def _hub_file(entry: Any) -> HubFile:
    if not isinstance(entry, dict):
        raise ValueError("not a file record")
    lfs = entry.get("lfs")
    size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
    return HubFile(
        name=str(entry.get("rfilename")),
        size_bytes=size if isinstance(size, int) and size >= 0 else 0,
        sha256=str(lfs.get("sha256")) if isinstance(lfs, dict) and lfs.get("sha256") else None,
        blob_id=str(entry["blobId"]) if entry.get("blobId") else None,
    )


def _choose(model_id: str, listed: list[HubFile]) -> list[HubFile]:
    """The files worth fetching: configs, tokenizer, and one set of safetensors."""
    names = {file.name for file in listed}
    if "config.json" not in names:
        raise ModelError(
            "This hub model has no config.json", value=model_id,
            remedy="Choose a text-generation model in transformers format",
        )  # fmt: skip
    small = [f for f in listed if _SMALL_FILES.match(f.name) and f.size_bytes <= _MAX_SMALL_BYTES]
    whole = [f for f in listed if f.name == _ONE_FILE]
    weights = whole or [f for f in listed if _SHARD.match(f.name)]
    if not weights:
        raise ModelError(
            "This hub model has no safetensors weights", value=model_id,
            remedy="Other formats can run code and are not loaded; choose another model",
        )  # fmt: skip
    if whole:
        small = [f for f in small if not f.name.endswith(".index.json")]
    # Small files first: what is wrong with a model shows before gigabytes are fetched.
    return sorted(small, key=lambda f: (f.name != "config.json", f.name)) + sorted(
        weights, key=lambda f: f.name
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _verify(file: HubFile, path: Path) -> None:
    """Compare with the hash the hub announced: sha256, or git's own for small files."""
    if file.sha256:
        digest, wanted = hashlib.sha256(), file.sha256
    elif file.blob_id and len(file.blob_id) == 40:
        # A git blob's id: sha1 of "blob <size>\0" and the content. Identity, not protection.
        digest = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
        wanted = file.blob_id
    else:
        return
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != wanted:
            path.unlink()
            raise _wrong_content(file)
    except OSError as error:
        raise store_error(path, error) from error


def _wrong_content(file: HubFile) -> HubError:
    return HubError(
        "A downloaded file is not what the hub announced", value=file.name,
        remedy="Download it again",
    )  # fmt: skip
