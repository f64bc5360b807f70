"""No test reaches the network, and whoever tries is seen."""

import socket

import pytest
from network_guard import is_here

ELSEWHERE = ["huggingface.co", "192.0.2.1", "2001:db8::1", "10.0.0.1"]  # by a name; addresses that are nobody's
HERE = ["127.0.0.1", "::1", "localhost", "0.0.0.0", ""]


def attempts(host):
    """The ways to reach a host."""
    yield lambda: socket.create_connection((host, 80), timeout=1)
    yield lambda: socket.getaddrinfo(host, 80)
    if not host[0].isalpha():  # the system looks a name up inside a connection where Python hears nothing
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        yield lambda: socket.socket(family, socket.SOCK_STREAM).connect_ex((host, 80))
        yield lambda: socket.socket(family, socket.SOCK_DGRAM).sendto(b"?", (host, 53))


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_machines_cannot_be_reached_and_the_attempt_is_kept(host, network):
    for number, attempt in enumerate(attempts(host), start=1):
        with pytest.raises(OSError, match="without a network"):
            attempt()
        assert len(network.tried) == number
    network.tried.clear()  # or this test would fail


def test_this_machine_can_be_reached(network, tmp_path):
    assert all(is_here((host, 80)) for host in HERE) and is_here(str(tmp_path / "socket")) and is_here(b"\0name")
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert not network.tried
