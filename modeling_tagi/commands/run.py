"""`tagi run`: an instruction and inputs in, outputs out."""

import json
import sys

from ..common.arguments import positive
from .parsing import add_checkpoint, add_instruction, add_json, refuse_rest

HELP = "instruction (or adapter) and inputs -> outputs, a line each"
DESCRIPTION = (
    "Makes an adapter of an instruction and does the task on inputs: an output a line. With --adapter it takes one\n"
    "that `tagi generate` has written, and all texts are inputs."
)
EXAMPLE = 'tagi run me/my-generator "Name the animal." "a dog and a house"'


def add_arguments(parser):
    add_checkpoint(parser)
    add_instruction(parser, "what is to be done with each input; not with --adapter", nargs="?")
    parser.add_argument("input", nargs="*", metavar="INPUT",
                        help="the inputs; without any, the lines of standard input")  # fmt: skip
    parser.add_argument("--adapter", metavar="FOLDER",
                        help="an adapter in place of an instruction: a folder, or USER/NAME on the Hub")  # fmt: skip
    parser.add_argument("--max_new_tokens", type=positive, default=64, metavar="N",
                        help="most tokens of an output; default: %(default)s")  # fmt: skip
    parser.add_argument("--batch_size", type=positive, default=64, metavar="N",
                        help="inputs at once; default: %(default)s")  # fmt: skip
    add_json(parser, 'print {"input": …, "output": …} in each line')


def take_rest(options):
    """Takes inputs that come after an option, which argparse leaves over; refuses unknown options."""
    if any(text.startswith("-") for text in options.rest):
        refuse_rest(options)
    options.input += options.rest


def call(options) -> int:
    if options.adapter is None and options.instruction is None:
        options.refuse("there is no instruction; give one after the checkpoint, or --adapter FOLDER")
    if options.adapter is not None:
        if options.demonstration:
            options.refuse("--demonstration belongs to an instruction, but --adapter is there already; leave one out")
        options.input = [text for text in (options.instruction, *options.input) if text is not None]
    inputs = options.input or _lines_of_standard_input()
    if not inputs:
        options.refuse("there are no inputs; give them as arguments or on standard input")
    from .loading import load_adapter, load_model

    given = load_adapter(options.adapter) if options.adapter is not None else None  # before what takes longer
    model = load_model(options.checkpoint)
    if given is None:
        adapter = model.generate_adapter(options.instruction, options.demonstration)
    else:
        adapter = given.to(model.device)
    for start in range(0, len(inputs), options.batch_size):
        texts = inputs[start: start + options.batch_size]
        for text, output in zip(texts, _outputs(model, adapter, texts, options.max_new_tokens)):
            print(json.dumps({"input": text, "output": output}, ensure_ascii=False) if options.json else output)
    return 0


def _lines_of_standard_input() -> list[str]:
    """Returns all lines that are not blank.

    Raises:
        ValueError: for a line that is not UTF-8.
    """
    lines = []
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        try:
            lines.append((line if isinstance(line, str) else line.decode("utf-8")).rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of standard input is not UTF-8 ({error.reason} at byte {error.start + 1}); convert "
                "it, for instance with iconv -f LATIN1 -t UTF-8"
            ) from None
    return [line for line in lines if line.strip()]


def _outputs(model, adapter, inputs: list[str], max_new_tokens: int) -> list[str]:
    """Returns an output of one line for each input."""
    batch = model.encode_inputs(inputs)
    output = model.generate(**batch, adapter=adapter, max_new_tokens=max_new_tokens, do_sample=False)
    if not model.config.is_encoder_decoder:
        output = output[:, batch["input_ids"].shape[1]:]
    # an output of several lines is one line: there are as many as inputs
    texts = model.tokenizer.batch_decode(output, skip_special_tokens=True)
    return [" ".join(text.split("\n")).strip() for text in texts]
