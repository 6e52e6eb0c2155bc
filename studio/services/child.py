"""A child process that serves HTTP on a private socket: start, health, requests, restart, stop.

Owns the process, its socket, its secret and its log file. The child ends by itself when this
process is gone; it never writes to a pipe of ours. Knows nothing of models or of what is served.
Thread safe; `stream` belongs to the caller's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from studio.core import errors
from studio.core.errors import ConfigError, StudioError
from studio.hardware.platforms import detached_popen_options, make_folder, store_error
from studio.hardware.threads import env_for
from studio.services.settings import PROJECT_ROOT

SECRET_HEADER = "x-studio-secret"
SECRET_VARIABLE = "LORA_STUDIO_CHILD_SECRET"
MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 on Linux, 104 on macOS, with the final zero
START_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 900.0
_POLL_S = 0.03


@dataclass(frozen=True)
class _Endpoint:
    """Where one start of the child listens."""

    path: Path
    tcp: bool
    secret: str
    own_folder: Path | None

    def base_url(self) -> str:
        if not self.tcp:
            return "http://child"
        return f"http://127.0.0.1:{json.loads(self.path.read_text())['port']}"

    def headers(self) -> dict[str, str]:
        return {SECRET_HEADER: self.secret}


class ChildServer:
    """One child of `module`, started when first needed and again after its death.

    Args:
        module: run as `python -m module --socket PATH --parent-pid PID`.
        name: names the socket, the log file and the child in messages ("chat").
        folder: where socket and log lie; created with mode 0700.
        extra_environment: laid over ours.
        extra_arguments: appended to the child's command line.
        tcp: loopback TCP instead of a unix socket; by default only on Windows.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str,
        folder: Path,
        extra_environment: Mapping[str, str] | None = None,
        extra_arguments: tuple[str, ...] = (),
        tcp: bool = os.name == "nt",
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._module = module
        self._folder = folder
        self._extra_environment = dict(extra_environment or {})
        self._extra_arguments = extra_arguments
        self._tcp = tcp
        self._start_timeout_s = start_timeout_s
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: _Endpoint | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the living child, or None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def is_alive(self) -> bool:
        """Whether a started child lives (not whether it is healthy)."""
        return self.pid is not None

    def ensure(self) -> None:
        """Start the child unless it lives; returns when it answers.

        Raises:
            StudioError: it ended or stayed silent; the message holds what it said last.
        """
        with self._lock:
            if self.is_alive():
                return
            self._clean()
            self._stopping.clear()
            self._start()
            try:
                self._wait_until_healthy()
            except BaseException:
                self.stop(grace_s=0.0)
                raise

    def stop(self, grace_s: float = 5.0) -> None:
        """End the child: ask, wait at most grace_s, then end it at once. Idempotent."""
        self._stopping.set()
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(grace_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._clean()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        ends_late: str | None = None,
    ) -> dict[str, Any]:
        """One JSON request; starts the child if needed, and once more if it had just gone.

        Args:
            ends_late: what is asked for, in words; a child that does not answer it in time is
                ended, for whoever hangs would keep the next question waiting too.

        Raises:
            StudioError: what the child refused (its own sentence and type), or that it died.
        """
        self.ensure()
        try:
            return self._send(method, path, body, timeout_s)
        except httpx.ConnectError:
            self._reap()  # it went idle between check and connection: nothing was sent, so again
        except httpx.HTTPError as error:
            raise self._gave_up(error, timeout_s, ends_late) from error
        self.ensure()
        try:
            return self._send(method, path, body, timeout_s)
        except httpx.HTTPError as error:
            raise self._gave_up(error, timeout_s, ends_late) from error

    def peek(self, path: str = "/healthz", *, timeout_s: float = 2.0) -> dict[str, Any] | None:
        """Answer of a living child to a GET, or None; never starts one."""
        if not self.is_alive():
            return None
        try:
            return self._send("GET", path, None, timeout_s)
        except (httpx.HTTPError, StudioError):
            return None

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events (`data: {...}` lines) of a POST. Closing the iterator cuts the connection, by
        which the child stops working on it."""
        await asyncio.to_thread(self.ensure)
        endpoint = self._endpoint
        if endpoint is None:
            raise self._lost(None)
        timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=5.0)
        transport = httpx.AsyncHTTPTransport(
            uds=None if endpoint.tcp else str(endpoint.path), verify=False
        )
        try:
            async with (
                httpx.AsyncClient(
                    transport=transport, base_url=endpoint.base_url(), timeout=timeout,
                    headers=endpoint.headers(), trust_env=False,
                ) as client,
                client.stream("POST", path, json=dict(body)) as response,
            ):  # fmt: skip
                if response.status_code != 200:
                    await response.aread()
                    self._raise_refusal(response)
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line[6:])
        except (httpx.HTTPError, OSError) as error:
            raise await asyncio.to_thread(self._lost, error) from error

    def log_tail(self, max_bytes: int = 4000) -> str:
        """The end of what the child wrote to its log."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - max_bytes))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _start(self) -> None:
        make_folder(self._folder)
        endpoint = self._new_endpoint()
        command = [
            # -P: a folder named "studio" in the working directory must not shadow ours.
            sys.executable, "-P", "-m", self._module, "--socket", str(endpoint.path),
            "--parent-pid", str(os.getpid()), *(("--tcp",) if endpoint.tcp else ()),
            *(("--own-folder",) if endpoint.own_folder else ()),
            *self._extra_arguments,
        ]  # fmt: skip
        paths = [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            # One thread until the model is known; the child raises it with torch.set_num_threads.
            **env_for(1, os.environ),
            "PYTHONPATH": os.pathsep.join(part for part in paths if part),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str((self._folder / "torch").absolute()),  # not /tmp
            **self._extra_environment,
            SECRET_VARIABLE: endpoint.secret,
        }
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            environment.pop(name, None)  # it is offline and needs no token
        try:
            with self.log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env=environment, **detached_popen_options(),
                )  # fmt: skip
        except OSError as error:
            raise store_error(self.log_file, error) from error
        self._endpoint = endpoint

    def _new_endpoint(self) -> _Endpoint:
        token = secrets.token_hex(4)
        path = (self._folder / f"{self.name}-{token}.sock").absolute()
        own_folder = None
        if not self._tcp and len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            own_folder = Path(tempfile.mkdtemp(prefix="lora-studio-"))  # mode 0700
            path = own_folder / f"{self.name}.sock"
        return _Endpoint(path, self._tcp, secrets.token_urlsafe(32), own_folder)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise self._lost(None)
            if self._stopping.is_set():
                raise errors.BusyError(
                    f"The {self.name} process was stopped while it started", remedy="Try again"
                )
            if self._endpoint and self._endpoint.path.exists() and self.peek() is not None:
                return
            self._stopping.wait(_POLL_S)
        raise StudioError(
            f"The {self.name} process did not answer within {self._start_timeout_s:.0f} s",
            remedy=f"See {self.log_file}",
        )

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> dict[str, Any]:
        endpoint = self._endpoint
        if endpoint is None:
            raise httpx.ConnectError("not started")
        transport = httpx.HTTPTransport(
            uds=None if endpoint.tcp else str(endpoint.path), verify=False
        )
        try:
            base_url = endpoint.base_url()
        except (OSError, ValueError) as error:
            raise httpx.ConnectError("no port yet") from error
        with httpx.Client(
            transport=transport, base_url=base_url, timeout=timeout_s, trust_env=False,
            headers=endpoint.headers(),
        ) as client:  # fmt: skip
            response = client.request(method, path, json=None if body is None else dict(body))
        if response.status_code != 200:
            self._raise_refusal(response)
        return dict(orjson.loads(response.content))

    def _raise_refusal(self, response: httpx.Response) -> None:
        if response.status_code == 422:
            raise error_from_dict(response.json()["error"])
        raise StudioError(
            f"The {self.name} process failed on {response.request.url.path}",
            value=response.status_code, remedy=f"See {self.log_file}",
        )  # fmt: skip

    def _gave_up(
        self, error: httpx.HTTPError, timeout_s: float, ends_late: str | None
    ) -> StudioError:
        if ends_late is None or not isinstance(error, httpx.TimeoutException):
            return self._lost(error)
        self.stop(grace_s=0.0)
        return late_error(ends_late, timeout_s)

    def _lost(self, error: Exception | None) -> StudioError:
        """What to tell when the child does not answer any more."""
        if isinstance(error, httpx.TimeoutException):
            return StudioError(
                f"The {self.name} process gave no answer in time", remedy="Try again"
            )
        status = self._reap()
        if self._stopping.is_set():
            return errors.BusyError(f"The {self.name} process was stopped", remedy="Try again")
        if status is None and self.is_alive():
            return StudioError(
                f"The {self.name} process broke the connection", remedy=f"See {self.log_file}"
            )
        if status == -9:
            return errors.OutOfMemoryError(
                f"The {self.name} process was killed by the system, most likely for want of memory",
                remedy="Close other programs or choose a smaller model",
            )
        lines = [line.strip() for line in self.log_tail().splitlines() if line.strip()]
        last = f": {lines[-1][:300]}" if lines else ""
        return StudioError(
            f"The {self.name} process ended (exit status {status}){last}",
            remedy=f"Try again; its log is {self.log_file}",
        )

    def _reap(self) -> int | None:
        process = self._process
        if process is None:
            return None
        try:
            return process.wait(2.0)  # the socket closes a moment before the process is gone
        except subprocess.TimeoutExpired:
            return process.poll()

    def _clean(self) -> None:
        endpoint, self._endpoint, self._process = self._endpoint, None, None
        if endpoint is not None:
            with contextlib.suppress(OSError):
                endpoint.path.unlink(missing_ok=True)
            if endpoint.own_folder is not None:
                shutil.rmtree(endpoint.own_folder, ignore_errors=True)


def late_error(asked: str, limit_s: float) -> StudioError:
    """What to tell when a child was ended because it hung."""
    return StudioError(
        f"{asked} took longer than {limit_s:.0f} s, so the process that did it was ended",
        remedy="Try again; if it happens again, close other programs or choose another model",
    )


def error_from_dict(record: Mapping[str, Any]) -> StudioError:
    """The StudioError that a child sent, with its own type."""
    found = getattr(errors, str(record.get("type")), StudioError)
    kind = found if isinstance(found, type) and issubclass(found, StudioError) else StudioError
    parts = {key: record.get(key) for key in ("value", "allowed", "remedy")}
    what = str(record.get("what") or record.get("text") or "The child process refused")
    if kind is ConfigError:
        return ConfigError(what, issues=dict(record.get("issues") or {}), **parts)
    return kind(what, **parts)
