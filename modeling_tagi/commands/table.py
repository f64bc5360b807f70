"""All commands of `tagi`, and the arguments of each."""

import shlex
import sys

from .. import __version__
from ..common.errors import require_utf8, run_command
from . import compare, evaluate, generate, plan, push, run, study, train
from .parsing import Parser

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (generate, run, train, evaluate, compare, push, study, plan)
}


def main(arguments=None) -> int:
    """Runs a command and returns its exit code, as `run_command` does. Wrong arguments raise SystemExit(2)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("tagi", lambda: _main(arguments))


def _main(arguments: list[str]) -> int:
    require_utf8(arguments)
    called = shlex.join(["tagi", *arguments])
    fields = []
    if arguments[:1] == ["train"]:
        arguments, fields = arguments[:1] + train.known(arguments[1:]), train.fields_of(arguments[1:])
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
        own.set_defaults(refuse=own.error, call=module.call)

    options, rest = parser.parse_known_args(arguments)
    options.rest = rest + fields
    options.called = called
    if options.command == "run" and not any(text.startswith("-") for text in options.rest):
        options.input += options.rest  # argparse leaves over the inputs that come after an option
    elif options.rest and not COMMANDS[options.command].TAKES_FIELDS:
        options.refuse(f"unrecognized arguments: {' '.join(options.rest)}")
    module = COMMANDS[options.command]
    interrupted = getattr(module, "INTERRUPTED", "interrupted")
    return run_command(f"tagi {options.command}", lambda: options.call(options), interrupted)
