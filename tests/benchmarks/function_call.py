"""A function against prompting: the first call, with the function's making, and a task of many inputs.

    python tests/benchmarks/function_call.py [--quick] [--model checkpoints/smollm2-135m] [--inputs 1000] [--threads 2]

Both ways share all but how the instruction is read: once by the generator, or by the backbone with each input. Options
are scored, or text is written. Lengths are in tokens, the same for every text: instructions with two worked examples
(by default `Def+2Pos` of docs/results/costs.md, and a shorter one), inputs, outputs. `--model` is a checkpoint, or a
shape of shapes.py with random weights.
"""

import random
from pathlib import Path
from statistics import median

import torch
from harness import Ratio, finish, measured, parser, started
from shapes import tagi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_tagi import TagiModel
from modeling_tagi.function import TagiFunction
from modeling_tagi.tokens import instruction_text

QUESTION = "time of the first call of a function, its making included, relative to a prompted call"
WORDS = [f"w{number}" for number in range(400)]  # those of a model with random weights
ENGLISH = "the of a in to and is was on with that it as at from by which were have not are this or had one all".split()


def main():
    made = parser(__doc__)
    made.add_argument("--model", default="checkpoints/smollm2-135m")
    made.add_argument("--inputs", type=int, default=1000)
    made.add_argument("--instructions", type=int, nargs="+", default=[288, 150], metavar="TOKENS")
    made.add_argument("--input", type=int, default=166, help="tokens of an input")
    made.add_argument("--output", type=int, default=8, help="tokens that are written, without options")
    made.add_argument("--options", type=int, default=2, help="options, of an output's length divided by four")
    made.add_argument("--ways", nargs="+", choices=["options", "text"], default=["options", "text"])
    made.add_argument("--batch_size", type=int, default=16)
    options = started(made, quick={
        "model": "tiny-llama", "inputs": 8, "instructions": [48], "input": 24, "repeats": 2, "batch_size": 4
    })  # fmt: skip
    compare(options)


def compare(options):
    model, ratios, seconds = loaded(options), [], {}
    for length in options.instructions:
        for way in options.ways:
            times = measured(cases(model, length, way, options), options)
            goals = ({"at_most": 1.3}, {"at_least": 2}) if length == options.instructions[0] else ({}, {})
            named = f"{length} tokens, {way}"
            ratios += [
                Ratio.of(f"first call / a prompted one, {named}", times["first"], times["prompted first"], **goals[0]),
                Ratio.of(f"{options.inputs} inputs prompted / by the function, {named}", times["prompted"],
                         times["function"], **goals[1]),
            ]  # fmt: skip
            seconds[named] = {name: round(median(x), 3) for name, x in times.items()}
    finish(QUESTION, ratios, options, seconds=seconds)


def loaded(options) -> TagiModel:
    """The checkpoint, or a model of that shape with a tokenizer of whole words."""
    if Path(options.model).is_dir():
        model = TagiModel.from_pretrained(options.model).eval()
    else:
        model = tagi(options.model, fusion="none")
        known = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
        words = Tokenizer(models.WordLevel(known, "<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        model.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
    model.instruction_index = None  # random words are far from every instruction
    model.generation_config.min_new_tokens = options.output  # as much to write for both
    return model.to(options.device, getattr(torch, options.dtype))


def text(model, tokens: int, seed: int, examples=None) -> str:
    """A text of as many tokens, counted with the examples behind it."""
    draw = random.Random(seed)
    words = WORDS if "w1" in model.tokenizer.get_vocab() else ENGLISH
    found = draw.choice(words)
    while len(model.tokenizer(instruction_text(found, examples), add_special_tokens=False)["input_ids"]) < tokens:
        found += " " + draw.choice(words)
    return found


def cases(model, length: int, way: str, options):
    examples = [(text(model, length // 4, seed), text(model, 2, seed)) for seed in (1, 2)]
    instruction = text(model, length, 3, examples)
    inputs = [text(model, options.input, 10 + number) for number in range(options.inputs)]
    answers = None
    if way == "options":
        answers = [text(model, max(1, options.output // 4), 100_000 + number) for number in range(options.options)]
        if len(set(answers)) < len(answers):
            raise ValueError(f"the options are {answers}; ask for fewer, or longer ones")
    given = {"max_new_tokens": options.output, "batch_size": options.batch_size}

    def function():
        return model.function(instruction, answers, demonstrations=examples, **given)

    made = function()
    prompted = TagiFunction(model, made.adapter, made.instruction, answers, how="prompt", **given)
    return {
        "first": lambda: function()(inputs[0]),
        "prompted first": lambda: prompted(inputs[0]),
        "function": lambda: function()(inputs),
        "prompted": lambda: prompted(inputs),
    }


if __name__ == "__main__":
    main()
