"""Where the studio runs: workspace, address, presets. No knob of a training lives here.

Values come from the command line and the environment (`app.py`, `studio/cli.py`); services get a
finished `Settings`. Knows nothing of gradio, runs or models.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import studio
from studio.core.errors import StoreError
from studio.hardware.platforms import make_folder, store_error

log = logging.getLogger(__name__)

WORKSPACE_VARIABLE = "LORA_STUDIO_WORKSPACE"
WORKSPACE_FOLDERS = ("datasets", "runs", "exports", "trash", "models", "tmp")
SECRETS = "access"  # tokens (studio.tokens)
UPLOADS = "uploads"  # in tmp: what the browser sent, kept by gradio for a day
PROJECT_ROOT = Path(studio.__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What the studio was started with. `read_only`: another studio holds the workspace.

    `listen`: everybody needs a token, and other addresses than loopback may be bound.
    `public_url`: where others reach the studio, through a proxy; they need a token too.
    """

    workspace: Path
    host: str = "127.0.0.1"
    port: int = 7860
    presets_dir: Path = PROJECT_ROOT / "presets"
    allow_hosts: tuple[str, ...] = ()
    read_only: bool = False
    listen: bool = False
    public_url: str | None = None

    @property
    def needs_login(self) -> bool:
        """Whether everybody needs a token."""
        return self.listen or self.public_url is not None

    @property
    def tmp(self) -> Path:
        """Staging area: on the same file system as the rest, so that a rename is atomic."""
        return self.workspace / "tmp"

    @property
    def url(self) -> str:
        """Address of the page."""
        if self.public_url:
            return self.public_url
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def choose_workspace(given: Path | None, environment: Mapping[str, str] | None = None) -> Path:
    """The workspace folder: the one given, else the environment's, else ./workspace."""
    values = os.environ if environment is None else environment
    chosen = given or Path(values.get(WORKSPACE_VARIABLE) or "workspace")
    return chosen.expanduser().absolute()


def prepare_workspace(workspace: Path) -> None:
    """Create the workspace's folders and prove that a file can be written.

    Raises:
        StoreError: in one sentence, if the folder cannot be created or written.
    """
    if workspace.exists() and not workspace.is_dir():
        raise StoreError(
            "The workspace is not a folder", value=str(workspace),
            remedy="Choose another --workspace",
        )  # fmt: skip
    try:
        for name in ("", *WORKSPACE_FOLDERS):
            keep_private(make_folder(workspace / name))
        with tempfile.TemporaryFile(dir=workspace / "tmp") as probe:
            probe.write(b"x")
    except StoreError as error:
        raise _unusable(error) from error
    except OSError as error:
        raise _unusable(store_error(workspace, error)) from error


def keep_private(folder: Path) -> None:
    """Take away what others may do with a folder of ours and with the files of secrets in it.

    A folder that belongs to somebody else stays as it is, with a warning. Raises StoreError for
    one that is everybody's by design (sticky, like the system's folder for temporary files).
    """
    if os.name == "nt":
        return  # no such modes: a user's own folders are private there
    _tighten(folder, 0o700)
    for file in (folder / SECRETS).glob("*") if (folder / SECRETS).is_dir() else ():
        _tighten(file, 0o700 if file.is_dir() else 0o600)


def _tighten(path: Path, mode: int) -> None:
    found = path.stat()
    if not found.st_mode & 0o077 or path.is_symlink():
        return
    if found.st_mode & stat.S_ISVTX:
        raise StoreError(
            "This folder is shared by all users of the computer", value=str(path),
            remedy="Choose a folder of your own as --workspace",
        )  # fmt: skip
    if found.st_uid != os.geteuid():
        log.warning("%s can be read by others and is not yours: its modes stay", path)
        return
    path.chmod(mode)
    log.warning("%s could be read by other users of this computer; that is ended", path)


def _unusable(reason: StoreError) -> StoreError:
    """The disk's own words and remedy: a full disk is not mended by permissions."""
    remedy = str(reason.remedy)
    if "--workspace" not in remedy:
        remedy += ", or choose another --workspace"
    return StoreError(
        f"The workspace cannot be written: {reason.what}", value=reason.value, remedy=remedy
    )
