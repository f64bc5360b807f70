"""What every request passes on its way in: the count, the bound on its size, and the key."""

import hmac
import json
import time
from typing import Optional

from starlette.responses import JSONResponse

from .limits import Refusal
from .metrics import Metrics

_OPEN = ("/health", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")  # without a key


class Plain(JSONResponse):
    """Writes JSON in ASCII, which holds any text, also what is no Unicode in a request that is refused."""

    def render(self, content) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def refused(refusal: Refusal) -> Plain:
    """Returns the answer that says why a request is refused."""
    return Plain(refusal.body(), refusal.status, refusal.headers())


class Counted:
    """Counts requests by the path of their route and the status of the answer, and their seconds."""

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)


class SizeGate:
    """Refuses bodies that are larger than `most` bytes, whether or not they say so beforehand."""

    def __init__(self, app, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said[:20]) > self.most:
            return await self._refuse(scope, receive, send)
        got, answered = 0, False

        async def counted():
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise _TooLarge()
            return message

        async def noted(message):
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not answered:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope, receive, send):
        answer = refused(Refusal(413, f"the body is larger than {self.most} bytes; send less at once"))
        answer.headers["Connection"] = "close"  # the rest of the body is not read
        await answer(scope, receive, send)


class _TooLarge(BaseException):
    """Passes every handler of errors on the way out."""


class KeyGate:
    """Refuses requests without the key, if there is one; compares in a time that tells nothing of it."""

    def __init__(self, app, key: Optional[str]):
        self.app, self._key = app, None if key is None else key.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and self._key is not None and scope["path"] not in _OPEN:
            kind, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._key) or kind.lower() != b"bearer":
                what = "the key is not this server's" if given else "there is no key"
                return await refused(Refusal(401, f"{what}; send it as Authorization: Bearer KEY"))(
                    scope, receive, send
                )
        await self.app(scope, receive, send)
