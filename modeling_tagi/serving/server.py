"""Serves an application over HTTP until it is told to stop, and then finishes what it has accepted."""

import signal
import socket
from typing import Callable, Optional

import uvicorn
from fastapi import FastAPI


def serve(app: FastAPI, host: str, port: int, ready: Optional[Callable[[str], None]] = None):
    """Serves until SIGTERM or SIGINT. No new connection is taken then, and every answer that is owed is given; a
    second SIGINT ends it at once.

    Args:
        port: 0 takes one that is free.
        ready: Called with the address as soon as it takes requests.

    Raises:
        OSError: if the address cannot be used.
    """
    listening = _listen(host, port)
    config = uvicorn.Config(app, access_log=False, log_level="warning", backlog=2048)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again when it has stopped, which is no fault
        signal.signal(number, lambda *_: None)
    shown = f"[{host}]" if ":" in host else host
    _Server(config, lambda: ready and ready(f"http://{shown}:{listening.getsockname()[1]}")).run([listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]):
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self.started:
            self.ready()


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address.

    Raises:
        OSError: that names the address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"{host}:{port} cannot be served ({why}); give another --host or --port") from None
    return bound
