"""Errors that a user sees.

    StudioError
    |- ConfigError      a knob is out of range, unknown, or contradicts another
    |- PresetError      a preset file is wrong
    |- DatasetError     a data file cannot be used (carries file and line where known)
    |- ModelError       a model folder or hub id cannot be used
    |  `- TargetModulesError   no module of the model matches
    |- OutOfMemoryError the device or the host ran out of memory
    |- DeviceError      this machine cannot do what was asked
    |- DivergedError    the loss or the gradients are no longer finite
    |- BusyError        something else holds the run, the device or the workspace
    |- StoreError       files: no space, no permission, damaged, missing
    `- HubError         the model hub refused or could not be reached

Every message says what is wrong, the value, what is allowed and what to do. The page and the
command line show `str(error)`; nothing else is shown to a user, so nothing may be missing there.
"""

from __future__ import annotations

from typing import Any


class StudioError(Exception):
    """A problem that the user can understand and act on.

    Args:
        what: what is wrong, one clause without a final full stop.
        value: the offending value, shown in quotes; None leaves it out.
        allowed: what would be allowed.
        remedy: what to do now, an imperative sentence.
    """

    def __init__(
        self,
        what: str,
        *,
        value: Any = None,
        allowed: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.value = value
        self.allowed = allowed
        self.remedy = remedy
        super().__init__(self._text())

    def _text(self) -> str:
        text = self.what.rstrip(".")
        if self.value is not None:
            shown = str(self.value)
            text += f" (got {shown[:200]!r})" if isinstance(self.value, str) else f" (got {shown})"
        text += "."
        if self.allowed:
            text += f" Allowed: {self.allowed.rstrip('.')}."
        if self.remedy:
            text += f" {self.remedy.rstrip('.')}."
        return text

    def to_dict(self) -> dict[str, str | None]:
        """Fields for `exit.json` and JSON answers; `text` is the full sentence."""
        return {
            "type": type(self).__name__,
            "text": str(self),
            "what": self.what,
            "value": None if self.value is None else str(self.value)[:200],
            "allowed": self.allowed,
            "remedy": self.remedy,
        }


class ConfigError(StudioError, ValueError):
    """One or more knobs are wrong. `issues` maps field path to sentence; all at once."""

    def __init__(self, what: str, *, issues: dict[str, str] | None = None, **parts: Any) -> None:
        self.issues = dict(issues or {})
        super().__init__(what, **parts)


class PresetError(StudioError):
    """A preset file is missing, unreadable or holds unknown keys."""


class DatasetError(StudioError):
    """A data file cannot be used."""


class ModelError(StudioError):
    """A model cannot be loaded."""


class TargetModulesError(ModelError):
    """`target_modules` matches nothing in the model."""


class OutOfMemoryError(StudioError):
    """The GPU or the host ran out of memory. `memory`: a `MemoryFault` as a record, if known."""

    def __init__(self, what: str, *, memory: dict[str, Any] | None = None, **parts: Any) -> None:
        self.memory = memory
        super().__init__(what, **parts)


class DeviceError(StudioError):
    """The device asked for is absent or cannot do what was asked."""


class DivergedError(StudioError):
    """Loss or gradient is NaN or infinite."""


class BusyError(StudioError):
    """Somebody else holds what is needed."""


class StoreError(StudioError):
    """A file or folder of the workspace cannot be read or written."""


class HubError(StudioError):
    """The model hub answered no, or did not answer."""
