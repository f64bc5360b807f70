"""What a server accepts, and how it says no."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Limits:
    """Holds the bounds that a server keeps.

    Args:
        body_bytes: Of a request.
        input_tokens: Of one input, the format around it included; longer ones are refused, not cut.
        new_tokens: Of one answer.
        waiting: Answers that may wait for the model; whoever comes then is told to come later (429).
        batch: Answers that are written in one forward pass.
        window: Seconds without a new request after which a batch starts that is not full. It starts at the latest
            after ten of them.
        memory_bytes: Of adapters that are kept in memory.
    """

    body_bytes: int = 1 << 20
    input_tokens: int = 2048
    new_tokens: int = 512
    waiting: int = 1024
    batch: int = 32
    window: float = 0.004
    memory_bytes: int = 1 << 30


class Refusal(Exception):
    """Tells a client in one message why its request is refused, as an answer with a 4xx status.

    Args:
        status: Of HTTP.
        message: What arrived, what was expected, and how to mend it.
        param: The field of the request that it is about.
        retry_after: Seconds after which to try again.
    """

    def __init__(self, status: int, message: str, param: Optional[str] = None, retry_after: Optional[int] = None):
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

    def body(self) -> dict:
        """Returns the answer's JSON, in OpenAI's shape."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}

    def headers(self) -> dict[str, str]:
        """Returns the headers that go with it."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found
