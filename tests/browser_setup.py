"""Finds Chromium for the browser tests, or installs it by apt where that is allowed.

Standard library only. Prints what it found. Never fails: without a browser the browser tests skip
and say why. `LORA_STUDIO_CHROMIUM` names a browser of your own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, None where there is none."""
    named = os.environ.get("LORA_STUDIO_CHROMIUM")
    if named:
        return named if os.path.exists(named) else None
    for name in NAMES:
        if path := shutil.which(name):
            return path
    return None


def apt_prefix() -> list[str] | None:
    """How to call apt-get here, None where we may not."""
    if not shutil.which("apt-get") or os.environ.get("LORA_STUDIO_NO_APT"):
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo"):
        allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
        if allowed.returncode == 0:
            return ["sudo", "-n", "apt-get"]
    return None


def install_chromium(apt: list[str]) -> str | None:
    """Install the distribution's Chromium; returns what went wrong, None if nothing did."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", "chromium"]):
        try:
            done = subprocess.run(
                [*apt, *command], env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0 and command[0] == "install":
            return done.stderr.strip()[-300:]
    return None


def main() -> None:
    """Say which browser the tests will use."""
    path = find_chromium()
    if path is None and sys.platform == "linux":
        apt = apt_prefix()
        if apt is None:
            print("Chromium is missing and apt may not be used here: browser tests will skip.")
            return
        print("Chromium is missing: installing it by apt ...", flush=True)
        problem = install_chromium(apt)
        if problem:
            print(f"apt could not install Chromium, browser tests will skip: {problem}")
            return
        path = find_chromium()
    print(f"Browser for the tests: {path or 'none, browser tests will skip'}")


if __name__ == "__main__":
    main()
