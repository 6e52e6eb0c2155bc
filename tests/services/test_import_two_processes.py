"""An import in two processes: what it tells, and how both end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import psutil
import pytest

from studio.core.errors import DatasetError
from studio.services import datasets as datasets_module
from studio.services.datasets import DatasetStore
from studio.services.import_process import ImportCancelledError, Limits
from tests.services.test_import_parts import FILES


@pytest.fixture
def big_file(tmp_path):
    row = '{"instruction": "Where does ferry %d go?", "input": "", "output": "%s"}\n'
    path = tmp_path / "big.jsonl"
    path.write_text("".join(row % (n, "Across the water, " * 12) for n in range(60_000)))
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_module, "TWO_WORKERS_BYTES", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return DatasetStore(tmp_path / "w")


def second_processes():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "studio.services.import_part_child" in process.cmdline():
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return [process for process in found if not is_over(process)]


def is_over(process):
    """Whether a process has ended; it may lie there as a zombie where nobody collects orphans."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_progress_counts_both_and_ends_at_the_whole(store, big_file):
    told = []
    info = store.import_file(big_file, progress=lambda share, text: told.append((share, text)))
    assert info.used == info.rows == 60_000
    copied = [text for share, text in told if share is None]
    assert all(text.endswith("MiB copied") for text in copied)
    shares = [share for share, _ in told if share is not None]
    assert shares and shares == sorted(shares) and shares[-1] <= 1.0
    assert {path.name for path in info.folder.iterdir()} == {
        "dataset.json", "source.jsonl", *FILES
    }  # fmt: skip


def test_cancel_ends_both(store, big_file, tmp_path):
    seen = []

    def cancelled():
        seen.extend(second_processes())
        return bool(seen)

    with pytest.raises(ImportCancelledError):
        store.import_file(big_file, cancelled=cancelled)
    assert seen and all(map(is_over, seen))
    assert store.list() == [] and list((tmp_path / "w" / "tmp").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_second_process_that_dies_is_told(store, big_file):
    def kill_it(share, text):
        for process in second_processes():
            process.kill()

    with pytest.raises(DatasetError, match="big.jsonl: reading it needs more than"):
        store.import_file(big_file, progress=kill_it)
    assert store.list() == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_second_process_ends_when_its_parent_is_gone(tmp_path, big_file):
    folder = tmp_path / "job"
    folder.mkdir()
    request = {"source": str(big_file), "name": "big.jsonl", "folder": str(folder),
               "format": "auto", "mapping": {}, "workers": 2,
               "limits": asdict(Limits.for_file(big_file.stat().st_size))}  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    first = subprocess.Popen(
        [sys.executable, "-m", "studio.services.import_child", str(folder / "request.json")]
    )
    deadline, found = time.monotonic() + 60, []
    while not found and time.monotonic() < deadline:
        found = second_processes()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert found
    deadline = time.monotonic() + 60
    while not is_over(found[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_over(found[0])
