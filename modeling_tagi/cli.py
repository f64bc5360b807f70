"""The command `tagi`: adapters from instructions, from the shell."""

import argparse
import sys


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="tagi", description="Adapters for language models, from instructions.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="instruction -> PEFT adapter folder")
    generate.add_argument("checkpoint", help="a TAGI checkpoint: a folder, or a repository on the Hub")
    generate.add_argument("instruction", help="what the adapter is to do")
    generate.add_argument("--output_dir", required=True, help="the folder to write")

    run = commands.add_parser("run", help="instruction and inputs -> outputs, a line each")
    run.add_argument("checkpoint", help="a TAGI checkpoint: a folder, or a repository on the Hub")
    run.add_argument("instruction", help="what is to be done with each input")
    run.add_argument("input", nargs="*", help="the inputs; without any, the lines of standard input")
    run.add_argument("--max_new_tokens", type=int, default=64, help="most tokens of an output")

    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "run" or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.input += rest  # argparse leaves over the inputs that come after an option
    try:
        return {"generate": _generate, "run": _run}[options.command](options)
    except (ValueError, OSError) as error:
        print(f"tagi {options.command}: {error}", file=sys.stderr)
        return 1


def _generate(options) -> int:
    model = _load(options.checkpoint)
    model.generate_adapter(options.instruction).save_pretrained(options.output_dir)
    print(options.output_dir)
    return 0


def _run(options) -> int:
    inputs = options.input or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not inputs:
        raise ValueError("there are no inputs; give them as arguments or on standard input")
    model = _load(options.checkpoint)
    tokenizer, side = model.tokenizer, "right" if model.config.is_encoder_decoder else "left"
    batch = tokenizer(inputs, return_tensors="pt", padding=True, padding_side=side)
    adapter = model.generate_adapter(options.instruction)
    output = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        adapter=adapter,
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
    )
    if not model.config.is_encoder_decoder:
        output = output[:, batch["input_ids"].shape[1]:]
    for text in tokenizer.batch_decode(output, skip_special_tokens=True):
        print(text.strip())
    return 0


def _load(checkpoint: str):
    from .modeling_tagi import TagiModel  # torch takes seconds to import: not for --help

    return TagiModel.from_pretrained(checkpoint).eval()


if __name__ == "__main__":
    sys.exit(main())
