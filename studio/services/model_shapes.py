"""What is known of models for estimates of memory: counted once, kept in the workspace.

Owns `workspace/cache/profiles` (a file for a model, one more for each variant of its step; the key
holds config.json's hash, the variant and the library versions) and the child process that counts.
Thread safe. Knows nothing of estimates.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.core import kept_profiles
from studio.core.config import LoraSection
from studio.core.errors import ModelError, StudioError
from studio.core.model_profile import Matrices, ModelProfile, adapted_matrices
from studio.core.step_costs import Variant, VariantCosts
from studio.hardware.platforms import make_folder, write_json
from studio.services.child import ChildServer
from studio.services.runs import package_versions

if TYPE_CHECKING:
    from studio.services.models import ModelStore

log = logging.getLogger(__name__)

MODULE = "studio.backend.inspector"
_VERSIONS_S = 60.0


@dataclass
class KnownModel:
    """Of one model. A variant without costs could not be counted; `problem` says why."""

    id: str
    key: str
    profile: ModelProfile
    costs: dict[Variant, VariantCosts | None] = field(default_factory=dict)
    problem: str | None = None


class ModelShapes:
    """Profiles and step costs of models that are here or in the catalogue.

    Args:
        child: stands in for the counting process in tests.
    """

    def __init__(
        self, workspace: Path, models: ModelStore, *, child: ChildServer | None = None
    ) -> None:
        self._models = models
        self._child = child or ChildServer(MODULE, name="memory", folder=workspace / "tmp")
        self._folder = workspace / kept_profiles.FOLDER
        self._lock = threading.RLock()
        # Held for the seconds that a count takes, while what is known already goes on being told.
        self._counting = threading.RLock()
        self._known: dict[str, KnownModel] = {}
        self._refused: dict[str, ModelError] = {}
        self._read_versions: tuple[float, dict[str, str | None]] = (float("-inf"), {})

    def close(self) -> None:
        """End the child. Idempotent."""
        self._child.stop()

    def model(self, model_id: str) -> KnownModel:
        """Counted now if it never was. Raises ModelError or HubError."""
        known = self.find(model_id)
        if known is not None:
            return known
        with self._counting:
            key, known = self._key(model_id), self.find(model_id)
            if known is not None:  # counted while this one waited
                return known
            if key in self._refused:
                raise self._refused[key]
            try:
                record = self._ask("/profile", model_id, {})
            except ModelError as error:
                self._refused[key] = error
                raise
            self._keep(f"{key}.json", record)
            known = KnownModel(model_id, key, ModelProfile.from_dict(record))
            with self._lock:
                return self._known.setdefault(key, known)

    def is_refused(self, model_id: str) -> bool:
        """Whether this config.json was found to be of no model that can be built."""
        return self._key(model_id) in self._refused

    def find(self, model_id: str) -> KnownModel | None:
        """What is kept, or None. Raises ModelError where there is no config.json."""
        key = self._key(model_id)
        with self._lock:
            if key not in self._known:
                profile = kept_profiles.read_profile(self._folder, key)
                if profile is None:
                    return None
                self._known[key] = KnownModel(model_id, key, profile)
            return self._known[key]

    def costs(self, known: KnownModel, variant: Variant, *, count: bool) -> VariantCosts | None:
        """None where they are not counted yet (`count` False) or cannot be."""
        found = self.kept_costs(known, variant)
        if found is not None or variant in known.costs or not count:
            return found
        with self._counting:
            found = self.kept_costs(known, variant)
            if found is not None or variant in known.costs:  # counted while this one waited
                return found
            try:
                record = self._ask("/step_costs", known.id, {"variant": variant.to_dict()})
            except ModelError as error:
                known.costs[variant], known.problem = None, str(error)
                return None
            self._keep(kept_profiles.costs_file(known.key, variant), record)
            known.costs[variant] = VariantCosts.from_dict(record)
            return known.costs[variant]

    def kept_costs(self, known: KnownModel, variant: Variant) -> VariantCosts | None:
        """Of memory or disk."""
        with self._lock:
            if known.costs.get(variant) is None:
                costs = kept_profiles.read_costs(self._folder, known.key, variant)
                if costs is not None:
                    known.costs[variant] = costs
            return known.costs.get(variant)

    def adapted(self, known: KnownModel, lora: LoraSection) -> list[Matrices]:
        """The matrices that get an adapter; full paths ("layers.0.q_proj") are the child's to
        resolve. Raises TargetModulesError."""
        targets = lora.target_modules
        if isinstance(targets, str) or not any("." in name for name in targets):
            return adapted_matrices(known.profile, lora)
        found = self._ask("/adapter", known.id, {"lora": lora.model_dump()})
        return [Matrices(m["name"], m["in"], m["out"], m["count"]) for m in found["matched"]]

    def _keep(self, name: str, record: Mapping[str, Any]) -> None:
        try:
            make_folder(self._folder)
            write_json(self._folder / name, dict(record))
        except (OSError, StudioError) as error:  # read-only or full: it is counted again next time
            log.warning("the shapes of a model could not be kept: %s", error)

    def _key(self, model_id: str) -> str:
        """config.json, library versions and the form of what is kept."""
        file = self._models.inspect_path(model_id) / "config.json"
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ModelError(
                "There is no config.json to read the model's shapes from", value=model_id,
                remedy="Choose a folder with config.json, a catalogue model or starter",
            ) from error  # fmt: skip
        return kept_profiles.model_key(text, self._versions())

    def _versions(self) -> dict[str, str | None]:
        """Read again once a minute: it takes longer than an estimate."""
        read_s, versions = self._read_versions
        if time.monotonic() - read_s > _VERSIONS_S:
            versions = package_versions()
            self._read_versions = time.monotonic(), versions
        return versions

    def _ask(self, path: str, model_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._models.inspect_path(model_id)
        return self._child.request("POST", path, {"model_path": str(folder.absolute()), **body})
