"""The header of a safetensors file: names, dtypes, shapes. Reads no weights and needs no torch.

The format (huggingface.co/docs/safetensors): 8 bytes little-endian length, then that many bytes of
JSON {name: {dtype, shape, data_offsets}}, then the data without gaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from studio.core.errors import ModelError

# The format allows 100 MB, which as JSON takes a gigabyte to read. The longest in use have 10 MB.
MAX_HEADER_BYTES = 32 << 20
MAX_DIMENSIONS, MAX_SIZE = 8, 1 << 48
_ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of a safetensors file. Raises ModelError if the file is not one or is cut short."""
    try:
        if not path.is_file():
            raise OSError("it is no ordinary file")  # a pipe would be waited for without an end
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header has an impossible length")
            header = json.loads(file.read(length), object_pairs_hook=_no_twins)
        return _check(header, size - 8 - length)
    except OSError as error:
        raise ModelError(f"Cannot read {path.name}", value=str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path.name} is not a whole safetensors file ({error})",
            remedy="Fetch the file again",
        ) from error


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys all differ: readers do not agree on which of two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _check(header: dict[str, object], data_bytes: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        sizes = (*shape, start, end)
        if len(sizes) > MAX_DIMENSIONS or not all(
            type(n) is int and 0 <= n <= MAX_SIZE for n in sizes
        ):
            raise ValueError(f"tensor {name[:80]!r} has an impossible shape")
        wanted = (math.prod(shape) * _ITEM_BITS[dtype] + 7) // 8
        if end - start != wanted or end > data_bytes:
            raise ValueError(f"tensor {name[:80]!r} lies outside the file")
        places.append((start, end))
        tensors[name] = TensorInfo(dtype, tuple(shape))
    reached = 0
    for start, end in sorted(places):
        if start != reached:
            raise ValueError("two tensors overlap" if start < reached else "there is a gap")
        reached = end
    if reached != data_bytes:
        raise ValueError("the file is longer than its tensors")
    return tensors
