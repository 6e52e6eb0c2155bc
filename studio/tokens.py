"""The tokens of one workspace: the owner's, and those of viewers, each with a name.

Owns `access/` in the workspace: the owner's token as it is (0600, so that each start prints the
same link), of the viewers' only hashes. Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.errors import BusyError, ConfigError, StoreError
from studio.core.runs import read_json
from studio.hardware.platforms import held_lock, make_folder, store_error, write_bytes, write_json
from studio.rights import OWNER, VIEWER

FOLDER = "access"
TOKEN_BYTES = 32
MAX_TOKEN_CHARS = 200
MAX_VIEWERS = 1000
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,80}")
_LOCK_WAIT_S = 10.0


@dataclass(frozen=True)
class Caller:
    """Who a token belongs to."""

    role: str
    name: str


@dataclass(frozen=True)
class Viewer:
    """A viewer's entry; the token itself is nowhere."""

    name: str
    sha256: str
    created: str


class TokenStore:
    """Reads again when the files change: a token revoked on the command line ends at once."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / FOLDER
        self._owner_file = self.folder / "owner.token"
        self._viewers_file = self.folder / "viewers.json"
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] | None = None
        self._callers: list[tuple[str, Caller]] = []

    def owner_token(self) -> str:
        """The owner's token; made at the first call."""
        _make_private(self.folder)
        with self._held():
            found = self._read_owner()
            if not found:
                found = secrets.token_urlsafe(TOKEN_BYTES)
                write_bytes(self._owner_file, found.encode() + b"\n")
        _restrict(self._owner_file, 0o600)
        return found

    def known_owner_token(self) -> str | None:
        """The owner's token if there is one; writes nothing."""
        return self._read_owner() or None

    def renew_owner(self) -> str:
        """Another owner's token; the old one is worth nothing from now on."""
        _make_private(self.folder)
        with self._held():
            token = secrets.token_urlsafe(TOKEN_BYTES)
            write_bytes(self._owner_file, token.encode() + b"\n")
        return token

    def new_viewer(self, name: str) -> str:
        """A viewer's token. It is shown once and kept only as a hash.

        Raises:
            ConfigError: the name is empty, too long or taken.
        """
        if not _NAME.fullmatch(name) or not name.strip():
            raise ConfigError("A token needs a name", value=name[:80], allowed="1 to 80 characters")
        _make_private(self.folder)
        with self._held():
            viewers = self.viewers()
            if any(viewer.name == name for viewer in viewers):
                raise ConfigError(
                    "There is a token of that name",
                    value=name,
                    remedy="Revoke it or choose another",
                )
            if len(viewers) >= MAX_VIEWERS:
                raise ConfigError("There are too many tokens", allowed=f"up to {MAX_VIEWERS}")
            token = secrets.token_urlsafe(TOKEN_BYTES)
            made = Viewer(name, _digest(token), datetime.now(UTC).isoformat(timespec="seconds"))
            self._write([*viewers, made])
        return token

    def viewers(self) -> list[Viewer]:
        """The viewers' entries, oldest first.

        Raises:
            StoreError: the file is there and damaged; nobody is let in on a guess.
        """
        if not self._viewers_file.exists():
            return []
        entries = (read_json(self._viewers_file) or {}).get("viewers")
        try:
            return [Viewer(str(e["name"]), str(e["sha256"]), str(e["created"])) for e in entries]
        except (TypeError, KeyError) as error:
            raise StoreError(
                "The list of viewers' tokens is damaged", value=self._viewers_file.name,
                remedy="Delete the file and make new tokens",
            ) from error  # fmt: skip

    def revoke(self, name: str) -> None:
        """End a viewer's token. Raises ConfigError where there is none of that name."""
        _make_private(self.folder)
        with self._held():
            viewers = self.viewers()
            kept = [viewer for viewer in viewers if viewer.name != name]
            if len(kept) == len(viewers):
                raise ConfigError(
                    "There is no token of that name", value=name,
                    allowed=", ".join(viewer.name for viewer in viewers) or "none exists",
                )  # fmt: skip
            self._write(kept)

    def caller(self, token: str) -> Caller | None:
        """Whose token it is, None if nobody's. Takes as long for a wrong one as for a right one."""
        if not 0 < len(token) <= MAX_TOKEN_CHARS:
            return None
        presented = _digest(token)
        found = None
        for digest, caller in self._known():
            if hmac.compare_digest(digest, presented):
                found = caller
        return found

    def _known(self) -> list[tuple[str, Caller]]:
        with self._lock:
            seen = (_stamp(self._owner_file), _stamp(self._viewers_file))
            if seen != self._seen:
                owner = self._read_owner()
                callers = [(_digest(owner), Caller(OWNER, "owner"))] if owner else []
                callers += [(v.sha256, Caller(VIEWER, v.name)) for v in self._readable_viewers()]
                self._callers, self._seen = callers, seen
            return self._callers

    def _readable_viewers(self) -> list[Viewer]:
        try:
            return self.viewers()
        except StoreError:  # the command line says so; the owner must still get in
            return []

    def _read_owner(self) -> str:
        try:
            return self._owner_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeError) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
            raise store_error(self._owner_file, reason) from error

    def _write(self, viewers: list[Viewer]) -> None:
        write_json(self._viewers_file, {"schema": 1, "viewers": [vars(v) for v in viewers]})

    def _held(self) -> Any:
        return _Held(self.folder / "lock")


class _Held:
    """The lock of the folder: two commands at once lose nothing."""

    def __init__(self, path: Path) -> None:
        self._context = held_lock(path, timeout_s=_LOCK_WAIT_S)

    def __enter__(self) -> None:
        if not self._context.__enter__():
            raise BusyError("Another command changes the tokens", remedy="Try again")

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _make_private(folder: Path) -> None:
    """The folder, for this user alone; a workspace that others may enter is closed to them."""
    make_folder(folder)
    _restrict(folder, 0o700)
    _restrict(folder.parent, 0o700)


def _restrict(path: Path, mode: int) -> None:
    """Take rights of others away, if there are any and the file system knows them."""
    try:
        if os.name != "nt" and path.stat().st_mode & 0o077:
            path.chmod(mode)
    except OSError as error:
        raise store_error(path, error) from error
