"""Where the studio listens, under which names it answers, and the link that is printed.

Knows addresses and sockets; nothing of requests or tokens.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from studio.core.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from studio.services.settings import Settings

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
PORTS_TRIED = 20


def check_host(host: str, *, listen: bool = False) -> None:
    """Raise ConfigError unless only this machine can reach the address, or tokens are in use."""
    if host not in LOOPBACK_HOSTS and not listen:
        raise ConfigError(
            "--host is not a loopback address: anybody in the network could use this studio",
            value=host, allowed=", ".join(LOOPBACK_HOSTS),
            remedy="Add --listen, which asks everybody for a token, or keep 127.0.0.1 and reach "
            "it from elsewhere through an SSH tunnel",
        )  # fmt: skip


def check_public_url(url: str | None) -> str | None:
    """The address without what follows the host. Raises ConfigError where it is none."""
    if url is None:
        return None
    try:
        parts = urlsplit(url.strip())
        is_plain = parts.path in ("", "/") and not parts.query and not parts.fragment
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid, is_plain = False, False
    if not valid or not is_plain or parts.username or parts.password:
        raise ConfigError(
            "--public-url is not an address", value=url[:200],
            allowed="https://name or https://name:port, nothing behind it",
        )  # fmt: skip
    return f"{parts.scheme}://{parts.netloc.lower()}"


def answering_names(settings: Settings) -> tuple[str, ...]:
    """Further names that the Host header may carry: given ones, and those of the bound address."""
    names = list(settings.allow_hosts)
    if settings.public_url:
        names.append(urlsplit(settings.public_url).netloc)
    if settings.host in EVERYWHERE:
        names += [_bracketed(address) for address in own_addresses()]
        names.append(socket.gethostname())
    elif settings.host not in LOOPBACK_HOSTS:
        names.append(_bracketed(settings.host))
    ported = [f"{name}:{settings.port}" for name in names if name.startswith("[")]
    return tuple(name for name in [*names, *ported] if name)


def own_addresses() -> list[str]:
    """This machine's addresses, IPv4 first, loopback and link-local left out."""
    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = ipaddress.ip_address(entry.address.partition("%")[0])
            if not (address.is_loopback or address.is_link_local):
                found.append(address)
    return [str(address) for address in sorted(found, key=lambda one: (one.version, int(one)))]


def shown_url(settings: Settings) -> str:
    """Where people open the page: the public address, else one that other machines reach."""
    if settings.public_url:
        return settings.public_url
    if settings.host in EVERYWHERE and (addresses := own_addresses()):
        return f"http://{_bracketed(addresses[0])}:{settings.port}"
    if settings.host in EVERYWHERE:
        return dataclasses.replace(settings, host="127.0.0.1").url
    return settings.url


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def open_socket(host: str, port: int, *, exact: bool) -> socket.socket:
    """A bound socket on `port`, or on the next free one unless the port was asked for.

    Raises:
        BusyError: the port (or each of the ports tried) is in use.
        ConfigError: the port cannot be used at all.
    """
    if not 0 <= port <= 65535:
        raise ConfigError("There is no such port", value=port, allowed="0 to 65535")
    candidates = [port] if exact or port == 0 else range(port, min(port + PORTS_TRIED, 65536))
    for candidate in candidates:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # on Windows it would let two servers share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
            found.listen(256)
        except OSError as error:
            found.close()
            if error.errno not in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", None)):
                raise ConfigError(
                    f"The studio cannot listen on {host}:{candidate} ({error.strerror})",
                    remedy="Choose another --port",
                ) from error
            continue
        return found
    tried = str(port) if len(candidates) == 1 else f"{port} to {candidates[-1]}"
    raise BusyError(
        f"Port {tried} is in use", remedy="Choose another --port or end what listens there"
    )
