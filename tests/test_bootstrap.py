"""The set-up: choice of the torch build, pins, progress, one real installation, all offline."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from studio import bootstrap, torch_choice

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("system", "driver", "first"),
    [
        ("Linux", None, "cpu"),
        ("Linux", 580, "plain"),
        ("Linux", 610, "plain"),
        ("Linux", 575, "cu128"),
        ("Linux", 550, "cu126"),
        ("Linux", 470, "cpu"),
        ("Windows", None, "plain"),
        ("Windows", 581, "cu130"),
        ("Windows", 560, "cu126"),
        ("Darwin", None, "plain"),
    ],
)
def test_choose_torch_picks_the_build_for_the_machine(
    system: str, driver: int | None, first: str
) -> None:
    choice = torch_choice.choose_torch(system, driver)
    assert choice.builds[0] == first
    assert choice.builds[-1] == "plain"
    assert len(choice.reason) > 10


def test_choose_torch_obeys_the_override() -> None:
    assert torch_choice.choose_torch("Linux", None, "cu126").builds == ("cu126",)


def test_torch_arguments_take_the_first_build_on_offer() -> None:
    choice = torch_choice.choose_torch("Windows", 600)
    arguments, build = torch_choice.torch_arguments(
        choice, "2.13.0", lambda build, version: build == "cu128" and version == "2.13.0"
    )
    assert build == "cu128"
    assert arguments == [
        "torch==2.13.0+cu128", "--extra-index-url", "https://download.pytorch.org/whl/cu128",
    ]  # fmt: skip


def test_torch_arguments_fall_back_to_the_plain_pin() -> None:
    choice = torch_choice.choose_torch("Linux", None)
    arguments, build = torch_choice.torch_arguments(choice, "2.13.0", lambda *_: False)
    assert (arguments, build) == (["torch==2.13.0"], "plain")


def test_is_offered_reads_the_index_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page:
        def __enter__(self) -> Page:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def read(self) -> bytes:
            return b'<a href="/whl/cu126/torch-2.13.0%2Bcu126-cp311-cp311-linux_x86_64.whl">x</a>'

    monkeypatch.setattr(torch_choice.urllib.request, "urlopen", lambda *_, **__: Page())
    assert torch_choice.is_offered("cu126", "2.13.0")
    assert not torch_choice.is_offered("cu126", "2.12.0")


def test_is_offered_is_false_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch_choice.urllib.request, "urlopen", refuse)
    assert not torch_choice.is_offered("cpu", "2.13.0")


def test_read_pins_reads_the_repository_files() -> None:
    pins = bootstrap.read_pins(bootstrap.requirement_files(ROOT, "dev"))
    assert pins["torch"] == "2.13.0"
    assert {"gradio", "nvidia-ml-py", "pytest"} <= set(pins)
    assert "pynvml" not in pins


@pytest.mark.parametrize("line", ["torch>=2", "torch", "git+https://example.org/x", "a==1; b"])
def test_read_pins_refuses_what_is_no_exact_pin(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"# comment\n{line}\n")
    with pytest.raises(bootstrap.SetupError, match="not an exact pin"):
        bootstrap.read_pins([file])


@pytest.mark.parametrize(
    ("line", "text", "package"),
    [
        ("Collecting gradio==6.31.0 (from -r r.txt (line 3))", "resolving gradio", "gradio"),
        ("Requirement already satisfied: psutil in ./x", "resolving psutil", "psutil"),
        (
            "  Downloading torch-2.13.0%2Bcpu-cp311-linux_x86_64.whl (191.8 MB)",
            "downloading torch (191.8 MB)",
            "",
        ),
        ("Installing collected packages: a, b, c", "unpacking 3 packages", ""),
        ("Looking in indexes: file:///x", "", ""),
        (
            "Processing /srv/files/annotated_types-0.8.0-py3-none-any.whl (from x)",
            "resolving annotated_types",
            "annotated_types",
        ),
    ],
)
def test_progress_reads_lines_of_pip(line: str, text: str, package: str) -> None:
    assert bootstrap.describe(line) == text
    assert bootstrap.package_of(line) == package


def test_stamp_matches_only_the_same_files(tmp_path: Path) -> None:
    venv, file = tmp_path / ".venv", tmp_path / "requirements.txt"
    file.write_text("a==1\n")
    python = bootstrap.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    assert not bootstrap.stamp_matches(venv, [file])
    stamp = {"files": bootstrap.fingerprint([file])}
    (venv / "lora-studio.json").write_text(json.dumps(stamp))
    assert bootstrap.stamp_matches(venv, [file])
    file.write_text("a==2\n")
    assert not bootstrap.stamp_matches(venv, [file])


def test_make_venv_names_the_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(bootstrap.SetupError, match=r"apt install python3\.\d+-venv"):
        bootstrap.make_venv(tmp_path / ".venv")


def test_check_space_refuses_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: full)
    with pytest.raises(bootstrap.SetupError, match=r"1\.0 GiB are free"):
        bootstrap.check_space(tmp_path, "cpu")


def test_an_old_python_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 8, 18))
    monkeypatch.delattr(bootstrap.sys, "orig_argv")  # absent there
    with pytest.raises(SystemExit, match="1"):
        bootstrap.ensure_environment()
    assert "needs Python 3.11 or newer; this is Python 3.8" in capsys.readouterr().err


def test_the_set_up_can_be_read_by_python_3_8() -> None:
    for name in ("app.py", "studio/__init__.py", "studio/bootstrap.py", "studio/torch_choice.py"):
        ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 8))


def make_wheel(folder: Path, version: str) -> None:
    """The smallest wheel that pip installs."""
    info = f"studio_probe-{version}.dist-info"
    wheel = folder / f"studio_probe-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("studio_probe.py", f"VERSION = {version!r}\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: studio-probe\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that holds the set-up and one tiny requirement."""
    root = tmp_path / "checkout"
    (root / "studio").mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py", "torch_choice.py"):
        shutil.copy(ROOT / "studio" / name, root / "studio")
    (root / "requirements.txt").write_text("studio-probe==1.0\n")
    (root / "wheels").mkdir()
    make_wheel(root / "wheels", "1.0")
    make_wheel(root / "wheels", "1.1")
    return root


def run_bootstrap(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))
    }
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(root / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(
        [sys.executable, "-m", "studio.bootstrap", *arguments],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


SHOW = ("--", "-c", "import studio_probe, sys; print(studio_probe.VERSION, sys.prefix)")


@pytest.mark.slow
def test_set_up_installs_restarts_and_follows_upgrades(checkout: Path) -> None:
    first = run_bootstrap(checkout, *SHOW)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [f"1.0 {checkout / '.venv'}"]
    assert "Set-up done" in first.stderr

    again = run_bootstrap(checkout, *SHOW)
    assert again.stdout == first.stdout
    assert "Set-up done" not in again.stderr, "no second installation"

    (checkout / "requirements.txt").write_text("studio-probe==1.1\n")
    upgraded = run_bootstrap(checkout, *SHOW)
    assert upgraded.stdout.splitlines()[-1] == f"1.1 {checkout / '.venv'}"

    (checkout / "requirements.txt").write_text("studio-probe==9.9\n")
    failed = run_bootstrap(checkout, *SHOW)
    assert failed.returncode == 1
    assert "Set-up failed" in failed.stderr
    assert "studio-probe==9.9" in failed.stderr, "the last lines of pip are shown"
    assert "Traceback" not in failed.stderr


def test_an_environment_with_the_packages_is_left_alone(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("pytest==0.0.1\n")  # installed, another version
    done = run_bootstrap(checkout, "--", "-c", "import sys; print(sys.prefix)")
    assert done.stdout.splitlines() == [sys.prefix]
    assert not (checkout / ".venv").exists()


def test_unknown_argument_is_a_usage_error(checkout: Path) -> None:
    done = run_bootstrap(checkout, "--fast")
    assert done.returncode == 2
    assert "--fast" in done.stderr
