"""The estimate of a run's memory, made by its own trainer: with the rows as they really are.

Owns what the trainer knows for it (lengths, learned share, whether it measures and samples) and
where the model's shapes come from: those that the page has had counted (`core.kept_profiles`), else
a count at this run's one size, about a second, for which the end of a finished run is time enough.
The arithmetic is `core.memory`'s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.backend.shapes import BUILD_ERRORS, describe_adapter, read_config, read_shape
from studio.backend.training import Attempt, model_path
from studio.core import kept_profiles
from studio.core.config import LoraSection
from studio.core.errors import StudioError
from studio.core.fit_constants import CONSTANTS_FILE, kept_constants
from studio.core.memory import (
    EVALUATION_ROWS,
    PROMPT_TOKENS,
    Constants,
    Demand,
    constants_of,
    estimate,
    variant_of,
)
from studio.core.model_profile import Matrices, ModelProfile, adapted_matrices
from studio.core.runs import RunPaths, read_json
from studio.core.step_costs import Variant, VariantCosts

log = logging.getLogger(__name__)
# What torch and transformers raise where a pass without storage goes wrong.
_COUNT_ERRORS = (*BUILD_ERRORS, LookupError, AssertionError, MemoryError)


def predict(attempt: Attempt, *, count: bool) -> None:
    """Put the estimate into the run's memory record, once.

    Args:
        count: count the model's shapes where nobody has; else there is no estimate then.
    """
    memory = attempt.telemetry.memory
    if memory.has_estimate or attempt.data is None:
        return
    if count:
        attempt.journal.update(now=True, message="Comparing the memory with the estimate")
    try:
        demand = _demand(attempt, count=count)
    except StudioError as error:
        memory.cannot_predict(error.what)
    except _COUNT_ERRORS as error:  # a model that trains and yet cannot be counted fails no run
        log.warning("no estimate of the memory: %s", error)
        memory.cannot_predict("The shapes of this model cannot be counted")
    else:
        if demand is not None:
            memory.predict(estimate(demand), demand.constants)


def _demand(attempt: Attempt, *, count: bool) -> Demand | None:
    """None where the shapes are not known and not to be counted."""
    assert attempt.data is not None
    config, data = attempt.config, attempt.data
    lengths = [int(rows.lengths.max()) for rows in (data.train, data.held_out) if len(rows)]
    longest = max(lengths, default=config.train.max_length)
    shapes = _Shapes(attempt)
    profile = shapes.profile(count=count)
    if profile is None:
        return None
    demand = Demand(
        config=config, profile=profile, adapted=shapes.adapted(profile, config.lora), costs=None,
        rows_tokens=longest, prompt_tokens=min(PROMPT_TOKENS, longest),
        constants=_constants(attempt), learned_share=data.train.trained_share,
        samples=bool(data.prompts), evaluates=bool(data.held_out),
    )  # fmt: skip
    costs = shapes.costs(demand, variant_of(config, profile.window_tokens), count=count)
    return None if costs is None else dataclasses.replace(demand, costs=costs)


class _Shapes:
    """What is known of the run's model."""

    def __init__(self, attempt: Attempt) -> None:
        self._model = model_path(attempt.record)
        workspace = _workspace(attempt.paths)
        self._folder = workspace / kept_profiles.FOLDER if workspace else None
        text = (self._model / "config.json").read_bytes()
        self._key = kept_profiles.model_key(text, attempt.record.get("versions") or {})

    def profile(self, *, count: bool) -> ModelProfile | None:
        found = kept_profiles.read_profile(self._folder, self._key) if self._folder else None
        if found is not None or not count:
            return found
        from studio.backend.profile import profile_of

        return profile_of(self._model)

    def costs(self, demand: Demand, variant: Variant, *, count: bool) -> VariantCosts | None:
        found = None
        if self._folder is not None:
            found = kept_profiles.read_costs(self._folder, self._key, variant)
        if found is not None or not count:
            return found
        from studio.backend.profile import measure_size

        rows = EVALUATION_ROWS * demand.config.train.per_device_train_batch_size
        return measure_size(
            read_config(self._model), variant, r=demand.config.lora.r,
            step=(demand.rows, demand.length),
            evaluation=(rows, min(demand.rows_tokens, demand.config.train.max_length)),
        )  # fmt: skip

    def adapted(self, profile: ModelProfile, lora: LoraSection) -> Sequence[Matrices]:
        """The matrices with an adapter; full paths ("layers.0.q_proj") need the model's names."""
        targets = lora.target_modules
        if isinstance(targets, str) or not any("." in name for name in targets):
            return adapted_matrices(profile, lora)
        found: dict[str, Any] = describe_adapter(read_shape(self._model), lora)
        return [Matrices(m["name"], m["in"], m["out"], m["count"]) for m in found["matched"]]


def _constants(attempt: Attempt) -> Constants:
    """Those fitted from this device's earlier runs, if there are any."""
    memory, workspace = attempt.telemetry.memory, _workspace(attempt.paths)
    kept = read_json(workspace / CONSTANTS_FILE) if workspace else None
    return kept_constants(kept).get(memory.device) or constants_of(memory.kind)


def _workspace(paths: RunPaths) -> Path | None:
    """Of a run that lies in one."""
    runs = paths.root.resolve().parent
    return runs.parent if runs.name == "runs" else None
