"""Cards, and uploads in one commit. Importing this folder gives `push_to_hub` of models and adapters its cards."""

import importlib
from functools import partial

from ..hub import PUBLISHERS


def _publish(kind: str, *args, **kwargs):
    # imported when it is first used: torch takes seconds
    return importlib.import_module(".push", __name__).push_made(kind, *args, **kwargs)


PUBLISHERS.update({kind: partial(_publish, kind) for kind in ("checkpoint", "adapter")})
