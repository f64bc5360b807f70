"""Writes the few-shot curve: tuning from the generated adapter against tuning from nothing.

    python -m modeling_tagi.studies.few_shot CHECKPOINT… --output FILES

The experiment is in few_shot_curve.py, its page in few_shot_page.py; both take seconds to import.
"""

import sys
from typing import Callable, Optional, Sequence

from ..common.arguments import Parser, positive
from ..common.errors import require_utf8, run_command

NAME = "python -m modeling_tagi.studies.few_shot"


def main(arguments: Optional[Sequence[str]] = None, announce: Callable = print) -> int:
    """Returns the exit code, as `run_command` does; `announce` is given the table."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("few_shot", lambda: _main(arguments, announce))


def _main(arguments: list[str], announce: Callable) -> int:
    require_utf8(arguments)
    parser = Parser(prog=NAME, description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="trained generators, one for each seed (0, 1, …)")
    parser.add_argument("--data", default="builtin", help="or a folder of tables, with dev and the shown split")
    parser.add_argument("--split", default="unseen", help="the one that is shown (%(default)s)")
    parser.add_argument("--sizes", nargs="+", type=positive, default=[1, 2, 4, 8, 16, 32, 64],
                        help="numbers of examples")  # fmt: skip
    parser.add_argument("--max_input_length", type=positive, default=64)
    parser.add_argument("--max_target_length", type=positive, default=16)
    parser.add_argument("--output", required=True, help="files to write, without their ending: .jsonl, .md and .png")
    options = parser.parse_args(arguments)
    from .few_shot_page import write_curve

    lengths = options.max_input_length, options.max_target_length
    command = f"{NAME} CHECKPOINT… --output FILES"
    announce(write_curve(
        options.checkpoints, options.output, options.data, options.split, options.sizes, lengths, command
    ))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
