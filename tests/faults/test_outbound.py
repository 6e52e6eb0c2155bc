"""What counts as a call to another machine, and, slowly, that the studio makes none."""

from __future__ import annotations

import pytest

from tests.faults.outbound import foreign_hosts, outward, run

HERE = """\
12 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT
12 connect(3, {sa_family=AF_INET, sin_port=htons(7860), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
12 connect(3, {sa_family=AF_INET6, sin6_port=htons(1), sin6_flowinfo=htonl(0), \
inet_pton(AF_INET6, "::1", &sin6_addr), sin6_scope_id=0}, 28) = 0
12 sendto(3, "GET / HTTP/1.1", 20, 0, NULL, 0) = 20
socket.connect ('127.0.0.1', 80)
socket.getaddrinfo 'localhost'
socket.connect '/run/x'
"""
AWAY = """\
12 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("3.165.1.2")}, 16) = 0
12 sendto(3, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.2")}, 16)
12 connect(3, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), \
inet_pton(AF_INET6, "2600::1", &sin6_addr), sin6_scope_id=0}, 28) = -1 ENETUNREACH
socket.connect ('3.165.1.2', 443)
socket.getaddrinfo 'huggingface.co'
"""


def test_loopback_is_no_call_and_everything_else_is():
    assert outward(HERE) == []
    found = outward(AWAY)
    assert len(found) == len(AWAY.splitlines()), found


def test_a_page_that_refers_elsewhere_is_noticed():
    own = "127.0.0.1:7860"
    fine = '<a href="https://huggingface.co">x</a><img src="/a.png"><link href="http://127.0.0.1:7860/b">'
    assert foreign_hosts(fine, own) == set()
    texts = (
        '<script src="https://cdn.example/x.js">',
        "<img src=//cdn.example/x>",
        "a{background:url(https://cdn.example/x)}",
        '@import "https://cdn.example/x";',
    )
    for text in texts:
        assert foreign_hosts(text, own) == {"cdn.example"}, text


@pytest.mark.slow
@pytest.mark.browser
def test_a_whole_visit_calls_nobody():
    result = run(1)
    result.tell()
    assert result.is_met, "\n".join(result.failures)
