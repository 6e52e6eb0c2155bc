"""What is known of a training that ran out of memory: read, kept, told, and used."""

import json

import pytest

from studio.core.out_of_memory import (
    AT_LEAST,
    MemoryFault,
    OtherProgram,
    asked_and_free,
    others_text,
    parse,
    raise_factor,
    size_text,
)

GIB = 2**30
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB of "
    "which 406.69 MiB is free. Process 4242 has 9.10 GiB memory in use. Including non-PyTorch "
    "memory, this process has 14.10 GiB memory in use. 20.00 GiB allowed; Of the allocated memory "
    "12.90 GiB is allocated by PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated. If "
    "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF"
)


def test_cuda_message_is_read_whole():
    found = parse(CUDA)
    assert found["asked_bytes"] == 2 * GIB
    assert found["total_bytes"] == round(23.68 * GIB)
    assert found["free_bytes"] == round(406.69 * 2**20)
    assert found["used_bytes"] == round(14.1 * GIB)
    assert found["limit_bytes"] == 20 * GIB
    assert found["allocated_bytes"] == round(12.9 * GIB)
    assert found["unused_bytes"] == 2**29
    assert found["others"] == (OtherProgram(4242, round(9.1 * GIB)),)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096000000 bytes. "
         "Error code 12 (Cannot allocate memory)", 4_096_000_000),
        ("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)",
         round(7.28 * 2**40)),
        ("MPS backend out of memory (MPS allocated: 6.50 GB, other allocations: 384.00 KB, max "
         "allowed: 9.07 GB). Tried to allocate 2.50 GB on private pool.", round(2.5 * GIB)),
        ("std::bad_alloc", None),
        ("Tried to allocate " + "9" * 400 + " GiB", None),
    ],
)  # fmt: skip
def test_other_allocators(text, asked):
    assert parse(text).get("asked_bytes") == asked


def test_programs_of_another_system_are_not_named():
    """In a container NVML lists the host's numbers, and our own is not among them."""
    text = CUDA.replace("Including non-PyTorch memory, this process has 14.10 GiB memory in use.",
                        "Process 77 has 14.10 GiB memory in use.")  # fmt: skip
    assert "others" not in parse(text)


def test_record_comes_back_from_json_and_nonsense_is_left_out():
    fault = MemoryFault("gpu", "eval", 12, **parse(CUDA))
    assert MemoryFault.from_dict(json.loads(json.dumps(fault.to_dict()))) == fault
    for nonsense in (None, [], "x", {}, {"holder": "disk"}):
        assert MemoryFault.from_dict(nonsense) is None
    odd = {"holder": "host", "phase": 7, "step": "x", "asked_bytes": float("nan"), "free_bytes": -1,
           "used_bytes": True, "others": [3, {"pid": "y", "name": 5}]}  # fmt: skip
    assert MemoryFault.from_dict(odd) == MemoryFault("host", others=(OtherProgram(None, None),))


def test_sentences():
    fault = MemoryFault("gpu", **parse(CUDA))
    assert asked_and_free(fault) == (
        "2 GiB was asked for, and 407 MiB of the 20 GiB that it may take was free"
    )
    assert others_text(fault) == "9.1 GiB of the card belonged to process 4242"
    assert asked_and_free(MemoryFault("host")) == ""
    late = MemoryFault("host", asked_bytes=3 * 2**20, total_bytes=16 * GIB)
    assert asked_and_free(late) == "3 MiB was asked for, and so much of 16 GiB was no longer free"
    assert size_text(900) == "1 KiB"


def test_estimate_is_raised_to_what_was_needed_and_never_lowered():
    fault = MemoryFault("gpu", used_bytes=10 * GIB, asked_bytes=2 * GIB, budget_bytes=11 * GIB)
    assert fault.needed_bytes == 12 * GIB
    factor = raise_factor(fault, predicted_bytes=8 * GIB, resident_bytes=4 * GIB)
    assert 4 * GIB + factor * (8 - 4) * GIB == pytest.approx(AT_LEAST * 12 * GIB)
    assert raise_factor(fault, predicted_bytes=13 * GIB, resident_bytes=4 * GIB) == 1.0
    assert raise_factor(MemoryFault("gpu"), 8 * GIB, 4 * GIB) == 1.0
    assert raise_factor(fault, predicted_bytes=4 * GIB, resident_bytes=4 * GIB) == 1.0
