"""`tagi plan`: what a run will take, before anything is spent."""

import json
import time

from ..common.arguments import positive, positive_number, share
from ..training.recipes import recipe_file
from .loading import announce
from .parsing import add_json, take_fields

HELP = "a run's YAML -> parameters, memory, tokens, FLOPs and time, before anything is spent"
DESCRIPTION = (
    "Says what `tagi train CONFIG` will take: parameters, memory, disk, tokens, epochs, FLOPs and time. Nothing is\n"
    "downloaded but the backbone's configuration and tokenizer. A few steps of every stage are tried in a folder\n"
    "that is thrown away, unless --flops_per_second says another device, or they would take long. Fields of the run\n"
    "are given as for `tagi train`: --seed 1 --finetuning.steps 2000."
)
EXAMPLE = "tagi plan t5-xl-sni-def --flops_per_second 400e12 --finetuning.steps 5000"
take_rest = take_fields


def add_arguments(parser):
    add = parser.add_argument
    add("config", metavar="CONFIG", help="the run: a YAML file, or a recipe that comes along, such as quickstart")
    add("--flops_per_second", type=positive_number, metavar="X",
        help="of the device that it is to run on, as its maker has it, such as 400e12; default: this machine's, "
             "measured by products of matrices")  # fmt: skip
    add("--utilisation", type=share, default=0.4, metavar="SHARE",
        help="of that speed, what training gets; default: %(default)s")  # fmt: skip
    add("--adapters", type=positive, metavar="N",
        help="task adapters that are tuned, where the data cannot be read to count them")  # fmt: skip
    add("--without_data", action="store_true", help="do not read the data: lengths are then the limits alone")
    add_json(parser)


def call(options) -> int:
    file = recipe_file(options.config)
    announce(f"planning {file}")
    import psutil

    from ..training.settings import load_settings

    try:
        settings = load_settings(file, options.fields)
    except ValueError as error:
        if not options.fields:  # then the file is at fault
            raise
        options.refuse(str(error))
    from ..planning.plan import plan_run
    from ..planning.printed import shown

    plan = plan_run(
        settings,
        flops_per_second=options.flops_per_second,
        utilisation=options.utilisation,
        adapters=options.adapters,
        with_data=not options.without_data,
        startup=time.time() - psutil.Process().create_time(),
    )
    print(json.dumps(plan, indent=2) if options.json else shown(plan))
    return 0
