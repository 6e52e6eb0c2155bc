"""Gradio's upload parser, mended: what breaks off or is nobody's leaves no file behind.

Gradio 6.31 keeps the temporary file of an upload whose sender left, and of a part that is not
named `files`; a text part of that name, or an unknown charset, ends in an answer 500.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gradio import route_utils
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

FIELD = "files"
LEFTOVER_S = 24 * 3600.0
NO_UPLOAD = "That is not an upload of files."
_PARSER = route_utils.GradioMultiPartParser


class TidyParser(_PARSER):
    """Removes its temporary files unless all of them are handed on."""

    async def parse(self) -> FormData:
        kept: list[Any] = []
        try:
            form = await super().parse()
            files = form.getlist(FIELD)
            if not all(isinstance(file, UploadFile) for file in files):
                raise MultiPartException(NO_UPLOAD)
            kept = [file.file.name for file in files]
        except OSError as error:  # the disk is full
            raise MultiPartException(f"The upload cannot be kept: {error.strerror}.") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise MultiPartException(NO_UPLOAD) from error
        finally:
            for file in self._files_to_close_on_error:
                if file.name not in kept:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)
        return form


def tidy_uploads(folder: Path) -> None:
    """Use the parser above, and remove what a killed studio was receiving a day ago or more."""
    route_utils.GradioMultiPartParser = TidyParser
    for entry in folder.iterdir():
        if entry.is_file() and time.time() - entry.lstat().st_mtime > LEFTOVER_S:
            entry.unlink(missing_ok=True)
