"""How many cases hypothesis generates: a few that are always the same, or as many new ones as TAGI_EXAMPLES says."""

import os

from hypothesis import HealthCheck, settings

_ASKED = os.environ.get("TAGI_EXAMPLES")
FEW = settings(
    max_examples=int(_ASKED or 10),
    derandomize=_ASKED is None,
    database=None,
    deadline=None,  # no test asserts a time
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=10 * FEW.max_examples)  # of what takes a millisecond
