"""One answer while it is written: a row of a batch."""

from dataclasses import dataclass, field
from typing import Callable, Optional

from ..adapter import TagiAdapter


@dataclass(eq=False)
class Row:
    """Holds what one answer is made from and with, and how far it is.

    Args:
        ids: Tokens of the input.
        adapter: Of one task; `None` for the backbone as it is.
        name: Of the adapter, by which rows of one adapter are known.
        ends: Tokens that end the answer.
        max_new_tokens: The most it may have.
        temperature: 0 takes the likeliest token.
        top_p: Tokens are drawn from the likeliest that together have this probability.
        seed: Of its draws; `None` is any.
        stop: Texts before which it ends.
        tell: Called with each new piece of the text in the thread that computes, if the answer is streamed.
    """

    ids: list[int]
    adapter: Optional[TagiAdapter] = None
    name: Optional[str] = None
    ends: tuple[int, ...] = ()
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: Optional[int] = None
    stop: tuple[str, ...] = ()
    tell: Optional[Callable[[str], None]] = None
    written: list[int] = field(default_factory=list)
    text: str = ""  # whole once `finished` says why it ended
    finished: Optional[str] = None  # "stop" or "length"
    cancelled: bool = False
    error: Optional[Exception] = None
    _told: int = 0

    @property
    def done(self) -> bool:
        return self.finished is not None or self.cancelled

    def take(self, token: int, decode: Callable[[list[int]], str]):
        """Adds a token, and notes whether the answer has ended."""
        self.written.append(token)
        if token in self.ends:
            self.finished = "stop"
        elif len(self.written) >= self.max_new_tokens:
            self.finished = "length"
        if self.finished or self.stop or self.tell:
            self._read(decode(self.written))

    def restart(self):
        """Forgets what was written, to be written again; what a client was told already stays told."""
        self.written, self.text, self.finished = [], "", None

    def _read(self, text: str):
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            text, self.finished = text[: min(found)], "stop"
        self.text = text
        if self.tell is None:
            return
        until = len(text) if self.finished else len(text) - self._unsettled(text)
        if until > self._told:
            self.tell(text[self._told: until])
            self._told = until

    def _unsettled(self, text: str) -> int:
        """Returns how many characters at the end may yet change: parts of a character, or of a text that ends it."""
        broken = len(text) - len(text.rstrip("\ufffd"))
        begun = max(
            (length for stop in self.stop for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0
        )
        return max(broken, begun)
