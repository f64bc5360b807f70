"""The command `tagi`: adapters from instructions, and how good they are, from the shell."""

import argparse
import json
import shlex
import sys


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, and exit code 2; argparse's own would print the usage before it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments=None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="tagi", description="Adapters for language models, from instructions.")
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

    _add_evaluate(commands)

    study = commands.add_parser("study", help="methods x seeds x training tasks from one YAML file, into one table")
    study.add_argument("study", metavar="STUDY.yaml", help="such as hub_configs/studies/builtin.yaml")
    study.add_argument("--output_dir", help="where it goes, and where it was if it is to go on")
    study.add_argument("--workers", type=_positive, help="runs side by side")
    study.add_argument("--threads", type=_positive, help="CPU threads of each run")

    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "run" or any(text.startswith("-") for text in rest)):
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.input += rest  # argparse leaves over the inputs that come after an option
    options.called = shlex.join(["tagi", *arguments])
    options.refuse = commands.choices[options.command].error
    try:
        commands_by_name = {"generate": _generate, "run": _run, "evaluate": _evaluate, "study": _study}
        return commands_by_name[options.command](options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"tagi {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _add_evaluate(commands):
    evaluate = commands.add_parser(
        "evaluate",
        help="scores on any data, beside what tells what they mean",
        description="Scores a checkpoint on any data that can be read, beside the prompted backbone and others.",
        allow_abbrev=False,
    )
    add = evaluate.add_argument
    add("checkpoint", help="a TAGI checkpoint: a folder, or a repository on the Hub")
    add("--data", "--path", "--data.path", dest="path", metavar="FOLDER",
        help="JSON lines or parquet (a file, or a folder with one for each split), or a folder in the layout of "
             "--source; 'builtin' makes its own tasks")  # fmt: skip
    add("--source", "--data.source", choices=("builtin", "p3", "sni", "tables"), help="the layout; default: tables")
    add("--t0_eval", "--data.t0_eval", metavar="FOLDER", help="T0 evaluation sets, added as splits")
    add("--options", "--data.options", nargs="+", action="extend", default=[], type=_pair, metavar="KEY=VALUE",
        help="further arguments of the reader, values in YAML")  # fmt: skip
    add("--splits", nargs="+", metavar="SPLIT", help="which ones; default: all but train")
    add("--max_records", type=_positive, metavar="N", help="most records of a split, spread over its tasks")
    add("--batch_size", type=_positive, default=64, metavar="N", help="rows at once; default: %(default)s")
    add("--no_rank", action="store_true", help="answer records with options freely instead of ranking the options")
    add("--references", nargs="*", metavar="NAME", default=["prompted", "no_instruction", "wrong_instruction"],
        help="prompted, no_instruction, wrong_instruction (these are the default), random_words, nearest_adapter, "
             "oracle")  # fmt: skip
    add("--baseline", metavar="NAME_OR_FOLDER",
        help="the backbone that is prompted and that references are made with; default: the checkpoint's own")
    add("--task_adapters", metavar="FOLDER", help="task adapters of that backbone, for nearest_adapter")
    add("--oracle", nargs="+", action="extend", default=[], type=_pair, metavar="KEY=VALUE",
        help="how the oracle is tuned: steps, learning_rate, examples_per_task")  # fmt: skip
    add("--max_input_length", type=_positive, default=512, metavar="N",
        help="tokens kept of an input; default: %(default)s")  # fmt: skip
    add("--max_target_length", type=_positive, default=64, metavar="N",
        help="and of an output; default: %(default)s")  # fmt: skip
    add("--seed", type=int, default=0, help="of what is drawn, such as wrong instructions; default: %(default)s")
    add("--output_dir", metavar="FOLDER", help="where to write results.json, results.md and the report")
    add("--json", action="store_true", help="print all results as JSON instead of tables")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _pair(text: str) -> tuple:
    import yaml

    name, equals, value = text.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        equals = ""
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE with a value in YAML")
    return name, parsed


def _evaluate(options) -> int:
    from .evaluation.command import evaluate_checkpoint, settings_of, shown

    try:
        settings = settings_of(options)
    except ValueError as error:
        options.refuse(str(error))
    results = evaluate_checkpoint(
        options.checkpoint, settings, options.baseline, options.task_adapters, options.called
    )
    print(json.dumps(results, indent=2) if options.json else shown(results))
    return 0


def _study(options) -> int:
    from .experiments.settings import load_study
    from .experiments.study import run_study

    given = {name: getattr(options, name) for name in ("output_dir", "workers", "threads")}
    study = load_study(options.study, {name: value for name, value in given.items() if value is not None})
    folder = run_study(study, options.called)
    print((folder / "table.md").read_text())
    page = folder / "report" / "index.html"
    print(f"scores in per cent, means over tasks and seeds with 95 % intervals; {page} shows it all")
    return 0


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
    batch = model.encode_inputs(inputs)
    adapter = model.generate_adapter(options.instruction)
    output = model.generate(**batch, adapter=adapter, max_new_tokens=options.max_new_tokens, do_sample=False)
    if not model.config.is_encoder_decoder:
        output = output[:, batch["input_ids"].shape[1]:]
    for text in model.tokenizer.batch_decode(output, skip_special_tokens=True):
        print(text.strip())
    return 0


def _load(checkpoint: str):
    from .modeling_tagi import TagiModel  # torch takes seconds to import: not for --help

    return TagiModel.from_pretrained(checkpoint).eval()


if __name__ == "__main__":
    sys.exit(main())
