"""Who is asking: links with a token, cookies, lock-out and rates; one verdict for each request.

`Door.judge` is asked by the guard after Host and Origin were found good. It reads headers only, no
body, and calls nothing of the application. Which role may call what stands in `studio.rights`.

On loopback the user needs no token: nobody else reaches the port, and Host and Origin keep foreign
pages out. A token is needed once the studio listens for others, and, even on loopback, where the
request came by another name or through a proxy.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from studio.rates import LockOut, RateLimit, address_key
from studio.rights import OPEN, OWNER, VIEWER, is_page, least_role, may
from studio.tokens import Caller, TokenStore

Scope = dict[str, Any]
Header = tuple[bytes, bytes]

TOKEN_PARAMETER = "token"
VIEW = "/view"
LOCAL = Caller(OWNER, "this machine")
COOKIE_DAYS = 30
# A page is some 150 files at once, then one request a second; twenty-five viewers may share an
# address behind a router.
REQUESTS_PER_S, REQUEST_BURST = 100.0, 3000.0
STRANGER_REQUESTS_PER_S, STRANGER_BURST = 5.0, 100.0
_FORWARDED = (b"forwarded", b"via", b"x-real-ip")
# Gradio would build its addresses from these; the scheme alone it may know.
_NEVER_PASSED_ON = (
    b"forwarded", b"x-real-ip", b"x-gradio-server", b"x-gradio-user", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server",
)  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """An answer that is given without asking the application."""

    status: int
    text: str
    headers: tuple[Header, ...] = ()
    as_page: bool = False


@dataclass(frozen=True)
class Rates:
    """Requests a second and at once, of an address that is logged in and of one that is not."""

    per_s: float = REQUESTS_PER_S
    burst: float = REQUEST_BURST
    stranger_per_s: float = STRANGER_REQUESTS_PER_S
    stranger_burst: float = STRANGER_BURST


class Door:
    """Judges requests of one port.

    Args:
        tokens: whose token is whose.
        port: names the cookie, since cookies do not know ports.
        login: whether everybody needs a token; else only who comes by another name.
        public_url: where others reach the studio; its scheme decides on Secure cookies.
    """

    def __init__(
        self,
        tokens: TokenStore,
        *,
        port: int,
        login: bool,
        local_hosts: Iterable[str],
        public_url: str | None = None,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rates = rates or Rates()
        self.cookie_name = f"lora_studio_{port}"
        self._tokens = tokens
        self._login = login
        self._local_hosts = frozenset(local_hosts)
        self._public = urlsplit(public_url) if public_url else None
        self._guests = RateLimit(rates.per_s, rates.burst, clock)
        self._strangers = RateLimit(rates.stranger_per_s, rates.stranger_burst, clock)
        self._lock_out = LockOut(clock)

    def judge(self, scope: Scope, host: str) -> Caller | None | Refusal:
        """Who may go on (None: nobody in particular, to an open route), or the answer instead."""
        least = least_role(_method(scope), str(scope["path"]))
        if self._is_local(scope, host):
            return LOCAL if may(OWNER, least) else _unknown()
        key = address_key((scope.get("client") or ("?", 0))[0])
        if given := _link_token(scope):
            return self._log_in(scope, host, key, given)
        found = self._recognise(scope, key)
        if isinstance(found, Refusal):
            return found
        limit = self._guests if found else self._strangers
        if not limit.take(key):
            return Refusal(429, "Too many requests. Wait a moment.", ((b"retry-after", b"5"),))
        if least == OPEN:
            return found
        if found is None:
            return _ask_for_token(scope)
        if may(found.role, least):
            return found
        if found.role == VIEWER and scope["path"] == "/" and _method(scope) in ("GET", "HEAD"):
            return _go_to(VIEW)
        return _unknown() if found.role == OWNER else _not_yours()

    def passed_on(self, scope: Scope, host: str, caller: Caller | None) -> Scope:
        """The request as the application sees it: who asks, and no word of a proxy on where."""
        kept = [
            (name, value) for name, value in scope.get("headers", [])
            if name not in _NEVER_PASSED_ON
        ]  # fmt: skip
        passed = {**scope, "headers": kept, "studio_role": caller.role if caller else None}
        if self._public and host == self._public.netloc.lower():
            passed["scheme"] = self._public.scheme
        return passed

    def _is_local(self, scope: Scope, host: str) -> bool:
        if self._login or host not in self._local_hosts:
            return False
        names = {name for name, _ in scope.get("headers", [])}
        return not any(name in _FORWARDED or name.startswith(b"x-forwarded-") for name in names)

    def _recognise(self, scope: Scope, key: str) -> Caller | None | Refusal:
        """The caller by cookie or Authorization header; wrong ones are counted."""
        cookie, bearer = _cookie(scope, self.cookie_name), _bearer(scope)
        token = bearer or cookie
        caller = self._tokens.caller(token) if token else None
        if self._lock_out.is_locked(key):
            if caller and self._lock_out.is_known(key, caller.name):
                return caller
            return self._locked(key)
        if caller:
            self._lock_out.note_right(key, caller.name)
        elif token:
            self._lock_out.note_wrong(key, cookie=None if bearer else cookie)
        return caller

    def _log_in(self, scope: Scope, host: str, key: str, token: str) -> Refusal:
        """A link with a token: the cookie instead, and away with the token."""
        if self._lock_out.is_locked(key):
            return self._locked(key)
        caller = self._tokens.caller(token)
        if caller is None:
            self._lock_out.note_wrong(key)
            return Refusal(401, "That token opens nothing here.", as_page=True)
        self._lock_out.note_right(key, caller.name)
        life_s = COOKIE_DAYS * 86400
        cookie = f"{self.cookie_name}={token}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax"
        is_https = scope.get("scheme") == "https" or (
            self._public is not None and self._public.scheme == "https"
            and host == self._public.netloc.lower()
        )  # fmt: skip
        if is_https:
            cookie += "; Secure"
        return _go_to(_target(scope, caller), (b"set-cookie", cookie.encode("ascii")))

    def _locked(self, key: str) -> Refusal:
        wait_s = self._lock_out.wait_s(key)
        return Refusal(
            429, f"Too many wrong tokens from this address. Try again in {wait_s} s.",
            ((b"retry-after", str(wait_s).encode()),),
        )  # fmt: skip


def refusal_page(refusal: Refusal) -> str:
    """A refusal for people: what is wrong, and where a token goes."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>LoRA Studio</title>'
        '<meta name="viewport" content="width=device-width"></head><body><h1>LoRA Studio</h1>'
        f"<p>{html.escape(refusal.text)}</p>"
        '<form action="/" method="get"><label>Token '
        f'<input type="password" name="{TOKEN_PARAMETER}" autocomplete="off" required></label> '
        "<button>Open</button></form></body></html>"
    )


def _ask_for_token(scope: Scope) -> Refusal:
    return Refusal(
        401, "This studio needs a token. Open the link that it printed when it was started.",
        as_page=is_page(str(scope["path"])),
    )  # fmt: skip


def _unknown() -> Refusal:
    return Refusal(404, "There is nothing here.")


def _not_yours() -> Refusal:
    return Refusal(403, "Viewers may look at runs and chat; this is the owner's.")


def _go_to(target: str, *headers: Header) -> Refusal:
    location = (b"location", target.encode("ascii"))
    return Refusal(303, "", (location, (b"cache-control", b"no-store"), *headers))


def _target(scope: Scope, caller: Caller) -> str:
    """The caller's page with what else the link said: always ours, always without the token."""
    pairs = parse_qsl(_query(scope), keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in pairs if name != TOKEN_PARAMETER])
    path = VIEW if caller.role == VIEWER else "/"
    return f"{path}?{rest}" if rest else path


def _link_token(scope: Scope) -> str:
    """The token in the address of a page, "" where there is none."""
    if _method(scope) != "GET" or str(scope["path"]) not in ("/", VIEW):
        return ""
    pairs = parse_qsl(_query(scope), max_num_fields=None)
    return next((value for name, value in pairs if name == TOKEN_PARAMETER), "")


def _query(scope: Scope) -> str:
    return bytes(scope.get("query_string", b"")).decode("latin-1")


def _method(scope: Scope) -> str:
    return str(scope.get("method", "WEBSOCKET"))  # no route of the table is a socket


def _cookie(scope: Scope, name: str) -> str:
    for value in header_values(scope, b"cookie"):
        for part in value.split(";"):
            found, _, content = part.strip().partition("=")
            if found == name:
                return content
    return ""


def _bearer(scope: Scope) -> str:
    for value in header_values(scope, b"authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    return ""


def header_values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope.get("headers", []) if key == name]
