"""Five wrong tokens lock an address out, whatever a header says about where the client is."""

from __future__ import annotations

import asyncio
import dataclasses

import httpx
import pytest

from studio.access import Door
from studio.guard import RequestGuard, allowed_hosts
from studio.server import server_config
from studio.services.settings import Settings
from studio.tokens import TokenStore

URL = "http://127.0.0.1:7860"


async def _hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Network:
    """The studio's door as uvicorn serves it; requests come from any peer, with any headers."""

    def __init__(self, folder, **settings):
        given = dataclasses.replace(Settings(folder, listen=True), **settings)
        self.token = TokenStore(folder).owner_token()
        door = Door(TokenStore(folder), port=7860, login=True,
                    local_hosts=allowed_hosts(7860, ()), public_url=given.public_url)  # fmt: skip
        guard = RequestGuard(_hello, port=7860, allow_hosts=("studio.example",), door=door)
        config = server_config(guard, given)
        config.load()
        self.app = config.loaded_app

    def get(self, peer, path="/config", **headers):
        """Status of a request from this peer."""

        async def ask():
            transport = httpx.ASGITransport(self.app, client=(peer, 4711))
            async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return (await client.get(path, headers=named)).status_code

        return asyncio.run(ask())

    def guess(self, peer, number, **headers):
        return self.get(peer, authorization=f"Bearer guess{number}", **headers)


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "x_real_ip", "via"])
def test_a_header_neither_evades_the_lock_nor_locks_others_out(tmp_path, header):
    network = Network(tmp_path / "w")

    def claim(number):
        return {header: f"for=10.9.9.{number}" if header == "forwarded" else f"10.9.9.{number}"}

    codes = [network.guess("203.0.113.5", number, **claim(number)) for number in range(8)]
    assert codes == [401] * 5 + [429] * 3, "another claim, another five guesses"
    right = f"Bearer {network.token}"
    assert network.get("203.0.113.5", authorization=right, **claim(99)) == 429
    for number in range(8):  # those who were named have guessed nothing
        assert network.get(f"10.9.9.{number}", authorization=right) == 200
    assert network.get("127.0.0.1", authorization=right) == 200


def test_behind_a_proxy_the_address_is_the_one_the_proxy_added(tmp_path):
    network = Network(tmp_path / "w", public_url="https://studio.example")
    chains = [f"10.9.9.{number}, 203.0.113.5" for number in range(8)]
    codes = [network.guess("127.0.0.1", n, x_forwarded_for=c) for n, c in enumerate(chains)]
    assert codes == [401] * 5 + [429] * 3, "the client's own part of the header was believed"
    right = f"Bearer {network.token}"
    assert network.get("127.0.0.1", authorization=right, x_forwarded_for="203.0.113.5") == 429
    for other in ("198.51.100.7", "10.9.9.1"):
        assert network.get("127.0.0.1", authorization=right, x_forwarded_for=other) == 200


def test_somebody_past_the_proxy_cannot_speak_for_others(tmp_path):
    """Who reaches the port itself is no proxy: the header of a peer in the network is ignored."""
    network = Network(tmp_path / "w", public_url="https://studio.example")
    codes = [
        network.guess("203.0.113.5", number, x_forwarded_for=f"198.51.100.{number}")
        for number in range(8)
    ]
    assert codes == [401] * 5 + [429] * 3
    right = f"Bearer {network.token}"
    assert network.get("127.0.0.1", authorization=right, x_forwarded_for="198.51.100.1") == 200
