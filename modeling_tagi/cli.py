"""The command `tagi`: adapters from instructions, what they are worth and what they cost, from the shell.

Ctrl-C is met from the first moment, so nothing is imported here that takes time.
"""

import sys

from .common.interrupts import Interrupts


def main(arguments=None) -> int:
    """Runs `tagi` and returns its exit code, as `run_command` does. Wrong arguments raise SystemExit(2)."""
    with Interrupts("tagi: interrupted"):
        from .commands import table

        return table.main(arguments)


def train(arguments=None) -> int:
    """Runs train.py, as `main` does `tagi`."""
    with Interrupts("train.py: interrupted"):
        from .commands.train import main

        return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
