"""`tagi` and train.py: from the shell's arguments to an exit code.

What takes long to import is imported below `run_command`, whose handler answers Ctrl-C from the first moment.
"""

import shlex
import sys

from ..common.errors import require_utf8, run_command


def main(arguments=None) -> int:
    """Runs `tagi` and returns its exit code, as `run_command` does. Wrong arguments raise SystemExit(2)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("tagi", lambda: _tagi(arguments))


def train(arguments=None) -> int:
    """Runs train.py, which is `tagi train` where the package is not installed, and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("train.py", lambda: _train(arguments))


def _tagi(arguments: list[str]) -> int:
    from .. import __version__
    from ..common.arguments import Parser
    from .table import COMMANDS

    require_utf8(arguments)
    parser = Parser(
        prog="tagi",
        description="Adapters for language models, generated from instructions.",
        epilog="tagi COMMAND --help says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"tagi {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        own = parsers.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, epilog=f"example:\n  {module.EXAMPLE}"
        )
        module.add_arguments(own)
        own.set_defaults(refuse=own.error)
    named, own = arguments[:1], arguments[1:]
    own, rest = _split(COMMANDS.get(arguments[0]) if arguments else None, own)
    options, left_over = parser.parse_known_args(named + own)
    options.called = shlex.join(["tagi", *arguments])
    return _call(COMMANDS[options.command], options, left_over + rest, f"tagi {options.command}")


def _train(arguments: list[str]) -> int:
    from ..common.arguments import Parser
    from . import train as module

    require_utf8(arguments)
    parser = Parser(prog="train.py", description=module.DESCRIPTION)
    module.add_arguments(parser)
    own, rest = _split(module, arguments)
    options = parser.parse_args(own)
    options.refuse, options.called = parser.error, shlex.join(["train.py", *arguments])
    return _call(module, options, rest, "train.py")


def _split(module, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits the arguments into those for argparse, and those that the command reads itself."""
    return module.split(arguments) if hasattr(module, "split") else (arguments, [])


def _call(module, options, rest: list[str], name: str) -> int:
    """Gives the command the arguments that its parser left over, calls it, and returns its exit code."""
    from .parsing import refuse_rest

    options.rest = rest
    getattr(module, "take_rest", refuse_rest)(options)
    interrupted = getattr(module, "INTERRUPTED", "interrupted")
    return run_command(name, lambda: module.call(options), interrupted)


if __name__ == "__main__":
    sys.exit(main())
