"""Trains a generator of adapters: config -> task adapters -> pretraining -> finetuning -> evaluation -> save.

    python train.py [CONFIG.yaml] [--field value ...]

The configuration is one of hub_configs/ (default: quickstart.yaml); any of its fields can be given on the command
line, nested ones with dots: --seed 1 --finetuning.steps 2000. --method hint (or another baseline or ablation; see
modeling_tagi/training/methods.py) takes that method's settings. --push_to_hub user/name puts the checkpoint on the
Hub, with a card. The same command takes up a run that was cut off. On several devices it is started by
`accelerate launch train.py …` or `torchrun --nproc-per-node N train.py …`; they share each batch.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from modeling_tagi.commands.parsing import fields
from modeling_tagi.evaluation.evaluate import table
from modeling_tagi.experiments.run import run_experiment
from modeling_tagi.hub_errors import HubError
from modeling_tagi.training.methods import METHODS
from modeling_tagi.training.processes import end, is_main
from modeling_tagi.training.run import flat
from modeling_tagi.training.settings import RunSettings, load_settings

QUICKSTART = str(Path(__file__).parent / "hub_configs" / "quickstart.yaml")


def main(arguments=None) -> int:
    settings = parse(arguments)
    results = run_experiment(settings, " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    end()
    if not is_main():
        return 0
    folder = Path(settings.output_dir)
    print(f"\n{table(results)}\n\nscores in per cent, means over tasks with 95 % intervals; {folder / 'model'} is the "
          f"checkpoint, {folder / 'report' / 'index.html'} shows it all")  # fmt: skip
    pushed = results.get("hub")
    if pushed and "error" in pushed:
        print(f"train.py: {pushed['error']}", file=sys.stderr)
        return 1
    if pushed:
        print(f"pushed to {pushed['url']}")
    return 0


def parse(arguments=None) -> RunSettings:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=known_fields(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default=QUICKSTART, metavar="CONFIG.yaml")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    has_config = bool(arguments) and not arguments[0].startswith("-")
    known, _ = parser.parse_known_args(arguments[:1] if has_config or arguments[:1] in (["-h"], ["--help"]) else [])
    rest = arguments[1:] if has_config else arguments
    try:
        overrides = fields(rest)
    except ValueError as error:
        parser.error(str(error))
    return load_settings(known.config, overrides)


def known_fields() -> str:
    """Every field of a run with its default; what they mean is in modeling_tagi/training/settings.py."""
    fields = {"method": " | ".join(METHODS), **flat(dataclasses.asdict(RunSettings()))}
    lines = [f"  --{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["fields, with their defaults where the configuration does not set them:", *lines])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError, HubError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
