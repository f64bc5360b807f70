"""`tagi run`: an instruction and inputs in, outputs out."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Iterator

from ..common.arguments import positive
from .parsing import add_checkpoint, add_instruction, add_json, refuse_rest

HELP = "instruction (or adapter) and inputs -> outputs, a line each"
DESCRIPTION = (
    "Makes an adapter of an instruction and does the task on inputs: an output a line. With --adapter it takes one\n"
    "that `tagi generate` has written, and all texts are inputs. With --engine llama.cpp the adapter is applied to a\n"
    "GGUF file of the backbone, by the package xllamacpp."
)
ENGINES = ("transformers", "llama.cpp")
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
    parser.add_argument("--engine", choices=ENGINES, default="transformers",
                        help="what computes the outputs; default: %(default)s")  # fmt: skip
    parser.add_argument("--base", metavar="FILE.gguf",
                        help="the backbone for llama.cpp; default: the file that the checkpoint names")  # fmt: skip
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
    if options.base is not None and options.engine != "llama.cpp":
        options.refuse("--base is the GGUF file of --engine llama.cpp; give that too, or leave --base out")
    inputs = options.input or _lines_of_standard_input()
    if not inputs:
        options.refuse("there are no inputs; give them as arguments or on standard input")
    answers = _by_llama_cpp if options.engine == "llama.cpp" else _by_transformers
    for text, output in zip(inputs, answers(options, inputs)):
        # an output of several lines is one line: there are as many as inputs
        output = " ".join(output.split("\n")).strip()
        print(json.dumps({"input": text, "output": output}, ensure_ascii=False) if options.json else output)
    return 0


def _by_transformers(options, inputs: list[str]) -> Iterator[str]:
    model, adapter = _model_and_adapter(options)
    for start in range(0, len(inputs), options.batch_size):
        yield from _outputs(model, adapter, inputs[start: start + options.batch_size], options.max_new_tokens)


def _by_llama_cpp(options, inputs: list[str]) -> Iterator[str]:
    from ..configuration_tagi import TagiConfig
    from ..serving.llama_cpp import LlamaCpp, base_for, require_xllamacpp
    from ..tokens import Tokens

    require_xllamacpp()
    base = base_for(TagiConfig.from_pretrained(options.checkpoint), options.base)
    model, adapter = _model_and_adapter(options)
    tokens = Tokens.of(model.tokenizer, model.config)
    rows = [tokens.input(text) for text in inputs]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.gguf"
        adapter.save_gguf(file, base if adapter.origin is None else None)  # one from elsewhere is compared with it
        del model, adapter  # llama.cpp has the weights
        longest = max(map(len, rows)) + options.max_new_tokens
        engine = LlamaCpp(base, file, longest, min(options.batch_size, len(rows)))
        for start in range(0, len(rows), options.batch_size):
            yield from engine.answers(rows[start: start + options.batch_size], options.max_new_tokens)


def _model_and_adapter(options):
    from .loading import load_adapter, load_model

    given = load_adapter(options.adapter) if options.adapter is not None else None  # before what takes longer
    model = load_model(options.checkpoint)
    if given is None:
        return model, model.generate_adapter(options.instruction, options.demonstration)
    return model, given.to(model.device)


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
    batch = model.encode_inputs(inputs)
    output = model.generate(**batch, adapter=adapter, max_new_tokens=max_new_tokens, do_sample=False)
    if not model.config.is_encoder_decoder:
        output = output[:, batch["input_ids"].shape[1]:]
    return model.tokenizer.batch_decode(output, skip_special_tokens=True)
