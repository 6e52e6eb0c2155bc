"""Memory that loading or an answer leaves behind and nobody needs, given back to the system.

Owns the ways: large blocks out of the heap while small ones that stay are made between them, the
heap's free pages, and pages of a weights file that were read once to be packed. Linux and glibc;
elsewhere nothing is done. Knows no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)$")
_CHANGED = re.compile(r"^Anonymous: +(\d+) kB")
_MADV_DONTNEED = 4  # <bits/mman-linux.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_MIB = 1 << 20


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, blocks from 2 MiB on get mappings of their own, which go when they are freed.

    glibc raises that size up to 32 MiB by itself. Then the copies of a matrix that packing to 4
    bits makes (17 MiB each at 0.5 B parameters) come from the heap, the packed one is put into
    their gap, and the next copies do not fit there: the heap grew to 1,213 MiB for 170 MiB of
    packed weights, differently in each process. So does an answer's cache, token by token, between
    the matrices unpacked for it. A new mapping costs its page faults, so the steps of a training
    are not run like this.
    """
    set_option = getattr(_libc(), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_M_MMAP_THRESHOLD, 2 * _MIB)
    try:
        yield
    finally:
        # Where glibc's own rule ends up once a block of 32 MiB was freed.
        set_option(_M_MMAP_THRESHOLD, 32 * _MIB)
        set_option(_M_TRIM_THRESHOLD, 64 * _MIB)
        trim_heap()


def trim_heap() -> bool:
    """Give freed heap back, also from below blocks in use; False where there is no glibc.

    It took 2 ms after loading 0.5 B parameters in 4 bits: with fp32 beside them 1,714 MiB were
    resident before and 1,148 after, with bf16 1,356 and 1,309.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def drop_read_pages(folder: Path) -> int:
    """Take the unchanged pages of the weights files in `folder` out of this process; the bytes of
    address space that were asked about.

    safetensors maps a file, and one tensor that is still a view of it (the embedding, where it is
    kept as it was stored) keeps all pages that were read: 682 of 942 MiB at 0.5 B parameters, of
    weights that exist packed by then. They stay in the system's file cache; a page that is used
    again comes back from there. A mapping with a changed page is left alone: the change would go.
    """
    madvise = getattr(_libc(), "madvise", None)
    try:
        lines = _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    dropped = 0
    for start, end in _unchanged(lines, str(folder.resolve()) + "/"):
        area = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        if madvise is not None and madvise(*area, _MADV_DONTNEED) == 0:
            dropped += end - start
    return dropped


def _unchanged(smaps: list[str], prefix: str) -> list[tuple[int, int]]:
    """The private mappings of *.safetensors below `prefix` that hold no page of their own."""
    found: list[tuple[int, int]] = []
    area: tuple[int, int] | None = None
    for line in smaps:
        if mapping := _MAPPING.match(line):
            name, is_private = mapping[4], mapping[3].endswith("p")
            ours = is_private and name.startswith(prefix) and name.endswith(".safetensors")
            area = (int(mapping[1], 16), int(mapping[2], 16)) if ours else None
        elif area is not None and (changed := _CHANGED.match(line)):
            if int(changed[1]) == 0:
                found.append(area)
            area = None
    return found


def _libc() -> ctypes.CDLL | None:
    """The C library of this process; None where it is not Linux's."""
    return ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
