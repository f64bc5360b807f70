"""`tagi vllm`: vLLM's server, whose requests name an instruction as their model."""

import json
import os

from .loading import announce
from .parsing import add_checkpoint, add_json

HELP = "a checkpoint -> vLLM's server, where a request's model is an instruction"
DESCRIPTION = (
    "Starts `vllm serve` on a checkpoint's backbone. A request whose model is `tagi:` and an instruction is answered\n"
    "with the adapter that the generator writes for it, at the first such request. Options of `vllm serve` are given\n"
    "behind the checkpoint; what is not given among --max-lora-rank, --max-loras, --max-cpu-loras and\n"
    "--served-model-name is chosen for the checkpoint. vLLM has to be installed; it serves causal backbones without\n"
    "fusion, `tagi serve` all others."
)
EXAMPLE = "tagi vllm checkpoints/smollm2-135m --names names.yaml --adapters adapters"


def add_arguments(parser):
    add_checkpoint(parser)
    parser.add_argument("--adapters", metavar="FOLDER", help="where adapters are kept, which servers may share; "
                        "default: one in the Hugging Face cache")  # fmt: skip
    parser.add_argument("--names", metavar="FILE", help="YAML with lines `name: instruction`, whose names are models "
                        "as well; default: none")  # fmt: skip
    add_json(parser, "print the command and its environment variables as JSON, and start nothing")


def take_rest(options):
    """Takes what the parser left over as vLLM's options."""
    if options.rest and not options.rest[0].startswith("-"):
        options.refuse(f"{options.rest[0]!r} is a second checkpoint, but there can be one; options begin with --")
    options.further = options.rest


def call(options) -> int:
    from ..serving.vllm_options import require_vllm, server

    announce(f"reading {options.checkpoint}")
    from ..common.console import quiet_libraries

    quiet_libraries()
    command, environment = server(options.checkpoint, options.further, options.adapters, options.names)
    if options.json:
        print(json.dumps({"command": command, "environment": environment}, indent=2))
        return 0
    require_vllm()
    os.execve(command[0], command, {**os.environ, **environment})  # nosec B606 # vLLM, as the user asked
