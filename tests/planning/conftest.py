from toy_run import config  # noqa: F401
