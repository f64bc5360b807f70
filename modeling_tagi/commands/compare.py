"""`tagi compare`: two adapters, or two checkpoints."""

import json

from .loading import announce
from .parsing import add_json
from .scored_data import add_data, settings_of

HELP = "two adapters, or two checkpoints, side by side"
DESCRIPTION = (
    "Two adapters: how alike their updates are, in all and module by module, and where each comes from.\n"
    "Two checkpoints: how their configurations differ; with --data, the scores of both and their paired difference."
)
EXAMPLE = "tagi compare runs/a/model runs/b/model --data tasks.jsonl"


def add_arguments(parser):
    parser.add_argument("first", metavar="FIRST", help="an adapter or a checkpoint: a folder, or USER/NAME on the Hub")
    parser.add_argument("second", metavar="SECOND", help="another of the same kind")
    add_data(parser.add_argument_group("checkpoints on data"))
    add_json(parser)
    parser.set_defaults(references=[], task_adapters=None, oracle=[], output_dir=None)  # of evaluate


def call(options) -> int:
    announce(f"loading {options.first} and {options.second}")
    settings = None
    if options.path is not None or options.source is not None or options.t0_eval is not None:
        try:
            settings = settings_of(options)
        except ValueError as error:
            options.refuse(str(error))
    from ..evaluation.compare import compare, shown

    found = compare(options.first, options.second, settings, options.called)
    print(json.dumps(found, indent=2) if options.json else shown(found))
    return 0
