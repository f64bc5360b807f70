"""Answers in the shapes of OpenAI's API."""

import json
import time
import uuid
from typing import Optional, Sequence

from .rows import Row


def usage_of(rows: Sequence[Row], copies: int) -> dict:
    """Returns the tokens that were read and written; `copies` answers belong to each input."""
    read, written = sum(len(row.ids) for row in rows[::copies]), sum(len(row.written) for row in rows)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Shape:
    """Makes the JSON of answers to one request.

    Args:
        chat: Whether it is of /v1/chat/completions, else of /v1/completions.
        model: The request's own name of the model.
    """

    def __init__(self, chat: bool, model: str):
        self.chat, self.model = chat, model
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, rows: Sequence[Row], copies: int) -> dict:
        """Returns the answer to a request that is not streamed."""
        choices = []
        for number, row in enumerate(rows):
            said = {"message": {"role": "assistant", "content": row.text}} if self.chat else {"text": row.text}
            choices.append({"index": number, **said, "logprobs": None, "finish_reason": row.finished})
        return {**self._head(""), "choices": choices, "usage": usage_of(rows, copies)}

    def begin(self, number: int) -> Optional[bytes]:
        """Returns the event with which an answer begins, if it has one."""
        return self._event(number, {"role": "assistant", "content": ""}) if self.chat else None

    def piece(self, number: int, text: str) -> bytes:
        """Returns the event with a piece of the text of one answer."""
        return self._event(number, {"content": text} if self.chat else text)

    def end(self, number: int, row: Row) -> bytes:
        """Returns the event that says why an answer ended."""
        return self._event(number, {} if self.chat else "", row.finished)

    def usage(self, rows: Sequence[Row], copies: int) -> bytes:
        """Returns the event with the tokens that were read and written."""
        return event({**self._head(".chunk"), "choices": [], "usage": usage_of(rows, copies)})

    def _event(self, number: int, said, finished: Optional[str] = None) -> bytes:
        choice = {"index": number, "delta" if self.chat else "text": said, "logprobs": None, "finish_reason": finished}
        return event({**self._head(".chunk"), "choices": [choice]})

    def _head(self, part: str) -> dict:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(value: dict) -> bytes:
    """Returns a server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
