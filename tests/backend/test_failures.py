"""Whose memory ran out, whatever the exception is called and however deep it lies."""

import errno
import json
import subprocess
import sys

import pytest
import torch

from studio.backend.failures import memory_holder, out_of_memory, paused_by, translate
from studio.core.config_io import build_config
from studio.core.errors import OutOfMemoryError, StoreError
from tests.conftest import ROOT

CUDA = build_config({"runtime": {"device": "cuda:0"}})


def caused(outer, inner, *, link="__cause__"):
    setattr(outer, link, inner)
    return outer


@pytest.mark.parametrize(
    ("error", "holder"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "gpu"),
        (RuntimeError("CUDA error: out of memory"), "gpu"),
        (RuntimeError("cublas: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "gpu"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "gpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "host"),
        (RuntimeError("std::bad_alloc"), "host"),
        (RuntimeError("out of memory"), "host"),
        (MemoryError("Unable to allocate 3 GiB for an array"), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        (caused(ValueError("loading failed"), MemoryError()), "host"),
        (caused(ValueError("x"), torch.OutOfMemoryError("CUDA out of memory"), link="__context__"),
         "gpu"),
        (caused(KeyError("y"), caused(ValueError("x"), MemoryError())), "host"),
        (ValueError("out of memory"), None),
        (RuntimeError("shape mismatch"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)  # fmt: skip
def test_holder(error, holder):
    assert memory_holder(error) == holder


def test_a_chain_that_bites_its_tail_ends():
    error = ValueError("x")
    caused(error, caused(KeyError("y"), error))
    assert memory_holder(error) is None


@pytest.mark.parametrize(
    ("phase", "words"),
    [("loading", "while loading the model"), ("first_step", "in the first step"),
     ("training", "in training"), ("eval", "in an evaluation"),
     ("sampling", "while answering sample prompts"), ("saving", "while saving")],
)  # fmt: skip
def test_both_kinds_name_the_phase_and_remedies_of_their_own(phase, words):
    gpu = out_of_memory(torch.OutOfMemoryError("CUDA out of memory"), phase, CUDA)
    host = out_of_memory(MemoryError(), phase, CUDA)
    assert f"GPU memory {words}" in str(gpu)
    assert f"main memory (RAM) {words}" in str(host)
    assert "train." in gpu.remedy
    assert "close other programs" in host.remedy and "train." not in host.remedy


def test_memory_inside_another_error_is_translated():
    error = translate(caused(ValueError("load failed"), MemoryError()), "loading", None)
    assert isinstance(error, OutOfMemoryError)


def test_a_full_disk_inside_another_error_is_a_full_disk(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    error = translate(caused(RuntimeError("PytorchStreamWriter failed"), full), "saving", None)
    assert isinstance(error, StoreError)
    assert str(tmp_path / "x") in str(error)
    assert "No space left" in str(paused_by(error, 4))
    assert "goes on from step 4" in str(paused_by(error, 4))
    assert "from its beginning" in str(paused_by(error, 0))
    assert str(paused_by(error, None)).endswith("Then resume the run.")


LIMITED = """
import json, resource, psutil, torch
from studio.backend.failures import error_record, translate
held = psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (held + (96 << 20),) * 2)
try:
    kept = torch.ones(16 << 20)  # 64 MiB
    more = torch.empty(32 << 20)  # 128 MiB
except RuntimeError as error:
    print(json.dumps(error_record(translate(error, "training", None, step=3), "training")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_a_limit_of_the_process_is_told_with_its_numbers():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True,
                          cwd=ROOT, timeout=120)  # fmt: skip
    record = json.loads(done.stdout)
    memory = record["memory"]
    assert memory["asked_bytes"] == 128 << 20
    assert (memory["holder"], memory["phase"], memory["step"]) == ("host", "training", 3)
    assert 8 << 20 < memory["free_bytes"] < 64 << 20
    assert memory["budget_bytes"] == memory["used_bytes"] + memory["free_bytes"]
    assert memory["limit_bytes"] > memory["free_bytes"] + (64 << 20)
    assert "128 MiB was asked for, and" in record["text"]
    assert "that it may take was free" in record["text"]
