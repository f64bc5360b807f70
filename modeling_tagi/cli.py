"""The command `tagi`: adapters from instructions, what they are worth and what they cost, from the shell."""

import shlex
import sys

from .commands import compare, evaluate, generate, plan, push, run, study
from .commands.parsing import Parser

COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in (generate, run, evaluate, compare, push, study, plan)
}


def main(arguments=None) -> int:
    """Returns the exit code: 0, or 1 after an error, which is one line. Wrong arguments raise SystemExit(2)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="tagi",
        description="Adapters for language models, generated from instructions.",
        epilog="tagi COMMAND --help says more of each.",
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        own = parsers.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, epilog=f"example:\n  {module.EXAMPLE}"
        )
        module.add_arguments(own)
        own.set_defaults(refuse=own.error, call=module.call)

    options, rest = parser.parse_known_args(arguments)
    options.rest = rest
    options.called = shlex.join(["tagi", *arguments])
    if options.command == "run" and not any(text.startswith("-") for text in options.rest):
        options.input += options.rest  # argparse leaves over the inputs that come after an option
    elif options.rest and not COMMANDS[options.command].TAKES_FIELDS:
        options.refuse(f"unrecognized arguments: {' '.join(options.rest)}")
    try:
        return options.call(options)
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, RuntimeError, ImportError)) and not _of_a_file(error):
            raise  # a fault of the program, which needs its traceback
        print(f"tagi {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tagi {options.command}: interrupted", file=sys.stderr)
        return 130


def _of_a_file(error: Exception) -> bool:
    """Whether a file of weights cannot be read: an error of its own, which is not to be imported for --help."""
    return type(error).__name__ == "SafetensorError"


if __name__ == "__main__":
    sys.exit(main())
