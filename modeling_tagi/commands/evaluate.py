"""`tagi evaluate`: a checkpoint's scores on any data."""

import json

from ..common.arguments import pair
from ..common.writing import naming
from ..training.setting_fields import EvaluationSettings
from .loading import announce
from .parsing import add_checkpoint, add_json
from .scored_data import add_data, settings_of

HELP = "scores on any data, beside what tells what they mean"
DESCRIPTION = "Scores a checkpoint on any data that can be read, beside the prompted backbone and other references."
EXAMPLE = "tagi evaluate me/my-generator --data tasks.jsonl --references start_prompted oracle --output_dir scores"


def add_arguments(parser):
    add_checkpoint(parser)
    add_data(parser)
    add = parser.add_argument
    usual = EvaluationSettings().references
    add("--references", nargs="*", metavar="NAME", default=usual,
        help="what is scored beside it, such as nearest_adapter or oracle (a name that is none is answered with all "
             f"that there are); default: {' '.join(usual)}")  # fmt: skip
    add("--baseline", metavar="NAME_OR_FOLDER",
        help="the backbone that is prompted and that references are made with; default: the checkpoint's own")
    add("--task_adapters", metavar="FOLDER", help="task adapters of that backbone, for nearest_adapter")
    add("--oracle", nargs="+", action="extend", default=[], type=pair, metavar="KEY=VALUE",
        help="how the oracle is tuned: steps, learning_rate, examples_per_task")  # fmt: skip
    add("--output_dir", metavar="FOLDER", help="where to write results.json, results.md and the report")
    add_json(parser, "print all results as JSON instead of tables")


def call(options) -> int:
    announce(f"loading {options.checkpoint}")
    from ..evaluation.checkpoint_scores import evaluate_checkpoint, shown

    try:
        settings = settings_of(options)
    except ValueError as error:
        options.refuse(str(error))
    with naming(settings.output_dir or "."):
        results = evaluate_checkpoint(
            options.checkpoint, settings, options.baseline, options.task_adapters, options.called
        )
    print(json.dumps(results, indent=2) if options.json else shown(results))
    return 0
