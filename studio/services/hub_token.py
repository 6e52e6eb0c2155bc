"""The access token of the model hub: one file that only this user may read.

Owns where it lies and its file mode. The token goes into request headers and nowhere else: not
into runs, logs, messages or command lines.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from studio.core.errors import HubError
from studio.hardware.platforms import make_folder, store_error, write_bytes

_FORM = re.compile(r"^[\x21-\x7e]{8,300}$")
ENVIRONMENT_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def config_folder() -> Path:
    """~/.config/lora-studio, or where the platform keeps a user's settings."""
    if os.environ.get("XDG_CONFIG_HOME"):
        return Path(os.environ["XDG_CONFIG_HOME"]) / "lora-studio"
    if os.name == "nt" and os.environ.get("APPDATA"):
        return Path(os.environ["APPDATA"]) / "lora-studio"
    return Path.home() / ".config" / "lora-studio"


def token_file() -> Path:
    """The file that holds the token."""
    return config_folder() / "hf_token"


def save_token(token: str) -> None:
    """Keep a token; an empty one removes it. Raises HubError for what cannot be a token."""
    token = token.strip()
    if not token:
        try:
            token_file().unlink(missing_ok=True)
        except OSError as error:
            raise store_error(token_file(), error) from error
        return
    if not _FORM.match(token):
        # The value is not shown: it may be a real token with a slip.
        raise HubError(
            "This does not look like an access token", allowed="one line of 8 to 300 characters",
            remedy="Copy it again from huggingface.co/settings/tokens",
        )  # fmt: skip
    make_folder(config_folder())
    write_bytes(token_file(), token.encode("ascii") + b"\n", mode=0o600)


def read_token() -> str | None:
    """The kept token, else that of the environment, else None."""
    try:
        kept = token_file().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        kept = ""
    candidates = (kept, *(os.environ.get(name, "").strip() for name in ENVIRONMENT_VARIABLES))
    return next((token for token in candidates if _FORM.match(token)), None)
