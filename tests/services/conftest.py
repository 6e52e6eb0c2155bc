"""What several tests of the services share."""

from pathlib import Path

import pytest

from studio.services.datasets import DatasetStore
from studio.services.edits import Edits


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    """The data sets of an empty workspace."""
    return DatasetStore(tmp_path / "workspace")


@pytest.fixture
def edits(store: DatasetStore, tmp_path: Path) -> Edits:
    """Changes to those data sets."""
    return Edits(store, tmp_path / "workspace")
