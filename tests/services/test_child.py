"""ChildServer against a real child process that needs no torch."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import httpx
import psutil
import pytest

from studio.backend.private_server import Lifetime
from studio.core.errors import (
    BusyError,
    ConfigError,
    OutOfMemoryError,
    StudioError,
    TargetModulesError,
)
from studio.hardware.platforms import ProcessIdentity
from studio.services.child import MAX_SOCKET_PATH_BYTES, ChildServer
from tests.waiting import wait_until

MODULE = "tests.services.echo_child"


def child_in(folder: Path, **options) -> ChildServer:
    return ChildServer(MODULE, name="echo", folder=folder, **options)


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    server = child_in(tmp_path_factory.mktemp("child"))
    yield server
    server.stop()


def test_child_answers_and_is_started_once(child):
    first = child.request("POST", "/echo", {"a": [1, "ü"]})
    assert first["echo"] == {"a": [1, "ü"]}
    assert child.request("POST", "/echo", {})["pid"] == first["pid"] == child.pid
    assert child.peek() == {"status": "ok", "phase": "idle"}


def test_child_refusal_keeps_type_and_sentence(child):
    with pytest.raises(TargetModulesError, match="No module matches .*'x_proj'.*q_proj"):
        child.request("POST", "/refuse", {})
    with pytest.raises(ConfigError) as caught:
        child.request("POST", "/refuse", {"config": True})
    assert caught.value.issues == {"lora.r": "choose 1 to 512"}


def test_child_bug_is_one_sentence_and_the_child_lives_on(child):
    pid = child.request("POST", "/echo", {})["pid"]
    with pytest.raises(StudioError, match="failed on /broken.*echo.log"):
        child.request("POST", "/broken", {})
    wait_until(lambda: "RuntimeError: a bug" in child.log_tail(), what="the traceback in the log")
    assert child.request("POST", "/echo", {})["pid"] == pid


def test_child_is_restarted_after_its_death(child):
    pid = child.request("POST", "/echo", {})["pid"]
    with pytest.raises(StudioError, match=r"exit status 3\).*the last words"):
        child.request("POST", "/crash", {})
    assert child.request("POST", "/echo", {})["pid"] != pid


def test_child_killed_by_the_system_is_named_out_of_memory(child):
    child.ensure()
    failures = []

    async def listen():
        events = child.stream("/count", {"n": 100_000, "trace": os.devnull})
        async for _ in events:
            os.kill(child.pid, signal.SIGKILL)
            break
        async for _ in events:
            pass

    try:
        asyncio.run(listen())
    except OutOfMemoryError as error:
        failures.append(str(error))
    assert failures and "want of memory" in failures[0]


def test_stream_yields_events_in_order(child, tmp_path):
    async def collect():
        body = {"n": 20, "trace": str(tmp_path / "trace")}
        return [event["n"] async for event in child.stream("/count", body)]

    assert asyncio.run(collect()) == list(range(20))


def test_closing_a_stream_ends_the_childs_work(child, tmp_path):
    trace = tmp_path / "trace"

    async def take_three():
        async with aclosing(child.stream("/count", {"n": 10**6, "trace": str(trace)})) as events:
            async for event in events:
                if event["n"] == 2:
                    return

    asyncio.run(take_three())
    wait_until(trace.exists, what="the child noticed the closed connection")


def test_stream_refusal_is_raised(child):
    async def collect():
        return [event async for event in child.stream("/refuse", {})]

    with pytest.raises(TargetModulesError):
        asyncio.run(collect())


def test_socket_and_log_are_private(child):
    child.ensure()
    endpoint = child._endpoint
    assert stat.S_IMODE(endpoint.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(endpoint.path.parent.stat().st_mode) == 0o700


def test_requests_without_the_secret_are_refused(child):
    child.ensure()
    transport = httpx.HTTPTransport(uds=str(child._endpoint.path))
    with httpx.Client(transport=transport, base_url="http://child") as client:
        assert client.get("/healthz").status_code == 403
        assert client.get("/healthz", headers={"x-studio-secret": "x"}).status_code == 403


def test_secret_is_not_on_the_command_line(child):
    child.ensure()
    assert child._endpoint.secret not in " ".join(psutil.Process(child.pid).cmdline())


def test_too_large_a_body_is_refused(child):
    with pytest.raises(StudioError, match="413"):
        child.request("POST", "/echo", {"a": "x" * (9 << 20)})


def test_long_folder_falls_back_to_a_short_socket(tmp_path):
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    server = child_in(folder)
    try:
        server.ensure()
        path = server._endpoint.path
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not path.parent.exists()


def test_loopback_tcp_works_and_asks_for_the_secret(tmp_path):
    server = child_in(tmp_path, tcp=True)
    try:
        assert server.request("POST", "/echo", {"a": 1})["echo"] == {"a": 1}
        assert httpx.get(f"{server._endpoint.base_url()}/healthz").status_code == 403
    finally:
        server.stop()


def test_failed_start_shows_what_the_child_said(tmp_path):
    server = child_in(tmp_path, extra_environment={"ECHO_FAILS": "1"})
    with pytest.raises(StudioError, match=r"exit status 1\): cannot start: no such library"):
        server.ensure()
    assert not server.is_alive()
    assert not list(tmp_path.glob("*.sock"))


def test_stop_is_idempotent_and_removes_the_socket(tmp_path):
    server = child_in(tmp_path)
    server.stop()
    server.ensure()
    identity = ProcessIdentity.of(server.pid)
    server.stop()
    server.stop()
    assert not identity.is_alive()
    assert not list(tmp_path.glob("*.sock"))


def test_stop_during_start_gives_up_with_a_sentence(tmp_path):
    server = child_in(tmp_path)
    failures = []

    def start():
        try:
            server.ensure()
        except BusyError as error:
            failures.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: server._process is not None, what="the child was launched")
    server.stop(grace_s=0.0)
    thread.join(20)
    assert not server.is_alive()
    assert not thread.is_alive()
    assert len(failures) == 1


def test_many_threads_start_one_child(tmp_path):
    server = child_in(tmp_path)
    pids = []
    threads = [
        threading.Thread(target=lambda: pids.append(server.request("POST", "/echo", {})["pid"]))
        for _ in range(6)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(pids) == 6 and len(set(pids)) == 1
    finally:
        server.stop()


def test_child_dies_with_a_killed_parent(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from studio.services.child import ChildServer\n"
        f"server = ChildServer({MODULE!r}, name='echo', folder=Path(sys.argv[1]))\n"
        "server.ensure()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as parent:
        child = ProcessIdentity.of(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: not child.is_alive(), what="the child noticed", timeout_s=20)


def test_lifetime_ends_when_idle_but_not_while_busy():
    now = [0.0]
    lifetime = Lifetime(ProcessIdentity.of(os.getpid()), idle_limit_s=900, clock=lambda: now[0])
    with lifetime.busy():
        now[0] = 5000.0
        assert lifetime.reason_to_end() is None
    now[0] = 5899.0
    assert lifetime.reason_to_end() is None
    now[0] = 5901.0
    assert lifetime.reason_to_end() == "Idle for 15 min"


def test_idle_child_ends_and_the_next_request_starts_another(tmp_path):
    server = child_in(tmp_path, extra_arguments=("--idle-limit-s", "0.2"))
    try:
        pid = server.request("POST", "/echo", {})["pid"]
        wait_until(lambda: not server.is_alive(), what="the idle child ended", timeout_s=20)
        assert server.request("POST", "/echo", {})["pid"] != pid
    finally:
        server.stop()
