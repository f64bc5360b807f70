"""Arguments that several commands share, and the handling of those that a parser does not know."""

import argparse

from ..common.arguments import fields


def take_fields(options):
    """Takes the arguments that the parser left over as a run's fields, in `options.fields`; refuses what is none."""
    try:
        options.fields = fields(options.rest)
    except ValueError as error:
        options.refuse(str(error))


def refuse_rest(options):
    """Refuses arguments that the parser left over, if there are any."""
    if options.rest:
        options.refuse(f"unrecognized arguments: {' '.join(options.rest)}")


def add_checkpoint(parser: argparse.ArgumentParser):
    """Adds the argument `checkpoint`, which the command works with."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a TAGI checkpoint: folder, or USER/NAME on the Hub")


def add_instruction(parser: argparse.ArgumentParser, help: str, **options):
    """Adds the arguments for an instruction and for the demonstrations that belong to it."""
    parser.add_argument("instruction", metavar="INSTRUCTION", help=help, **options)
    parser.add_argument(
        "--demonstration", nargs=2, action="append", metavar=("INPUT", "OUTPUT"),
        help="a worked example that belongs to the instruction; may be given several times",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser, help: str = "print the result as JSON instead"):
    """Adds the option `--json`."""
    parser.add_argument("--json", action="store_true", help=help)
