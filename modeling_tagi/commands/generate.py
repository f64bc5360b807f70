"""`tagi generate`: an instruction in, an adapter folder out."""

import json

from .parsing import add_checkpoint, add_instruction, add_json

HELP = "instruction -> PEFT adapter folder"
DESCRIPTION = "Reads an instruction and writes a LoRA adapter for the checkpoint's backbone, as a PEFT folder."
EXAMPLE = 'tagi generate me/my-generator "Translate into French." --output_dir adapters/french'


def add_arguments(parser):
    add_checkpoint(parser)
    add_instruction(parser, "what the adapter is to do")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="the folder to write")
    add_json(parser, "print the folder, shape and provenance as JSON instead of the folder alone")


def call(options) -> int:
    from ..hub import require_folder_for
    from .loading import load_model

    try:
        require_folder_for("adapter", options.output_dir)
    except ValueError as error:
        options.refuse(f"--output_dir: {error}")

    model = load_model(options.checkpoint)
    adapter = model.generate_adapter(options.instruction, options.demonstration)
    adapter.save_pretrained(options.output_dir)
    if options.json:
        print(json.dumps({
            "folder": options.output_dir,
            "rank": adapter.rank,
            "lora_alpha": adapter.lora_alpha,
            "modules": len(adapter.lora_a),
            "parameters": sum(x.numel() for factors in (adapter.lora_a, adapter.lora_b) for x in factors.values()),
            "needs_memory": adapter.memory is not None,
            "provenance": adapter.provenance[0],
        }, indent=2))  # fmt: skip
    else:
        print(options.output_dir)
    return 0
