"""`tagi export`: an adapter folder in, a file for another engine out."""

import json

from .parsing import add_json

HELP = "adapter folder -> GGUF LoRA for llama.cpp"
DESCRIPTION = (
    "Writes an adapter as a GGUF LoRA, which llama.cpp applies to a GGUF base: llama-server -m BASE --lora FILE.\n"
    "PEFT and vLLM read the adapter's folder as it is."
)
EXAMPLE = "tagi export adapters/french adapters/french.gguf"


def add_arguments(parser):
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", help="a folder that `tagi generate` or PEFT wrote, or USER/NAME on the Hub")
    add("file", metavar="FILE.gguf", help="the file to write; an adapter that is there is replaced")
    add("--base_model", metavar="NAME",
        help="the model it is for, a folder, USER/NAME on the Hub, or a GGUF file, which is compared by shapes; "
             "default: the one that the adapter names")  # fmt: skip
    add("--name", metavar="TEXT", help="its name in the file; default: the file's own")
    add_json(parser, "print the file, shape and provenance as JSON instead of the file alone")


def call(options) -> int:
    if not options.file.endswith(".gguf"):
        options.refuse(f"FILE.gguf is {options.file!r}, but must be a name that ends in .gguf")
    from .loading import load_adapter

    adapter = load_adapter(options.adapter)
    adapter.save_gguf(options.file, options.base_model, options.name)
    if options.json:
        print(json.dumps({
            "file": options.file,
            "rank": adapter.rank,
            "lora_alpha": adapter.lora_alpha,
            "modules": len(adapter.lora_a),
            "memory_left_out": adapter.memory is not None,
            "provenance": adapter.provenance[0],
        }, indent=2))  # fmt: skip
    else:
        print(options.file)
    return 0
