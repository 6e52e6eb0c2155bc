"""The door, by itself: what passes, what is refused, and that nothing is buffered."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from studio.guard import RequestGuard, allowed_hosts

HOME = "http://127.0.0.1:7860"


async def echo(request):
    body = await request.body()
    return JSONResponse({"bytes": len(body)}, headers={"Access-Control-Allow-Origin": "*"})


async def lenient(request):
    """Answers 400 to whatever goes wrong with the body, as form parsers do."""
    try:
        await request.body()
    except ClientDisconnect:
        return JSONResponse({"detail": "bad body"}, status_code=400)
    return JSONResponse({})


async def stream(request):
    async def parts():
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


def build(**options) -> Starlette:
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    routes = [
        Route("/api", echo, methods=methods), Route("/gradio_api/upload", echo, methods=["POST"]),
        Route("/lenient", lenient, methods=["POST"]), Route("/stream", stream),
        WebSocketRoute("/ws", socket), Mount("/", Starlette(routes=[Route("/page", echo)])),
    ]  # fmt: skip
    app = Starlette(routes=routes)
    app.add_middleware(RequestGuard, port=7860, **options)
    return app


@pytest.fixture
def client():
    return TestClient(build(max_body_bytes=100, max_upload_bytes=1000), base_url=HOME)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860",
                                  "[::1]:7860"])  # fmt: skip
def test_own_names_pass(client, host):
    assert client.get("/api", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["rebind.evil", "rebind.evil:7860", "192.168.1.7:7860", "127.0.0.1", "127.0.0.1:80",
     "127.0.0.1:7860.evil", "localhost:7860@evil", "", "0.0.0.0:7860", "127.0.0.2:7860"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/api", "/page", "/nothing-here"])
def test_other_names_are_misdirected(client, host, path):
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421 and "--allow-host" in answer.json()["error"]["text"]


def test_two_host_headers_are_refused():
    sent = []

    async def collect(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/api",
             "headers": [(b"host", b"127.0.0.1:7860"), (b"host", b"evil")]}  # fmt: skip
    asyncio.run(RequestGuard(None, port=7860)(scope, None, collect))
    assert sent[0]["status"] == 421


def test_allowed_hosts_are_exact():
    assert {"box.lan", "box.lan:7860"} <= allowed_hosts(7860, ["Box.lan"])
    assert "box.lan:1" in allowed_hosts(7860, ["box.lan:1"])
    assert "box.lan" not in allowed_hosts(7860, ["box.lan:1"])
    assert "localhost" in allowed_hosts(80, []) and "localhost" not in allowed_hosts(7860, [])
    client = TestClient(build(allow_hosts=["box.lan"]), base_url="http://box.lan:7860")
    assert client.get("/api").status_code == 200
    assert client.post("/api", headers={"origin": "http://box.lan:7860"}).status_code == 200


FOREIGN = ["http://evil.example", "null", "http://127.0.0.1:7861", "http://localhost:7860",
           "https://127.0.0.1:7860.evil", "file://", "", "chrome-extension://abc"]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_foreign_origin_may_not_write(client, origin, method):
    assert client.request(method, "/api", headers={"origin": origin}).status_code == 403


def test_own_origin_or_none_may_write(client):
    assert client.post("/api", headers={"origin": HOME}).status_code == 200
    assert client.post("/api").status_code == 200
    assert client.post("/api", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_cross_site_may_only_follow_links(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/page", headers=link).status_code == 200
    assert client.post("/api", headers=link).status_code == 403
    for mode in ("cors", "no-cors", "websocket"):
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
        assert client.get("/api", headers=headers).status_code == 403


def test_multipart_from_elsewhere_is_refused(client):
    answer = client.post("/gradio_api/upload", files={"files": b"x"},
                         headers={"origin": "http://evil.example"})  # fmt: skip
    assert answer.status_code == 403


def test_every_answer_is_dressed_and_undressed_of_cors(client):
    for path in ("/api", "/page", "/stream", "/nothing-here"):
        headers = client.get(path, headers={"origin": "http://evil.example"}).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "img-src 'self' data: blob:" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert not [name for name in headers if name.startswith("access-control")]
    assert client.get("/api", headers={"host": "evil"}).headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(("path", "limit"), [("/api", 100), ("/gradio_api/upload", 1000)])
def test_body_is_capped_whether_declared_or_streamed(client, path, limit):
    assert client.post(path, content=b"x" * limit).json() == {"bytes": limit}
    assert client.post(path, content=b"x" * (limit + 1)).status_code == 413
    pieces = (b"x" * 10 for _ in range(limit // 10 + 1))
    answer = client.post(path, content=pieces)
    assert answer.status_code == 413 and "MiB" in answer.text
    if "upload" in path:  # the page shows the body as it is
        assert answer.text.startswith("The upload is larger than") and answer.text.endswith(".")
    else:
        assert answer.json()["error"]["text"].startswith("The request is larger than")


def test_many_small_files_count_together(client):
    files = [("files", (f"{n}.bin", b"x" * 300)) for n in range(4)]
    assert client.post("/gradio_api/upload", files=files).status_code == 413


def test_cap_holds_where_the_route_swallows_the_error(client):
    pieces = (b"x" * 10 for _ in range(20))
    assert client.post("/lenient", content=pieces).status_code == 413


def test_nonsense_length_is_refused(client):
    for value in ("-1", "1e3", "99999999999999999999"):
        assert client.post("/api", headers={"content-length": value}).status_code == 413


def test_streams_pass_piece_by_piece():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            assert sent[-1]["body"] == b"%d" % number  # it left before the next one was made

    async def collect(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/",
             "headers": [(b"host", b"localhost:7860")]}  # fmt: skip
    asyncio.run(RequestGuard(app, port=7860)(scope, None, collect))
    assert len(sent) == 4


def test_sockets_are_guarded_too(client):
    url = "ws://127.0.0.1:7860/ws"
    with client.websocket_connect(url) as connection:
        assert connection.receive_text() == "hello"
    for headers in ({"origin": "http://evil.example"}, {"host": "evil"}, {"origin": "null"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(url, headers=headers):
            pass
