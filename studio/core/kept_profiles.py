"""Where the counted shapes of a model lie in `workspace/cache/profiles`, and how they are read.

The name of a file holds config.json's hash and the library versions: a changed model or another
transformers is counted anew. Written by `services.model_shapes`, read by the trainer too. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.core.model_profile import ModelProfile
from studio.core.runs import read_json
from studio.core.step_costs import Variant, VariantCosts

FOLDER = Path("cache") / "profiles"
SCHEMA = 2


def model_key(config_text: bytes, versions: Mapping[str, str | None]) -> str:
    """Of config.json as it lies there, the versions of the torch stack and the form of a file."""
    told = json.dumps([SCHEMA, dict(versions)], sort_keys=True)
    return hashlib.sha256(config_text + told.encode()).hexdigest()[:32]


def costs_file(key: str, variant: Variant) -> str:
    """Name of the file with the costs of one variant; that of the profile is KEY.json."""
    text = json.dumps(variant.to_dict(), sort_keys=True)
    return f"{key}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read_profile(folder: Path, key: str) -> ModelProfile | None:
    """None where it is not there, or not as it must be."""
    return _parsed(ModelProfile, read_json(folder / f"{key}.json"))


def read_costs(folder: Path, key: str, variant: Variant) -> VariantCosts | None:
    """None where they are not there, or not as they must be."""
    return _parsed(VariantCosts, read_json(folder / costs_file(key, variant)))


def _parsed(kind: Any, record: Any) -> Any:
    try:
        return kind.from_dict(record) if isinstance(record, dict) else None
    except (KeyError, TypeError, ValueError):
        return None
