from toy_stages import kill, make_run  # noqa: F401
from toy_trainer import make_trainer  # noqa: F401
from toy_training import *  # noqa: F401, F403
