"""`tagi release`: a checkpoint's folder as it goes to the Hub."""

import json

from .loading import announce
from .parsing import add_json

HELP = "a checkpoint -> the folder that goes to the Hub"
DESCRIPTION = (
    "Writes a checkpoint as it goes to the Hub: weights, config, code, tokenizer and card. `tagi push` uploads it.\n"
    "With --bare it is the generator alone, small enough for a repository of code, for an installed package to load."
)
EXAMPLE = "tagi release checkpoints/smollm2-135m release/tagi-smollm2-135m"


def add_arguments(parser):
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder, or USER/NAME on the Hub")
    add("folder", metavar="FOLDER", help="what is written; a checkpoint that is there is replaced")
    add("--backbone", metavar="NAME", help="the backbone to name; default: the one that the checkpoint names")
    add_json(parser, "print what was written as JSON instead of the folder alone")
    add("--bare", action="store_true", help="without code and tokenizer, in bfloat16; default: with both, as it is")


def call(options) -> int:
    announce(f"loading {options.checkpoint}")
    from ..common.console import quiet_libraries
    from ..publishing.release import release

    quiet_libraries()
    release(options.checkpoint, options.folder, backbone=options.backbone, bare=options.bare)
    said = {"folder": options.folder, "backbone": options.backbone, "bare": options.bare}
    print(json.dumps(said, indent=2) if options.json else options.folder)
    return 0
