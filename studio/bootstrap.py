"""Makes the Python environment that the studio runs in, then starts again inside it.

Owns `.venv`, the choice of the torch build, the installation with progress and its stamp. Standard
library only, and syntax that Python 3.8 can read, so that it gets a sentence instead of a
SyntaxError. It knows nothing of the studio beyond the names of its requirement files.

    python3 -m studio.bootstrap [--dev] [-- ARGUMENTS FOR PYTHON]
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from studio.torch_choice import (
    BUILD_VARIABLE,
    INDEX,
    choose_torch,
    driver_major,
    is_offered,
    torch_arguments,
)

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
RESTARTED_VARIABLE = "LORA_STUDIO_RESTARTED"
NEEDED_BYTES = {"cpu": 3 * 2**30, "cuda": 9 * 2**30}  # measured 1.8 GiB installed for the CPU
QUIET_S = 10.0  # a line at least so often, so that a long download does not look dead


class SetupError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def ensure_environment(argv: Sequence[str] | None = None, *, extra: str = "") -> None:
    """Return if every pinned package is installed here; else install into .venv and start again.

    Args:
        argv: what to run after the interpreter when starting again; as we were started by default.
        extra: "dev" adds what the tests need.
    """
    try:
        check_python()
        arguments = list(sys.orig_argv[1:] if argv is None else argv)
        _ensure(ROOT, arguments, extra)
    except SetupError as error:
        print(f"Set-up failed. {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        print(
            "\nSet-up interrupted. The same command goes on where it stopped.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def check_python() -> None:
    """Raise SetupError if this Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(f"LoRA Studio needs Python 3.11 or newer; this is Python {have}.")


def _ensure(root: Path, arguments: list[str], extra: str) -> None:
    files = requirement_files(root, extra)
    venv = root / ".venv"
    inside = Path(sys.prefix).resolve() == venv.resolve()
    missing = missing_packages(read_pins(files))
    if not missing and (not inside or stamp_matches(venv, files)):
        return
    if os.environ.get(RESTARTED_VARIABLE) and inside and missing:
        raise SetupError(
            f"These packages are still missing: {', '.join(missing)}. Delete .venv and try again."
        )
    if inside or not stamp_matches(venv, files):
        if missing and not inside:
            print(
                f"LoRA Studio sets itself up in {venv} ({len(missing)} packages missing here).",
                file=sys.stderr,
            )
        install(root, venv, files)
    start_again(venv, arguments)


# ---------------------------------------------------------------- what is needed


def requirement_files(root: Path, extra: str) -> list[Path]:
    """requirements.txt, and requirements-<extra>.txt where asked for."""
    names = ["requirements.txt"] + ([f"requirements-{extra}.txt"] if extra else [])
    return [root / name for name in names]


def read_pins(files: Iterable[Path]) -> dict[str, str]:
    """Package name -> exact version. Raises SetupError for a line that is not an exact pin."""
    pins: dict[str, str] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!-]+)", text)
            if match is None:
                raise SetupError(f"{file.name}: {text!r} is not an exact pin (name==version).")
            pins[match.group(1)] = match.group(2)
    return pins


def missing_packages(pins: Iterable[str]) -> list[str]:
    """Names of which no version is installed in the running interpreter."""
    missing = []
    for name in pins:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def fingerprint(files: Iterable[Path]) -> dict[str, str]:
    """Name -> sha256 of each requirement file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def stamp_matches(venv: Path, files: Iterable[Path]) -> bool:
    """Whether .venv was finished with exactly these requirement files, by whichever Python."""
    try:
        stamp = json.loads((venv / "lora-studio.json").read_text(encoding="utf-8"))
        done = dict(stamp["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    same = all(done.get(name) == digest for name, digest in fingerprint(files).items())
    return same and venv_python(venv).exists()


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# ---------------------------------------------------------------- installing


def install(root: Path, venv: Path, files: list[Path]) -> None:
    """Create .venv and install the pins; finished parts of an earlier try are kept."""
    started = time.monotonic()
    pins = read_pins(files)
    make_venv(venv)
    (venv / "lora-studio.json").unlink(missing_ok=True)
    pip = [
        str(venv_python(venv)), "-m", "pip", "install", "--no-input", "--progress-bar", "off",
        "--disable-pip-version-check", "--no-warn-script-location",
    ]  # fmt: skip
    log = venv / "setup.log"
    log.write_text("", encoding="utf-8")
    progress = Progress(started)
    if "torch" in pins:
        choice = choose_torch(platform.system(), driver_major(), os.environ.get(BUILD_VARIABLE))
        arguments, build = torch_arguments(choice, pins["torch"], is_offered)
        note = choice.reason
        if build != choice.builds[0]:
            note += f", but {INDEX}/{choice.builds[0]} does not answer or lacks this version"
        progress.say(f"1/2 torch {pins['torch']}, {build} build: {note}")
        check_space(venv, "cpu" if build == "cpu" else "cuda")
        run_pip([*pip, *arguments], log, progress, ["torch"])
    progress.say(f"2/2 {len(pins)} pinned packages")
    listed = [part for file in files for part in ("-r", str(file))]
    run_pip([*pip, *listed], log, progress, list(pins))
    stamp = {"files": fingerprint(files)}
    (venv / "lora-studio.json").write_text(json.dumps(stamp), encoding="utf-8")
    progress.say("Set-up done")


def make_venv(venv: Path) -> None:
    """Create the virtual environment, or keep one whose pip works."""
    python = venv_python(venv)
    if python.exists():
        test = subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True)
        if test.returncode == 0:
            return
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(
            f"This Python cannot make virtual environments. Install its package (Debian, Ubuntu: "
            f"sudo apt install {name}) and try again."
        )
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SetupError(f"{venv} cannot be made: {(done.stderr or done.stdout).strip()[-300:]}")


def check_space(venv: Path, kind: str) -> None:
    """Raise SetupError if the disk is too small, before half of it is full."""
    free = shutil.disk_usage(venv).free
    if kind == "cuda" and driver_major() is None:
        kind = "cpu"
    if free < NEEDED_BYTES[kind]:
        raise SetupError(
            f"{free / 2**30:.1f} GiB are free on the disk of {venv}, and the packages need "
            f"{NEEDED_BYTES[kind] / 2**30:.0f} GiB. Free some space and try again."
        )


class Progress:
    """Lines with elapsed seconds and percent on stderr: stdout belongs to the command itself."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.last_s = time.monotonic()

    def say(self, text: str, percent: int | None = None) -> None:
        """Print one line."""
        self.last_s = time.monotonic()
        shown = "    " if percent is None else f"{percent:3d}%"
        line = f"[{self.last_s - self.started:4.0f} s] {shown} {text}"
        print(line, file=sys.stderr, flush=True)


def run_pip(command: list[str], log: Path, progress: Progress, names: list[str]) -> None:
    """Run pip, turn its lines into progress, keep them in the log. Raises SetupError."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read_lines, args=(child, lines), name="pip", daemon=True)
    reader.start()
    tail: list[str] = []
    wanted, seen, doing = {canonical(name) for name in names}, set(), "starting"
    before, expected = len(installed_in(log.parent)), 1
    try:
        with log.open("a", encoding="utf-8") as file:
            while (line := _next_line(lines)) is not None:
                if line:
                    file.write(line + "\n")
                    tail = [*tail[-14:], line]
                    doing = describe(line) or doing
                    seen |= wanted & {canonical(package_of(line))}
                    if line.startswith("Installing collected"):
                        expected = line.count(",") + 1
                if time.monotonic() - progress.last_s > QUIET_S:
                    unpacked = (len(installed_in(log.parent)) - before) / expected
                    share = 0.6 * len(seen) / max(1, len(wanted)) + 0.4 * min(1.0, unpacked)
                    progress.say(doing, min(99, round(100 * share)))
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if child.wait() != 0:
        text = "\n  ".join(tail)
        raise SetupError(f"pip ended with code {child.returncode} (all of it: {log}):\n  {text}")


def _read_lines(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in child.stdout or ():
        lines.put(line.rstrip())
    lines.put(None)


def _next_line(lines: queue.Queue[str | None]) -> str | None:
    """The next line, "" after a second of silence, None at the end."""
    try:
        return lines.get(timeout=1.0)
    except queue.Empty:
        return ""


def canonical(name: str) -> str:
    """A package name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package_of(line: str) -> str:
    """The package a line of pip's is about, "" where none."""
    match = re.match(r"\s*(?:Collecting|Requirement already satisfied:)\s+([A-Za-z0-9._-]+)", line)
    match = match or re.match(r"\s*Processing \S*?([A-Za-z0-9._]+)-[0-9][^/\s]*\.whl", line)
    return match.group(1) if match else ""


def installed_in(venv: Path) -> list[Path]:
    """Metadata folders of the packages in a virtual environment: grows while pip unpacks."""
    folders = [*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages")]
    return [info for folder in folders for info in folder.glob("*.dist-info")]


def describe(line: str) -> str:
    """A line of pip's in a few words, "" where it says nothing new."""
    text = line.strip()
    if text.startswith("Installing collected packages"):
        return f"unpacking {text.count(',') + 1} packages"
    match = re.match(r"Downloading (?:https?://\S*/)?([A-Za-z0-9_.]+)-\S+(.*)", text)
    if match:
        return f"downloading {match.group(1)}{match.group(2)}"
    name = package_of(line)
    return f"resolving {name}" if name else ""


def start_again(venv: Path, arguments: list[str]) -> None:
    """Replace this process by the same command under .venv's Python."""
    command = [str(venv_python(venv)), *arguments]
    environment = {**os.environ, RESTARTED_VARIABLE: "1"}
    sys.stdout.flush()
    if os.name == "nt":  # execv there returns to the shell at once
        raise SystemExit(subprocess.call(command, env=environment))
    os.execve(command[0], command, environment)


def main(arguments: list[str]) -> None:
    """`[--dev] [-- ARGUMENTS]`: make the environment, then run Python with the arguments in it."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = arguments[:split], arguments[split + 1 :]
    unknown = [item for item in own if item != "--dev"]
    if unknown:
        print(f"Unknown argument {unknown[0]!r}; allowed: --dev, --", file=sys.stderr)
        raise SystemExit(2)
    ensure_environment(["-m", "studio.bootstrap", *arguments], extra="dev" if own else "")
    if rest:
        command = [sys.executable, *rest]
        sys.stdout.flush()
        if os.name == "nt":
            raise SystemExit(subprocess.call(command))
        os.execv(command[0], command)
    print(sys.executable)


if __name__ == "__main__":
    main(sys.argv[1:])
