"""Tokens, roles, lock-out and rates; each route against each role."""

from __future__ import annotations

import os
import re
import stat

import pytest
from starlette.testclient import TestClient

from studio.access import Door, Rates
from studio.cli import main as cli
from studio.core.errors import ConfigError, StoreError
from studio.guard import RequestGuard, allowed_hosts
from studio.listening import answering_names, check_host, check_public_url, shown_url
from studio.rates import LockOut, RateLimit, address_key
from studio.rights import CLOSED, OPEN, OWNER, RIGHTS, VIEWER, is_page, least_role, may
from studio.services.settings import Settings
from studio.tokens import Caller, TokenStore
from tests.door import COOKIE, HOME, WRONG, build_house, every_route

LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


class Clock:
    """A clock that the test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    yield build_house(tmp_path_factory.mktemp("house") / "workspace", patch)
    patch.undo()


def small(tmp_path, clock=None, **options):
    """A door around an application that tells who came in."""

    async def app(scope, receive, send):
        body = f"{scope['studio_role']} {scope['scheme']} {scope['path']}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    store = TokenStore(tmp_path / "w")
    given = {"login": True, "rates": None, **options}
    hosts = given.pop("hosts", ())
    local_hosts = allowed_hosts(7860, ())
    door = Door(store, port=7860, local_hosts=local_hosts, clock=clock or Clock(), **given)
    guard = RequestGuard(app, port=7860, allow_hosts=hosts, door=door)
    return store, lambda address="10.0.0.1", **more: TestClient(
        guard, base_url=HOME, follow_redirects=False, client=(address, 1), **more
    )


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_owner_token_is_strong_private_and_stays(tmp_path):
    workspace = tmp_path / "w"
    workspace.mkdir(mode=0o755)
    token = TokenStore(workspace).owner_token()
    assert len(token) >= 43 and TokenStore(workspace).owner_token() == token
    if os.name != "nt":
        assert mode_of(workspace) == mode_of(workspace / "access") == 0o700
        assert mode_of(workspace / "access" / "owner.token") == 0o600
        (workspace / "access" / "owner.token").chmod(0o644)
        TokenStore(workspace).owner_token()
        assert mode_of(workspace / "access" / "owner.token") == 0o600


def test_viewers_have_tokens_of_their_own_kept_as_hashes(tmp_path):
    store = TokenStore(tmp_path)
    owner, vera, victor = store.owner_token(), store.new_viewer("Vera"), store.new_viewer("Victor")
    assert len({owner, vera, victor}) == 3
    other = TokenStore(tmp_path)
    assert other.caller(vera) == Caller(VIEWER, "Vera") and other.caller(owner).role == OWNER
    assert vera not in (tmp_path / "access" / "viewers.json").read_text()
    store.revoke("Vera")
    assert other.caller(vera) is None and other.caller(victor) is not None
    renewed = store.renew_owner()
    assert other.caller(owner) is None and other.caller(renewed).role == OWNER
    for wrong in ("", "x", WRONG, owner[:-1], owner + "x", "\udcff", "x" * 10_000):
        assert other.caller(wrong) is None


def test_names_of_tokens_are_checked(tmp_path):
    store = TokenStore(tmp_path)
    store.new_viewer("Vera")
    for wrong in ("", " ", "Vera", "x" * 81, "a\nb", "\x1b[31m"):
        with pytest.raises(ConfigError):
            store.new_viewer(wrong)
    with pytest.raises(ConfigError, match="no token of that name"):
        store.revoke("Victor")


def test_damaged_list_lets_no_viewer_in_and_the_owner_still(tmp_path):
    store = TokenStore(tmp_path)
    owner, vera = store.owner_token(), store.new_viewer("Vera")
    (tmp_path / "access" / "viewers.json").write_text('{"viewers": [1]}')
    assert store.caller(vera) is None and store.caller(owner).role == OWNER
    with pytest.raises(StoreError, match="damaged"):
        store.new_viewer("Victor")


def test_link_sets_the_cookie_and_takes_the_token_out(tmp_path):
    store, client = small(tmp_path)
    token = store.owner_token()
    visitor = client()
    answer = visitor.get(f"/?token={token}&__theme=dark", headers=LINK)
    assert answer.status_code == 303 and answer.headers["location"] == "/?__theme=dark"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=") and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert "Secure" not in cookie and answer.headers["cache-control"] == "no-store"
    assert visitor.get("/").text == "owner http /"
    assert token not in answer.text
    viewer = client()
    answer = viewer.get(f"/?token={store.new_viewer('Vera')}")
    assert answer.headers["location"] == "/view"
    assert viewer.get("/").headers["location"] == "/view"
    assert viewer.get("/view").text == "viewer http /view"


@pytest.mark.parametrize("path", ["/config", "/gradio_api/info", "/api/runs", "/view/runs/x"])
def test_token_is_taken_on_the_front_pages_alone(tmp_path, path):
    store, client = small(tmp_path)
    assert client().get(f"{path}?token={store.owner_token()}").status_code == 401


def test_bearer_header_is_a_token_too(tmp_path):
    store, client = small(tmp_path)
    bearer = {"authorization": f"Bearer {store.new_viewer('Vera')}"}
    assert client().get("/api/runs", headers=bearer).status_code == 200
    assert client().get("/api/machine", headers=bearer).status_code == 403


def test_without_a_token_people_are_told_and_programs_refused(tmp_path):
    store, client = small(tmp_path)
    page = client().get("/")
    assert page.status_code == 401 and "<form" in page.text and "default-src 'none'" in (
        page.headers["content-security-policy"]
    )  # fmt: skip
    assert client().get("/api/runs").json()["error"]["text"].startswith("This studio needs a token")
    assert client().get("/healthz").status_code == 200
    assert client().get("/?token=%3Cscript%3E").status_code == 401
    assert "script" not in client().get("/?token=%3Cscript%3E").text


@pytest.mark.parametrize("way", ["link", "cookie", "bearer"])
def test_five_wrong_tries_lock_the_address_out(tmp_path, way):
    clock = Clock()
    store, client = small(tmp_path, clock)
    token = store.owner_token()
    resident = client()
    assert resident.get(f"/?token={token}").status_code == 303

    def attempt(guess, address="10.0.0.1"):
        visitor = client(address)
        if way == "link":
            return visitor.get(f"/?token={guess}")
        if way == "cookie":
            return visitor.get("/config", headers={"cookie": f"{COOKIE}={guess}"})
        return visitor.get("/config", headers={"authorization": f"Bearer {guess}"})

    assert [attempt(f"guess{n}").status_code for n in range(5)] == [401] * 5
    assert attempt("guess5").status_code == 429
    locked = client().get(f"/?token={token}")
    assert locked.status_code == 429 and 0 < int(locked.headers["retry-after"]) <= 61
    assert client("10.0.0.2").get(f"/?token={token}").status_code == 303
    assert resident.get("/").status_code == 200, "a neighbour's guesses threw the owner out"
    clock.now += 61
    assert client().get(f"/?token={token}").status_code == 303


def test_a_page_with_an_old_cookie_locks_nobody_out(tmp_path):
    store, client = small(tmp_path)
    stale = {"cookie": f"{COOKIE}={WRONG}"}
    assert {client().get("/config", headers=stale).status_code for _ in range(50)} == {401}
    assert client().get(f"/?token={store.owner_token()}").status_code == 303


def test_rates_are_per_address(tmp_path):
    clock = Clock()
    store, client = small(tmp_path, clock, rates=Rates(10, 20, 1, 3))
    assert [client().get("/config").status_code for _ in range(4)] == [401, 401, 401, 429]
    assert client("10.0.0.2").get("/config").status_code == 401
    owner = {"authorization": f"Bearer {store.owner_token()}"}
    codes = [client().get("/config", headers=owner).status_code for _ in range(21)]
    assert codes == [200] * 20 + [429]
    clock.now += 1
    assert client().get("/config", headers=owner).status_code == 200


def test_limits_are_bounded_and_know_households():
    assert address_key("2001:db8::1") == address_key("2001:db8::2") != address_key("2001:db8:1::1")
    assert address_key("::ffff:10.0.0.1") == "10.0.0.1" and address_key("testclient")
    clock = Clock()
    limit, lock_out = RateLimit(1, 1, clock), LockOut(clock)
    for number in range(10_050):
        limit.take(str(number))
        lock_out.note_wrong(str(number))
    assert len(limit._buckets) <= 10_000 and len(lock_out._addresses) <= 10_000


def test_loopback_needs_no_token_but_another_name_or_a_proxy_does(tmp_path):
    store, client = small(tmp_path, login=False, hosts=("box.lan",))
    assert client().get("/").text == "owner http /"
    for headers in ({"host": "box.lan:7860"}, {"x-forwarded-for": "1.2.3.4"}, {"via": "1.1 x"},
                    {"forwarded": "for=1.2.3.4"}, {"x-real-ip": "1.2.3.4"}):  # fmt: skip
        assert client().get("/", headers=headers).status_code == 401
    bearer = {"authorization": f"Bearer {store.owner_token()}", "host": "box.lan"}
    assert client().get("/", headers=bearer).status_code == 200


def test_public_url_makes_cookies_secure_and_addresses_https(tmp_path):
    store, client = small(tmp_path, public_url="https://studio.example", hosts=("studio.example",))
    there = {"host": "studio.example", "x-forwarded-host": "evil"}
    visitor = client()
    answer = visitor.get(f"/?token={store.owner_token()}", headers=there)
    assert "; Secure" in answer.headers["set-cookie"]
    bearer = {"authorization": f"Bearer {store.owner_token()}"}
    assert client().get("/", headers={**there, **bearer}).text == "owner https /"
    assert client().get("/", headers=bearer).text == "owner http /"


def test_addresses_are_refused_or_answered(tmp_path):
    check_host("0.0.0.0", listen=True)
    with pytest.raises(ConfigError, match="--listen"):
        check_host("0.0.0.0")
    assert check_public_url("https://Studio.example/") == "https://studio.example"
    for wrong in ("studio.example", "ftp://x", "https://", "https://x/path", "https://u:p@x",
                  "https://x?token=1", "http://[", "https://x:99999"):  # fmt: skip
        with pytest.raises(ConfigError):
            check_public_url(wrong)
    settings = Settings(tmp_path, host="192.168.1.5", listen=True)
    assert "192.168.1.5:7860" in allowed_hosts(7860, answering_names(settings))
    assert shown_url(settings) == "http://192.168.1.5:7860"
    anywhere = Settings(tmp_path, host="0.0.0.0", listen=True)
    assert "0.0.0.0:7860" not in allowed_hosts(7860, answering_names(anywhere))
    assert "0.0.0.0" not in shown_url(anywhere)
    six = Settings(tmp_path, host="fd00::5", listen=True)
    assert "[fd00::5]:7860" in allowed_hosts(7860, answering_names(six))


def test_every_route_is_classified(house):
    known = {(method, right.template.rstrip("/"))
             for right in RIGHTS for method in right.methods}  # fmt: skip
    found = {("GET" if method == "HEAD" else method, path.rstrip("/"))
             for method, path in every_route(house.app.routes)}  # fmt: skip
    plotly = {path for _, path in found if path.startswith("/static/plotly-")}
    covered = {("GET", path) for path in plotly} | {("GET", "/monitoring/summary")}
    assert len(plotly) == 1 and len(found) > 60
    assert not found - known - covered, "write the new routes into studio/rights.py"
    assert not known - found, "studio/rights.py names routes that no longer exist"


def filled(template, house):
    """A path of the template, of the finished run where it names one."""
    path = template.replace("{run_id}", house.runs["done"]).replace("{name}", "view.css")
    return re.sub(r"\{[^}]*\}", "x", path)


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right.least} {right.template}")
def test_each_role_reaches_what_it_may_and_no_more(house, right):
    for method in right.methods:
        path = filled(right.template, house)
        codes = {role: house.client(role).request(method, path).status_code
                 for role in ("none", "viewer")}  # fmt: skip
        assert least_role(method, path) == right.least
        if right.least == OPEN:
            assert codes == {"none": 200, "viewer": 200}
            continue
        assert codes["none"] == 401
        if right.least == VIEWER:
            assert codes["viewer"] in (200, 422), path
        else:
            assert codes["viewer"] == (303 if path == "/" else 403), path
        if right.least == CLOSED:
            assert house.client("owner").request(method, path).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/view/../api/machine", "//", "/api/runs/x/y/z", "/VIEW", "/view\n",
     "/gradio_api", "/docs", "/openapi.json"],
)  # fmt: skip
def test_what_is_in_no_line_is_refused(path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "WEBSOCKET"):
        assert least_role(method, path) == CLOSED
    assert not may(OWNER, CLOSED) and not may(VIEWER, OWNER) and not may(None, VIEWER)
    assert not is_page("/api/runs") and is_page("/") and is_page("/view/runs/x")


def test_viewers_page_shows_runs_and_no_path(house):
    viewer = house.client("viewer")
    done, waiting = house.runs["done"], house.runs["waiting"]
    for path in ("/view", f"/view/runs/{done}", f"/view/runs/{waiting}", f"/view/chat/{done}",
                 "/api/runs", f"/api/runs/{done}/metrics"):  # fmt: skip
        answer = viewer.get(path)
        assert answer.status_code == 200 and str(house.workspace) not in answer.text
        assert "/srv/secret" not in answer.text
        assert not any(token in answer.text for token in house.tokens.values())
    assert f"/view/chat/{done}" in viewer.get(f"/view/runs/{done}").text
    assert f"/view/chat/{waiting}" not in viewer.get(f"/view/runs/{waiting}").text
    assert "'unsafe" not in viewer.get("/view").headers["content-security-policy"]


def test_names_on_the_viewers_page_are_text(house):
    done = house.runs["done"]
    house.studio.runs.rename(done, '"><img src=x onerror=alert(1)>')
    for path in ("/view", f"/view/runs/{done}", f"/view/chat/{done}"):
        text = house.client("viewer").get(path).text
        assert "<img" not in text and "&lt;img" in text


def test_viewers_chat_with_finished_adapters_alone(house):
    viewer = house.client("viewer")
    question = {"messages": [{"role": "user", "content": "hi"}], "which": "both"}
    answer = viewer.post(f"/view/chat/{house.runs['done']}", json=question)
    assert answer.status_code == 200 and "hello <b>" in answer.text
    assert str(house.workspace) not in answer.text, "an error of the machine reached a viewer"
    assert viewer.post(f"/view/chat/{house.runs['waiting']}", json=question).status_code == 404
    for wrong in (b"", b"[]", b"{", b"[" * 100_000, b'{"messages": []}', b'{"path": "/etc"}'):
        answer = viewer.post(f"/view/chat/{house.runs['done']}", content=wrong)
        assert answer.status_code == 422, wrong[:20]
    long = {"messages": [{"role": "user", "content": "x" * 9000}]}
    many = {"messages": question["messages"] * 21}
    for change in (long, many, {"max_tokens": 8192}, {"top_p": 1}, {"seed": -1}):
        answer = viewer.post(f"/view/chat/{house.runs['done']}", json={**question, **change})
        assert answer.status_code == 422, change


def test_tokens_are_made_listed_and_revoked_on_the_command_line(tmp_path, capsys):
    where = ["--workspace", str(tmp_path / "w")]
    assert cli(["token", "new", "--role", "viewer", "--name", "Vera", *where]) == 0
    token = capsys.readouterr().out.strip().rpartition("=")[2]
    store = TokenStore(tmp_path / "w")
    assert store.caller(token) == Caller(VIEWER, "Vera")
    assert cli(["token", "new", "--role", "viewer", "--name", "Vera", *where]) == 1
    assert cli(["token", "list", *where]) == 0
    out = capsys.readouterr().out
    assert "Vera" in out and token not in out
    assert cli(["token", "revoke", "Vera", *where]) == 0 and store.caller(token) is None
    assert cli(["token", "revoke", "Vera", *where]) == 1
    assert cli(["token", "new", "--role", "viewer", *where]) == 1
    assert cli(["token", "new", "--role", "owner", "--json", *where]) == 0
