"""Memory that loading leaves behind goes back to the system, and nothing that is needed does."""

import ctypes
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from studio.backend import given_back
from studio.hardware.probe import rss_bytes

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


@pytest.fixture
def weights(tmp_path):
    """A file of 32 MiB, mapped as safetensors maps it, all pages read."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * (32 * MIB // 256))
    with file.open("rb") as stream:
        area = mmap.mmap(
            stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    assert sum(area[::4096]) == 0  # reads every page
    yield file, area
    area.close()


def resident(file: Path) -> int:
    """Bytes of a file that this process holds."""
    found = re.search(rf" {re.escape(str(file))}\n(?:.*\n)*?Rss: +(\d+) kB",
                      Path("/proc/self/smaps").read_text())  # fmt: skip
    return 1024 * int(found[1])


def test_read_pages_go_and_come_back_as_they_were(weights):
    file, area = weights
    assert resident(file) > 24 * MIB
    assert given_back.drop_read_pages(file.parent) == 32 * MIB
    assert resident(file) == 0
    assert area[:256] == area[-256:] == bytes(range(256))


def test_a_mapping_with_a_changed_page_stays(weights):
    file, area = weights
    area[5 * MIB] = 77
    assert given_back.drop_read_pages(file.parent) == 0
    assert area[5 * MIB] == 77
    assert resident(file) > 24 * MIB


def test_other_folders_and_other_files_stay(weights, tmp_path):
    file, _ = weights
    other = tmp_path / "model"  # begins like the file's name
    other.mkdir()
    assert given_back.drop_read_pages(other) == 0
    assert resident(file) > 24 * MIB


def test_a_name_with_spaces_is_read_from_smaps():
    lines = [
        "7f00-8f00 r--p 00000000 fe:00 42                     /my models/a b/m.safetensors",
        "Rss:                  60 kB", "Anonymous:             0 kB",
        "9f00-af00 r--p 00000000 fe:00 43                     /my models/a b/m.safetensors",
        "Anonymous:             4 kB",
        "bf00-cf00 r--s 00000000 fe:00 44                     /my models/a b/m.safetensors",
        "Anonymous:             0 kB",
        "df00-ef00 r--p 00000000 00:00 0 ", "Anonymous:             0 kB",
    ]  # fmt: skip
    assert given_back._unchanged(lines, "/my models/a b/") == [(0x7F00, 0x8F00)]


def test_freed_heap_goes_back():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        assert given_back.trim_heap() is False
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size = 64 << 10  # below the size that gets a mapping of its own
    blocks = [libc.malloc(size) for _ in range(1024)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        libc.free(block)
    before = rss_bytes(os.getpid())
    assert given_back.trim_heap() is True
    after = rss_bytes(os.getpid())
    libc.free(blocks[-1])
    assert before - after > 48 * MIB


PACKING = """
import contextlib, ctypes, os, sys
from studio.backend.given_back import large_blocks_apart
from studio.hardware.probe import rss_bytes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def filled(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
libc.free(filled(30 << 20))  # from now on glibc itself takes blocks of up to 30 MiB from the heap
before = rss_bytes(os.getpid())
with large_blocks_apart() if sys.argv[1] == "apart" else contextlib.nullcontext():
    for number in range(40):
        libc.free(filled((4 << 20) + (number << 18)))  # larger than the gap of the one before
        filled(100 << 10)  # what stays
    print(rss_bytes(os.getpid()) - before)
"""


def grown_bytes(how: str) -> int:
    """Resident memory that a loop like packing's leaves, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PACKING, how], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2], timeout=120,
    )  # fmt: skip
    return int(done.stdout)


def test_large_blocks_leave_no_gaps():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("glibc's")
    apart, plain = grown_bytes("apart"), grown_bytes("plain")
    assert apart < 8 * MIB  # 4 MiB stay
    assert plain > apart + 8 * MIB


def test_another_system_is_left_alone(monkeypatch, weights):
    file, _ = weights
    monkeypatch.setattr(given_back.sys, "platform", "darwin")
    assert given_back.trim_heap() is False
    assert given_back.drop_read_pages(file.parent) == 0
    assert resident(file) > 24 * MIB
