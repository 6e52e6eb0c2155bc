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
    refuse_no_folder(workspace)
    if workspace.is_dir() and workspace.stat().st_mode & stat.S_ISVTX:
        raise StoreError(
            "This folder is shared by all users of the computer", value=str(workspace),
            remedy="Choose a folder of your own as --workspace",
        )  # fmt: skip
    try:
        for name in ("", *WORKSPACE_FOLDERS):
            make_folder(workspace / name)
        keep_private(workspace)
        with tempfile.TemporaryFile(dir=workspace / "tmp") as probe:
            probe.write(b"x")
    except StoreError as error:
        raise _unusable(error) from error
    except OSError as error:
        raise _unusable(store_error(workspace, error)) from error


def refuse_no_folder(workspace: Path) -> None:
    """Raise StoreError where something else than a folder lies, here or above."""
    for path in (workspace, *workspace.parents):
        if path.is_dir():
            return
        if path.exists():
            raise StoreError(
                "The workspace is not a folder", value=str(workspace),
                remedy="Choose another --workspace",
            )  # fmt: skip


def is_writable(workspace: Path) -> bool:
    """Whether files can be made in a workspace, as far as that is known without making one."""
    return os.access(workspace, os.W_OK | os.X_OK)


def keep_private(workspace: Path) -> None:
    """Take away what others may do with a workspace of ours, and with the tokens in it.

    What belongs to somebody else, or lies on a disk without such modes, stays as it is, with a
    warning. A folder inside that is a link leads to something that is not the workspace's.
    """
    if os.name == "nt":
        return  # no such modes: a user's own folders are private there
    _tighten(workspace, 0o700)
    for name in (*WORKSPACE_FOLDERS, SECRETS):
        folder = workspace / name
        if folder.is_dir() and not folder.is_symlink():
            _tighten(folder, 0o700)
    for file in (workspace / SECRETS).glob("*"):
        if file.is_file() and not file.is_symlink():
            _tighten(file, 0o600)


def _tighten(path: Path, mode: int) -> None:
    found = path.stat()
    if not found.st_mode & 0o077:
        return
    if found.st_uid != os.geteuid():
        log.warning("%s can be read by others; it belongs to another user and stays so", path)
        return
    try:
        path.chmod(mode)
    except OSError as error:
        log.warning("%s can be read by others, and that cannot be ended: %s", path, error.strerror)
    else:
        log.warning("%s could be read by other users of this computer; that is ended", path)


def _unusable(reason: StoreError) -> StoreError:
    """The disk's own words and remedy: a full disk is not mended by permissions."""
    remedy = str(reason.remedy)
    if "--workspace" not in remedy:
        remedy += ", or choose another --workspace"
    return StoreError(
        f"The workspace cannot be written: {reason.what}", value=reason.value, remedy=remedy
    )
