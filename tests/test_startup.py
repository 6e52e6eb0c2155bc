"""The started studio: answers quickly, stays light, ends cleanly. Once for the whole module."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 90.0
RSS_LIMIT_BYTES = 300 * 10**6


@dataclass
class Started:
    process: subprocess.Popen[bytes]
    url: str
    seconds: float
    log: Path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"app.py ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            get(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)  # polled: there is no event to wait for across processes
        else:
            return
    pytest.fail(f"no answer within {PATIENCE_S:.0f} s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("startup")
    port, log = free_port(), folder / "log.txt"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--no-browser", "--port", str(port),
             "--workspace", str(folder / "workspace")],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/healthz", process, log)
        yield Started(process, url, time.monotonic() - started, log)
    finally:
        process.kill()
        process.wait()


def test_healthz_answers(studio: Started) -> None:
    assert get(f"{studio.url}/healthz").replace(b" ", b"") == b'{"status":"ok"}'


def test_start_is_quick(studio: Started) -> None:
    """6 s on two idle cores; a busy machine gets four times as long."""
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) + 1.0)
    assert studio.seconds < 6.0 * min(4.0, busy)


def test_the_page_names_the_product_and_no_other_host(studio: Started) -> None:
    page = get(f"{studio.url}/").decode()
    assert "LoRA Studio" in page
    for host in (
        "fonts.googleapis",
        "cdnjs",
        "huggingface.co/",
        "api.gradio.app",
        "iframe-resizer",
    ):
        assert f"//{host}" not in page, host


def test_the_process_stays_light(studio: Started) -> None:
    get(f"{studio.url}/")
    get(f"{studio.url}/api/machine")
    rss = psutil.Process(studio.process.pid).memory_info().rss
    assert rss < RSS_LIMIT_BYTES, f"{rss / 1e6:.0f} MB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_has_no_torch(studio: Started) -> None:
    maps = Path(f"/proc/{studio.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "bitsandbytes" not in maps


def test_a_second_studio_on_the_same_port_says_so(studio: Started, tmp_path: Path) -> None:
    port = studio.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "app.py", "--no-browser", "--port", port, "--workspace", str(tmp_path)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupting_ends_it_cleanly(studio: Started) -> None:
    """Last in this file: it ends the studio."""
    studio.process.send_signal(signal.SIGINT)
    # The server ends itself by the signal it got, after it has closed everything.
    assert studio.process.wait(timeout=30) in (0, 130, -signal.SIGINT)
    assert "Traceback" not in studio.log.read_text()
