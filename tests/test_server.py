"""The application as it is served: our routes, the guard before each route, the socket."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import re
import socket
import sys
import types

import pytest
from starlette.testclient import TestClient

from studio.core.errors import BusyError, ConfigError, StoreError
from studio.hardware.platforms import held_lock
from studio.server import announce, build_app, check_host, main, open_socket
from studio.services.runs import create_run
from studio.services.settings import Settings
from studio.services.supervisor import Supervisor
from studio.tokens import TokenStore
from tests.fakes.parts import build_parts


@pytest.fixture
def studio(tmp_path):
    parts = build_parts(tmp_path / "workspace")
    settings = Settings(workspace=parts.workspace)
    return types.SimpleNamespace(
        settings=settings, runs=parts.runs, machine=parts.machine, parts=parts, closed=[],
        supervisor=Supervisor(parts), close=lambda: studio_closed.append(True),
    )  # fmt: skip


studio_closed: list[bool] = []


@pytest.fixture
def app(studio, monkeypatch):
    """The application around a page of one button."""
    import gradio

    def build_page(*_):
        with gradio.Blocks() as page:
            gradio.Button("Start training").click(lambda: None, api_name="start")
        return page

    page = types.SimpleNamespace(build_page=build_page, mount_options=dict)
    monkeypatch.setitem(sys.modules, "studio.ui.page", page)
    return build_app(studio)


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def make_run(studio):
    from studio.core.config_io import build_config

    return create_run(studio.parts, build_config({"data": {"path": "tiny.jsonl"}}))


def append(paths, *records):
    with paths.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def step(number, loss=1.0):
    return {"kind": "step", "attempt": 1, "time": "2026-01-01T00:00:00Z", "t_s": float(number),
            "step": number, "loss": loss, "learning_rate": 2e-4, "grad_norm": 0.123456789,
            "tokens_total": number * 512, "tokens_per_s": 1234.56789}  # fmt: skip


def every_route(routes, prefix=""):
    """(method, path) of all routes, those of mounted apps and included routers too."""
    for route in routes:
        path = prefix + (getattr(route, "path", None) or "")
        inner = getattr(route, "original_router", route)
        if nested := getattr(inner, "routes", None):
            yield from every_route(nested, path.rstrip("/"))
        for method in getattr(route, "methods", None) or ():
            yield method, re.sub(r"\{[^}]*\}", "x", path)


def test_guard_stands_before_every_route(app, client):
    found = set(every_route(app.routes))
    wanted = {("GET", "/healthz"), ("GET", "/api/runs/x/metrics"), ("GET", "/config"),
              ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")}  # fmt: skip
    assert wanted <= found and len(found) > 50
    for method, path in sorted(found):
        answer = client.request(method, path, headers={"host": "evil"})
        assert answer.status_code == 421, f"{method} {path} answers a foreign host"
        if method in ("POST", "PUT", "DELETE", "PATCH"):
            headers = {"origin": "http://evil.example"}
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403, f"{method} {path} answers a foreign origin"


def test_page_and_health(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    page = client.get("/")
    assert page.status_code == 200 and "Start training" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for path in ("/openapi.json", "/docs", "/redoc", "/monitoring/summary"):
        assert client.get(path).status_code in (401, 403, 404)


def test_runs_are_listed_and_shown_without_local_paths(client, studio):
    paths = make_run(studio)
    (row,) = client.get("/api/runs").json()["runs"]
    assert (row["id"], row["state"], row["method"]) == (paths.id, "queued", "LoRA r16")
    answer = client.get(f"/api/runs/{paths.id}")
    assert answer.json()["config"]["lora"]["r"] == 16
    assert str(studio.settings.workspace) not in answer.text
    assert client.get("/api/machine").json()["run"]["id"] == paths.id
    for wrong in ("nope", "..%2f..%2fetc", "%2e%2e"):
        answer = client.get(f"/api/runs/{wrong}")
        assert answer.status_code == 404 and "Traceback" not in answer.text


def test_figures_come_once_behind_the_cursor(client, studio):
    paths = make_run(studio)
    append(paths, step(1), step(2))
    url = f"/api/runs/{paths.id}/metrics"
    first = client.get(url).json()
    assert first["series"]["step"]["step"] == [1, 2] and not first["reset"]
    nothing = client.get(url, params={"since": first["cursor"]}).json()
    assert nothing["series"] == {} and nothing["cursor"] == first["cursor"]
    append(paths, step(3, None))
    paths.samples.write_text('{"step": 3, "prompt": "hi", "answer": "ho"}\n{"torn')
    third = client.get(url, params={"since": first["cursor"]}).json()
    assert third["series"]["step"]["loss"] == [None] and third["samples"][0]["answer"] == "ho"
    assert client.get(url, params={"since": third["cursor"]}).json()["samples"] == []
    beyond = client.get(url, params={"since": "999999-0"}).json()
    assert beyond["reset"] and beyond["series"]["step"]["step"] == [1, 2, 3]
    for wrong in ("x", "-1", "1", "9" * 400 + "-0", "1-2-3"):
        assert client.get(url, params={"since": wrong}).status_code == 422


def test_resumed_steps_replace_the_earlier_ones(client, studio):
    paths = make_run(studio)
    append(paths, step(1), step(2, 9.0), {"kind": "resume", "step": 1, "from_step": 1}, step(2))
    series = client.get(f"/api/runs/{paths.id}/metrics").json()["series"]
    assert series["step"]["step"] == [1, 2] and series["step"]["loss"] == [1.0, 1.0]


def test_tick_is_small_and_two_thousand_steps_are_compressed(client, studio):
    paths = make_run(studio)
    append(paths, *(step(number) for number in range(1, 2001)))
    url = f"/api/runs/{paths.id}/metrics"
    whole = client.get(url)
    assert whole.headers["content-encoding"] == "gzip"
    cursor = whole.json()["cursor"]
    device = {"kind": "device", "step": 2001, "t_s": 1.5, "rss_bytes": 1 << 30,
              "device_used_bytes": 1 << 33, "device_total_bytes": 1 << 34,
              "utilisation_pct": 97, "temperature_c": 70, "power_w": 201.5}  # fmt: skip
    append(paths, step(2001), step(2002), device)
    tick = client.get(url, params={"since": cursor}, headers={"accept-encoding": "identity"})
    assert len(tick.content) < 1000


def test_long_run_is_thinned_but_keeps_its_last_point(client, studio):
    paths = make_run(studio)
    append(paths, *(step(number) for number in range(1, 10_001)))
    steps = client.get(f"/api/runs/{paths.id}/metrics").json()["series"]["step"]["step"]
    assert 3000 < len(steps) <= 4001 and steps[0] == 1 and steps[-1] == 10_000


def test_live_state_is_told_while_the_trainer_lives(client, studio):
    paths = make_run(studio)
    state = {"state": "running", "phase": "eval", "step": 3, "total_steps": 9, "eta_s": 4.5}
    paths.state_json.write_text(json.dumps(state))
    url = f"/api/runs/{paths.id}/metrics"
    with held_lock(paths.lock):
        shown = client.get(url).json()
    assert (shown["state"], shown["phase"], shown["step"], shown["eta_s"]) == (
        "running", "eval", 3, 4.5,
    )  # fmt: skip


def test_downloads_are_zips_that_do_not_stay(client, studio):
    paths = make_run(studio)
    assert client.get(f"/api/runs/{paths.id}/adapter.zip").status_code == 404
    answer = client.get(f"/api/runs/{paths.id}/run.zip")
    assert answer.content[:2] == b"PK" and "attachment" in answer.headers["content-disposition"]
    assert not list((studio.settings.workspace / "tmp").glob("zip-*"))


def test_a_download_that_is_broken_off_or_cannot_be_made_leaves_nothing(studio, monkeypatch):
    from studio.api import download

    paths, tmp = make_run(studio), studio.settings.workspace / "tmp"

    async def gone(message=None):
        raise OSError("the other side is gone")

    scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.4"}}
    answer = download(studio.runs.zip_run(paths.id))
    with pytest.raises(OSError, match="gone"):
        asyncio.run(answer(scope, gone, gone))
    assert not list(tmp.glob("zip-*"))

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("studio.services.archive.zipfile.ZipFile.write", full)
    with pytest.raises(StoreError, match="No space left"):
        studio.runs.zip_run(paths.id)
    assert not list(tmp.glob("zip-*"))


def test_plotly_is_compressed_and_cached_for_good(client):
    from importlib import metadata

    url = f"/static/plotly-{metadata.version('plotly')}.min.js"
    packed = client.get(url)
    assert int(packed.headers["content-length"]) < 2_000_000
    assert "immutable" in packed.headers["cache-control"] and "Plotly" in packed.text
    plain = client.get(url, headers={"accept-encoding": "identity"})
    assert plain.content == packed.content and "content-encoding" not in plain.headers


def test_shutdown_closes_the_studio(app):
    studio_closed.clear()
    with TestClient(app, base_url="http://127.0.0.1:7860"):
        assert studio_closed == []
    assert studio_closed


@pytest.fixture
def taken():
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_in_use_is_told_or_passed_over(taken, tmp_path, capsys):
    with pytest.raises(BusyError, match=f"Port {taken} is in use"):
        open_socket("127.0.0.1", taken, exact=True)
    with open_socket("127.0.0.1", taken, exact=False) as other:
        assert other.getsockname()[1] > taken
    settings = Settings(workspace=tmp_path / "w", port=taken)
    assert main(settings, port_given=True, browser=False) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_open_address_is_refused(tmp_path, capsys):
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ConfigError, match="loopback"):
            check_host(host)
    assert main(Settings(tmp_path, host="0.0.0.0"), port_given=False, browser=False) == 1
    assert "loopback" in capsys.readouterr().err
    for host, port in itertools.product(("127.0.0.1",), (-1, 65536)):
        with pytest.raises(ConfigError, match="no such port"):
            open_socket(host, port, exact=True)


@pytest.mark.parametrize("has_token", [False, True])
def test_second_studio_that_listens_makes_no_token(tmp_path, capsys, has_token):
    settings = Settings(workspace=tmp_path, listen=True, read_only=True)
    known = TokenStore(tmp_path).owner_token() if has_token else None
    before = sorted(tmp_path.rglob("*"))
    announce(settings, browser=False)
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert f"?token={known}" in said if known else "token new --role owner" in said
    assert ("token=" in said) == has_token
