"""Keeps tests off the network: only this machine can be connected to, and a test that tries anything else fails."""

import ipaddress
import sys
from typing import Any

_WITH_ADDRESS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0,
                 "socket.gethostbyname": 0}  # event -> which of its arguments says where to  # fmt: skip


class NetworkGuard:
    """Refuses connections and look-ups of names, and keeps what was tried: code under test may swallow the error.

    Python's audit events come from every socket, whoever made it. Processes that a test starts are not seen here;
    those get HF_HUB_OFFLINE from this one.
    """

    def __init__(self):
        self.tried: list[str] = []

    def install(self):
        """Works from now on, until the process ends."""
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple):
        if event in _WITH_ADDRESS:
            address = arguments[_WITH_ADDRESS[event]]
            if not is_here(address):
                self.tried.append(f"{event} {address}")
                raise OSError(f"a test tried to reach {address}; tests run without a network")


def is_here(address: Any) -> bool:
    """Tells whether a socket's address, or a host's name, is of this machine."""
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost") or isinstance(address, (str, bytes)) and str(host).startswith(("/", "\0")):
        return True  # a Unix socket's path, or no name to look up
    try:
        address = ipaddress.ip_address(host.split("%")[0])
        return address.is_loopback or address.is_unspecified
    except (AttributeError, ValueError):
        return False
