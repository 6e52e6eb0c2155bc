"""A training in the foreground of a terminal: launch, follow, Ctrl-C, and how it ended.

Ctrl-C once saves and stops, twice ends at once. The trainer is a process of its own, so closing the
terminal leaves it going. Writes progress to the stream it is given, results nowhere.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from studio.core.errors import StoreError
from studio.core.runs import DONE, FAILED, INTERRUPTED, LIVE_STATES, RunPaths, read_json
from studio.services.commands import retire_commands, write_command
from studio.services.endings import attempt_stamps, explain_vanished, fail_run, never_began
from studio.services.launcher import STOP_GRACE_S, Launcher, LocalLauncher
from studio.services.store import RunStore
from studio.services.summary import RunSummary, number

_POLL_S = 0.2
_PLAIN_LINE_S = 10.0
_BAR_CHARS = 24
EXIT_CODES = {DONE: 0, FAILED: 1, INTERRUPTED: 1}  # every other state: stopped before its end
STOPPED_EXIT_CODE = 130


class Foreground:
    """One attempt of one run, watched by this process."""

    def __init__(
        self,
        runs: RunStore,
        *,
        launcher: Launcher | None = None,
        screen: TextIO | None = None,
    ) -> None:
        self._runs = runs
        self._launcher = launcher or LocalLauncher()
        self._screen = screen or sys.stderr
        self._interrupts = 0
        self._obeyed = 0
        self._kill_at: float | None = None

    def train(self, paths: RunPaths) -> RunSummary:
        """Run the next attempt to its end."""
        retire_commands(paths)
        before = attempt_stamps(paths)
        with self._interrupts_counted():
            handle = self._launcher.start(paths)
            progress = Progress(self._screen)
            wait = threading.Event()
            while (code := self._launcher.poll(handle)) is None:
                self._obey_interrupts(paths, handle)
                progress.show(self._runs.get(paths.id))
                wait.wait(_POLL_S)
        if attempt_stamps(paths) == before:
            fail_run(paths, never_began(paths, code))
        else:
            self._explain(paths, code)
        run = self._runs.get(paths.id)
        progress.end(run)
        return run

    def _obey_interrupts(self, paths: RunPaths, handle: Any) -> None:
        while self._obeyed < self._interrupts:
            self._obeyed += 1
            if self._obeyed == 1:
                self._say("\nSaving and stopping. Ctrl-C again ends it at once.")
                write_command(paths, "stop")
            elif self._obeyed == 2:
                self._say("\nEnding now.")
                write_command(paths, "stop_now")
                self._launcher.terminate(handle)
                self._kill_at = time.monotonic() + STOP_GRACE_S
            else:
                self._kill_at = time.monotonic()
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._launcher.kill(handle)

    def _explain(self, paths: RunPaths, code: int) -> None:
        """Where the trainer left no word, write why, as far as can be told."""
        try:
            explain_vanished(paths, code)
        except StoreError as reason:
            self._say(f"Why it ended could not be written: {reason}")

    def _say(self, text: str) -> None:
        self._screen.write(text + "\n")
        self._screen.flush()

    @contextlib.contextmanager
    def _interrupts_counted(self) -> Iterator[None]:
        """SIGINT and SIGTERM count; the loop acts on them. Only the main thread may do this."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(number: int, frame: object) -> None:
            self._interrupts += 1

        previous = {s: signal.signal(s, count) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signal_number, handler in previous.items():
                signal.signal(signal_number, handler)


class Progress:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._is_terminal = screen.isatty()
        self._last_text = ""
        self._last_at = 0.0

    def show(self, run: RunSummary) -> None:
        """Show where the run is, if that changed."""
        text = progress_text(run)
        quiet_s = 0.0 if self._is_terminal else _PLAIN_LINE_S
        if text == self._last_text or time.monotonic() - self._last_at < quiet_s:
            return
        self._write(text)

    def end(self, run: RunSummary) -> None:
        """The last line."""
        self._write(progress_text(run))
        if self._is_terminal:
            self._screen.write("\n")
        self._screen.flush()

    def _write(self, text: str) -> None:
        self._last_text, self._last_at = text, time.monotonic()
        self._screen.write(f"\r\x1b[2K{text}" if self._is_terminal else f"{text}\n")
        self._screen.flush()


def progress_text(run: RunSummary) -> str:
    """For example "running [#####...] 12/30  loss 2.31  eval 2.50  4 s left"."""
    share = run.step / run.total_steps if run.total_steps else 0.0
    filled = round(min(1.0, share) * _BAR_CHARS)
    parts = [f"{run.state} [{'#' * filled}{'.' * (_BAR_CHARS - filled)}]"]
    parts.append(f"{run.step}/{run.total_steps}")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.3f}")
    if run.eval_loss is not None:
        parts.append(f"eval {run.eval_loss:.3f}")
    if run.state in LIVE_STATES:
        eta_s = number(run.state_record.get("eta_s"))
        phase = str(run.state_record.get("message") or run.state_record.get("phase") or "")
        parts += [f"{eta_s:.0f} s left"] if eta_s is not None else []
        parts += [phase] if phase and phase != "training" else []
    return "  ".join(parts)


def outcome(run: RunSummary, paths: RunPaths) -> dict[str, Any]:
    """What `train --json` prints: figures of the attempt that just ended."""
    record = read_json(paths.exit_json) or {}
    names = (
        "train_loss", "eval_loss", "eval_loss_first", "tokens_per_s", "peak_vram_bytes",
        "peak_rss_bytes", "time_to_first_step_s", "run_s", "best_step", "kept_step", "rows",
        "overhead_frac", "verdict",
    )  # fmt: skip
    has_adapter = (paths.adapter / "adapter_config.json").is_file()
    return {
        "run_id": run.id,
        "state": run.state,
        "steps": run.step,
        **{name: record.get(name) for name in names},
        "adapter_dir": str(paths.adapter) if has_adapter else None,
        "run_dir": str(paths.root),
        "error": run.error,
    }


def exit_code_of(run: RunSummary) -> int:
    """0 done, 1 failed, 130 stopped or paused."""
    return EXIT_CODES.get(run.state, STOPPED_EXIT_CODE)
