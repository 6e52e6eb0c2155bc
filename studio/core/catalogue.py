"""The short catalogue of good small base models, shown before anything is downloaded.

Owns reading `presets/catalogue/catalogue.yaml`. Each entry has the model's own config.json beside
it, so that its modules and adapter sizes can be shown without network. Pure apart from reading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.core.config_io import read_yaml
from studio.core.errors import PresetError

FILE = "catalogue.yaml"
CARD_GIB = (8, 12, 16, 24)


class CatalogueModel(BaseModel):
    """One model of the hub that is known to be worth a try."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    title: str = Field(min_length=1, max_length=60)
    params: int = Field(gt=0)
    context: int = Field(gt=0)
    licence: str = Field(min_length=1)
    gated: bool = False
    vram_gib: int = Field(description="smallest card for QLoRA, rank 16, 1024 tokens")
    why: str = Field(min_length=1, max_length=160)
    source: str = Field(min_length=1, description="where config.json was read")
    folder: Path

    @property
    def weight_bytes(self) -> int:
        """Size of the bf16 weights, which is nearly all of the download."""
        return 2 * self.params


def load_catalogue(folder: Path) -> list[CatalogueModel]:
    """Entries in the file's order. Raises PresetError for a file that is not as it must be."""
    values = read_yaml(folder / FILE)
    entries = values.get("models")
    if not isinstance(entries, list) or set(values) != {"models"}:
        raise PresetError(f"{FILE} must hold one list called models", value=str(folder))
    return [_entry(folder, entry) for entry in entries]


def _entry(folder: Path, entry: Any) -> CatalogueModel:
    name = str(entry.get("id", "")) if isinstance(entry, dict) else ""
    place = folder / name.replace("/", "--")
    try:
        model = CatalogueModel(**{**(entry if isinstance(entry, dict) else {}), "folder": place})
    except (ValidationError, TypeError) as error:
        detail = str(error).splitlines()
        raise PresetError(f"An entry of {FILE} is wrong", value=" ".join(detail[:3])) from error
    if not (place / "config.json").is_file():
        raise PresetError("A catalogue model has no config.json beside it", value=name)
    return model
