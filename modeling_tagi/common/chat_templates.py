"""Looks at a chat template, which is a program that comes with a tokenizer, before it is used.

Jinja's sandbox keeps it from reading and running anything, but not from taking all time or memory.
"""

import re
import sys
from typing import Any

_LONGEST = 2**17  # characters; the longest of known models have a fifth of it
_LINES = 100_000  # that may run for a few short messages; templates of known models run some hundred
_LARGEST = 2**20  # of a number or a text in it
_TOO_WIDE = re.compile(r"%[-+ #0]*\d{5,}|\{[^{}]*:[^{}]*\d{5,}")  # '%99999d', '{:99999}'
_MESSAGES = [{"role": "user", "content": "text"}, {"role": "assistant", "content": "reply"}]


class _TooMuch(Exception):
    pass


def require_bounded(tokenizer: Any, where: Any):
    """Refuses a tokenizer's chat template that takes much time or memory for two short messages, or fails.

    What it does for other messages is not known by that.

    Args:
        tokenizer: As transformers loads it.
        where: Its folder or repository, for the message.

    Raises:
        ValueError: naming what is wrong.
    """
    text = getattr(tokenizer, "chat_template", None)
    if not isinstance(text, str):
        return
    try:
        _require_small(text)
        _rendered(tokenizer)
    except Exception as error:  # Jinja's own, and whatever the template's program raises
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"the chat template of the tokenizer at {where} cannot be used ({said}); take the tokenizer from where "
            "its model was made, or make the generator with input_format='plain'"
        ) from error


def _require_small(text: str):
    """Refuses what makes something large in one step, which cannot be stopped once it runs."""
    if len(text) > _LONGEST:
        raise _TooMuch(f"it has {len(text)} characters, and at most {_LONGEST} are read")
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # not compiled, which computes what is constant
    parsed = _compile_jinja_template("").environment.parse(text)
    if next(parsed.find_all(nodes.Pow), None) is not None:
        raise _TooMuch("it computes powers")
    for constant in parsed.find_all(nodes.Const):
        value = constant.value
        if isinstance(value, (int, float)) and abs(value) > _LARGEST:
            raise _TooMuch(f"it has the number {value}")
        if isinstance(value, str) and _TOO_WIDE.search(value):
            raise _TooMuch(f"it writes texts of any width by {value!r:.40}")


def _rendered(tokenizer: Any):
    """Renders two messages, and stops when too much is done."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename != "<template>":
            return None
        lines += event == "line"
        if lines > _LINES:
            raise _TooMuch("it runs on and on")
        if any(_is_large(value) for value in frame.f_locals.values()):
            raise _TooMuch("it makes texts or lists that grow")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
    finally:
        sys.settrace(before)


def _is_large(value: Any) -> bool:
    if isinstance(value, (str, list, tuple, dict)):
        return len(value) > _LARGEST
    if any(kind.__name__ == "Namespace" for kind in type(value).__mro__):  # Jinja's, of variables in a loop
        return any(map(_is_large, value._Namespace__attrs.values()))
    return isinstance(value, int) and abs(value) > _LARGEST
