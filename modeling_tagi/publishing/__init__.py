"""Cards, uploads in one commit, and adapters in files of other engines. Importing this folder gives `push_to_hub` of
models and adapters its cards, and adapters their `save_gguf`."""

import importlib
from functools import partial

from ..hub import GGUF_WRITER, PUBLISHERS


def _publish(kind: str, *args, **kwargs):
    # imported when it is first used: torch takes seconds
    return importlib.import_module(".push", __name__).push_made(kind, *args, **kwargs)


def _write_gguf(*args):
    return importlib.import_module(".gguf_adapter", __name__).write_gguf(*args)


GGUF_WRITER.append(_write_gguf)
PUBLISHERS.update({kind: partial(_publish, kind) for kind in ("checkpoint", "adapter")})
