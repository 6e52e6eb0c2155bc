"""What every test gets: no network, few threads, a workspace of its own, and skips with reasons."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser_setup import find_chromium

# Before any test module imports torch or a tokenizer: several test workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.pop("LORA_STUDIO_WORKSPACE", None)

# Where gradio keeps what a page without a server of ours is sent; removed with the last test.
_GRADIO = tempfile.TemporaryDirectory(prefix="gradio-")
os.environ["GRADIO_TEMP_DIR"] = _GRADIO.name

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_folders(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Each test has its own cache (device locks) and default workspace."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("LORA_STUDIO_WORKSPACE", str(folder / "workspace"))
    yield


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    _GRADIO.cleanup()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace folder."""
    folder = tmp_path / "workspace"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers; imports no torch."""
    from studio.hardware.nvml import Nvml

    nvml = Nvml()
    try:
        return bool(nvml.devices())
    finally:
        nvml.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, each with its reason."""
    reasons: dict[str, str] = {}
    if any(item.get_closest_marker("gpu") for item in items) and not has_gpu():
        reasons["gpu"] = "no NVIDIA GPU"
    if importlib.util.find_spec("playwright") is None:
        reasons["browser"] = "playwright is not installed (requirements-dev.txt)"
    elif find_chromium() is None:
        reasons["browser"] = "no Chromium (python3 tests/browser_setup.py installs it by apt)"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
