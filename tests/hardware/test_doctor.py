"""The report: each problem of a machine has its line and its remedy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from studio.cli_doctor import run_doctor
from studio.hardware import doctor, machine
from studio.hardware.probe import GIB, MachineProbe


def found(**changes: Any) -> dict[str, Any]:
    """Capabilities of a machine with a good GPU, with changes."""
    gpu = {
        "index": 0,
        "name": "NVIDIA Test GPU",
        "total_bytes": 24 * GIB,
        "used_bytes": 2 * GIB,
        "compute_capability": (8, 9),
    }
    values: dict[str, Any] = {
        "cuda": True, "mps": False, "bnb": True, "bf16": True, "reasons": {},
        "torch": "torch 2.13.0, CUDA 13.0", "driver": "580.1", "gpus": [gpu], "cores": 8,
        "ram_total_bytes": 32 * GIB, "platform": "Linux x86_64",
    }  # fmt: skip
    return {**values, **changes}


def test_a_good_machine_has_no_warning() -> None:
    answers = {"cuda": True, "four_bit_device": "cuda", "four_bit_problem": None}
    assert doctor.check_torch(found(), answers).status == doctor.OK
    assert doctor.check_four_bit(found(), answers).text.endswith("trained on the GPU")
    [gpu] = doctor.check_gpus(found())
    assert gpu.text == "NVIDIA Test GPU, 24.0 GiB (22.0 GiB free), compute capability 8.9"
    assert doctor.check_paged(found()).status == doctor.OK


@pytest.mark.parametrize(
    ("changes", "answers", "text"),
    [
        ({"torch": None}, None, "not installed"),
        ({}, {"problem": "ImportError: libcudart"}, "does not work: ImportError"),
        ({"cuda": False, "reasons": {"cuda": "needs driver 580"}}, None, "needs driver 580"),
        ({}, {"cuda": False}, "torch does not see it"),
    ],
)
def test_torch_problems_have_a_remedy(changes: dict, answers: dict | None, text: str) -> None:
    check = doctor.check_torch(found(**changes), answers)
    assert check.status == doctor.WARN
    assert text in check.text
    assert check.remedy


def test_four_bit_that_fails_is_off_and_says_why() -> None:
    answers = {"four_bit_device": "cpu", "four_bit_problem": "RuntimeError: no kernel"}
    check = doctor.check_four_bit(found(cuda=False), answers)
    assert check.status == doctor.OFF
    assert "no kernel" in check.text


def test_no_gpu_is_off_not_wrong() -> None:
    machine_without = found(gpus=[], cuda=False, reasons={"cuda": "No NVIDIA driver"})
    [check] = doctor.check_gpus(machine_without)
    assert (check.status, check.text) == (doctor.OFF, "No NVIDIA driver")
    assert doctor.check_paged(machine_without).status == doctor.OFF


def test_packages_name_missing_and_other_versions() -> None:
    check = doctor.check_packages({"no-such-package": "1", "pytest": "0.1"})
    assert check.status == doctor.WARN
    assert "missing: no-such-package" in check.text
    assert "(tested: 0.1)" in check.text


def test_little_memory_and_a_full_disk_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_ram(2 * GIB).status == doctor.WARN
    monkeypatch.setattr(doctor, "free_bytes", lambda _: GIB)
    check = doctor.check_disk(tmp_path)
    assert (check.status, "1.0 GiB free" in check.text) == (doctor.WARN, True)


def test_a_workspace_on_a_share_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "file_system", lambda _: "9p")
    check = doctor.check_workspace(tmp_path / "not" / "yet" / "there")
    assert check.status == doctor.WARN
    assert "9p" in check.text
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "not writable" in doctor.check_workspace(tmp_path).text


def test_a_file_in_the_workspaces_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for workspace in (tmp_path / "file", tmp_path / "file" / "below"):
        check = doctor.check_workspace(workspace)
        assert check.status == doctor.WARN and "not a folder" in check.text


def test_ask_torch_survives_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_with(returncode: int, stdout: str, stderr: str) -> dict[str, Any]:
        done = subprocess.CompletedProcess([], returncode, stdout, stderr)
        monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
        return doctor.ask_torch()

    assert "libcudart" in run_with(1, "", "Traceback\nImportError: libcudart.so")["problem"]
    assert "exit code -9" in run_with(-9, "", "")["problem"]
    assert "something else" in run_with(0, "hello", "")["problem"]

    def too_slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(doctor.subprocess, "run", too_slow)
    assert "did not answer" in doctor.ask_torch()["problem"]


@pytest.mark.slow
def test_the_real_report_of_this_machine(tmp_path: Path) -> None:
    answer = json.loads(run_doctor(tmp_path, as_json=True))
    by_name = {check["name"]: check for check in answer["checks"]}
    assert by_name["torch"]["status"] == "ok"
    assert by_name["4-bit (QLoRA)"]["text"].partition("trained on ")[2] in ("the CPU", "the GPU")
    assert {check["status"] for check in answer["checks"]} <= {"ok", "warn", "off"}


def test_render_shows_text_and_remedy(tmp_path: Path) -> None:
    checks = doctor.report(tmp_path, probe=MachineProbe(tmp_path), deep=False)
    text = doctor.render([*checks, doctor.Check("Probe", doctor.WARN, "broken", "Mend it")])
    assert "warn  Probe" in text
    assert "-> Mend it" in text
    assert len(text.splitlines()) >= len(checks)
