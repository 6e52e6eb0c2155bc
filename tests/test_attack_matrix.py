"""Sixty attacks and twelve legitimate calls; each attack must end at the door.

The matrix is Host x Origin x method x content type x cookie. An attack carries the owner's cookie
where a browser would send it, so that nothing but the door stands between it and the studio.
"""

from __future__ import annotations

import http.server
import itertools
import threading

import pytest

from tests.door import HOME, build_house, files_of
from tests.faults.hostile_calls import run as hostile_calls
from tests.faults.site import served

OWN_HOST, LAN, EVIL = "127.0.0.1:7860", "192.168.1.7:7860", "http://evil.example"
JOIN, UPLOAD, CALL = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/call/start"
CLICK = b'{"data": [1, "x", "a", null], "fn_index": 0, "session_hash": "s"}'
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.txt"\r\n\r\n'
    b"hello\r\n--b--\r\n"
)  # fmt: skip
TYPES = {
    "json": ("application/json", CLICK), "text": ("text/plain", CLICK),
    "form": ("application/x-www-form-urlencoded", b"data=1"),
    "multipart": ("multipart/form-data; boundary=b", FORM),
}  # fmt: skip
PLACES = {
    "rebound name": ("rebind.evil:7860", "http://rebind.evil:7860"),
    "address of the network": (LAN, f"http://{LAN}"),
    "foreign page": (OWN_HOST, EVIL),
    "sandboxed page": (OWN_HOST, "null"),
    "other port": (OWN_HOST, "http://127.0.0.1:8888"),
}
# Five places x four types x owner's or viewer's cookie: 40.
FOREIGN = [
    (place, "POST", kind, role)
    for place, kind, role in itertools.product(PLACES, TYPES, ("owner", "viewer"))
]
# Four types x three callers from the right place, without the right: 12.
UNENTITLED = [
    ("own page", "POST", kind, role)
    for kind, role in itertools.product(TYPES, ("none", "wrong", "viewer"))
]
# Eight readings without the right or from a wrong place.
READINGS = [
    (place, "GET", path, role)
    for (place, role), path in itertools.product(
        (("own page", "none"), ("own page", "viewer"), ("rebound name", "owner"),
         ("framed or fetched", "owner")),
        ("/config", "/gradio_api/file=/etc/passwd"),
    )
]  # fmt: skip
CELLS = FOREIGN + UNENTITLED + READINGS
BLOCKED = (401, 403, 404, 421, 429)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    yield build_house(tmp_path_factory.mktemp("house") / "workspace", patch)
    patch.undo()


def test_the_matrix_has_sixty_cells():
    assert len(CELLS) == len(set(CELLS)) == 60


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell))
def test_attack_ends_at_the_door(house, cell):
    place, method, what, role = cell
    host, origin = PLACES.get(place, (OWN_HOST, HOME))
    headers = {"host": host}
    if method == "POST" or place == "rebound name":
        headers["origin"] = origin
    if place == "framed or fetched":
        headers |= {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    content, paths = b"", [what]
    if method == "POST":
        headers["content-type"], content = TYPES[what]
        paths = [UPLOAD] if what == "multipart" else [JOIN, CALL]
    before, clicks = files_of(house.workspace), list(house.clicks)
    for path in paths:
        answer = house.client(role).request(method, path, headers=headers, content=content)
        assert answer.status_code in BLOCKED, f"{cell} got {answer.status_code}"
        assert "access-control-allow-origin" not in answer.headers
    assert files_of(house.workspace) == before and house.clicks == clicks


LEGITIMATE = {
    "owner opens the page": ("owner", "GET", "/", {}, b"", 200),
    "owner opens it from a bookmark": ("owner", "GET", "/", {"sec-fetch-site": "none"}, b"", 200),
    "owner follows a link to it": (
        "owner", "GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                              "sec-fetch-dest": "document", "referer": EVIL}, b"", 200),
    "owner clicks Start": ("owner", "POST", CALL, {"origin": HOME}, CLICK, 200),
    "owner uploads": ("owner", "POST", UPLOAD, {"origin": HOME}, FORM, 200),
    "owner without Sec-Fetch, as on a LAN": ("owner", "POST", JOIN, {"origin": HOME}, CLICK, 200),
    "owner's program without Origin": ("owner", "GET", "/api/machine", {}, b"", 200),
    "health check": ("none", "GET", "/healthz", {}, b"", 200),
    "viewer opens the page": ("viewer", "GET", "/view", {"sec-fetch-site": "none"}, b"", 200),
    "viewer looks at a run": (
        "viewer", "GET", "/api/runs/{run}/metrics", {"sec-fetch-site": "same-origin"}, b"", 200),
    "viewer chats": (
        "viewer", "POST", "/view/chat/{run}", {"origin": HOME},
        b'{"messages": [{"role": "user", "content": "hi"}]}', 200),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGITIMATE)
def test_legitimate_call_passes(house, name):
    role, method, path, headers, content, wanted = LEGITIMATE[name]
    path = path.replace("{run}", house.runs["done"])
    kind = TYPES["multipart" if content is FORM else "json"][0]
    answer = house.client(role).request(
        method, path, headers={"content-type": kind, **headers}, content=content
    )
    assert answer.status_code == wanted, answer.text[:200]


@pytest.mark.browser
def test_token_link_on_another_site_logs_in(tmp_path):
    """The twelfth: in a real browser, where cookies and Sec-Fetch headers are its own."""
    from playwright.sync_api import sync_playwright

    from tests.browser_setup import find_chromium

    with served(tmp_path, real_port=True) as site, sync_playwright() as playwright:
        link = f"http://127.0.0.1:{site.port}/?token={site.house.tokens['viewer']}"
        with other_site(link) as elsewhere:
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.goto(elsewhere)
            page.click("a")
            page.wait_for_url("**/view")
            assert "token" not in page.url
            assert page.get_by_role("heading", name="Runs").is_visible()
            cookies = page.context.cookies()
            assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Lax")]
            page.goto(elsewhere)
            page.click("a")
            page.wait_for_url("**/view")
            page.goto(elsewhere)  # its own script, with the cookie there: nothing comes of it
            sent = page.evaluate(
                """async (url) => { try { const a = await fetch(url, {method: 'POST',
                credentials: 'include', mode: 'no-cors', body: '{}'}); return a.type; }
                catch (e) { return 'refused'; } }""",
                f"http://127.0.0.1:{site.port}/view/chat/{site.house.runs['done']}",
            )
            assert sent in ("opaque", "refused") and not site.house.studio.chat.asked
            browser.close()


@pytest.mark.browser
def test_rebound_name_reads_and_writes_nothing_in_a_real_browser(tmp_path):
    """DNS rebinding: a page of rebind.evil, whose name now leads to the studio's own address.

    For the browser both are one site with one origin, so no rule of its own stands in the way.
    """
    from playwright.sync_api import sync_playwright

    from tests.browser_setup import find_chromium

    asked = """async ([path, method]) => {
        const a = await fetch(path, {method, body: method === 'POST' ? '{}' : undefined,
                                     credentials: 'include'});
        return [a.status, await a.text()]; }"""
    with served(tmp_path, real_port=True) as site, sync_playwright() as playwright:
        before = files_of(site.house.workspace)
        browser = playwright.chromium.launch(
            executable_path=find_chromium(),
            args=["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * 127.0.0.1"],
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        token = site.house.tokens["owner"]
        page.goto(f"http://127.0.0.1:{site.port}/?token={token}")  # the owner is logged in
        evil = f"http://rebind.evil:{site.port}"
        opened = page.goto(f"{evil}/?token={token}")
        assert opened.status == 421 and "127.0.0.1" not in opened.text()
        assert all(cookie["domain"] == "127.0.0.1" for cookie in page.context.cookies())
        for path, method in (("/config", "GET"), ("/api/runs", "GET"), (CALL, "POST"),
                             (UPLOAD, "POST"), ("/healthz", "GET")):  # fmt: skip
            status, text = page.evaluate(asked, [path, method])
            assert status == 421 and site.house.runs["done"] not in text, path
        assert files_of(site.house.workspace) == before and not site.house.clicks
        browser.close()


class other_site:
    """A page on `localhost` (another site than 127.0.0.1) with one link."""

    def __init__(self, link: str) -> None:
        body = f'<!doctype html><a href="{link}">open</a>'.encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://localhost:{self._server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# Gradio counts its own events with pandas, which warns; every warning is an error in these tests.
@pytest.mark.filterwarnings("ignore")
def test_hundred_and_fifty_hostile_calls(tmp_path):
    result = hostile_calls(150, seed=3, folder=tmp_path)
    result.tell()
    assert result.is_met, "\n".join(result.failures[:5])
    assert result.trials == 150


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_the_harness_notices_a_door_that_lets_viewers_do_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("studio.access.may", lambda role, least: True)
    result = hostile_calls(200, seed=3, folder=tmp_path)
    told = "\n".join(result.failures)
    assert "viewer POST /gradio_api/" in told and "changed [" in told, told[:500]
