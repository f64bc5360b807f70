from toy_training import *  # noqa: F401, F403
