"""`tagi train`, and train.py: a run from its YAML file."""

from pathlib import Path

from ..common.writing import naming
from ..training.recipes import recipe_fields, recipe_file, recipes
from ..training.setting_fields import RunSettings, built_settings, default_fields
from .parsing import take_fields

HELP = "a run's YAML -> a trained checkpoint, its scores and a report"
DESCRIPTION = (
    "Trains a generator of adapters: config -> task adapters -> pretraining -> finetuning -> evaluation -> save.\n\n"
    "CONFIG is a YAML file, or the name of a recipe that comes along. Any of its fields can be given after it,\n"
    "nested ones with dots: --seed 1 --finetuning.steps 2000. --method hint (or another baseline or ablation) takes\n"
    "that method's settings. --push_to_hub user/name puts the checkpoint on the Hub, with a card. The same command\n"
    "resumes an interrupted run. On several devices it is started by `accelerate launch train.py …` or\n"
    "`torchrun --nproc-per-node N train.py …`; each batch is split over them."
)
EXAMPLE = "tagi train quickstart --seed 1 --finetuning.steps 2000 --output_dir runs/mine"
take_rest = take_fields
INTERRUPTED = "interrupted; the same command goes on from the last checkpoint"


def add_arguments(parser):
    parser.add_argument("config", nargs="?", default="quickstart", metavar="CONFIG",
                        help=f"a YAML file, or one of {', '.join(recipes())}; default: %(default)s")  # fmt: skip
    parser.further = known_fields


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns what the parser reads (`--help`, or a configuration that comes first), and the fields of the run.

    The parser must not see the fields, since their values may look like options.
    """
    if any(text in ("-h", "--help") for text in arguments):
        return ["--help"], []
    own = [text for text in arguments[:1] if not text.startswith("-")]
    return own, arguments[len(own):]


def call(options) -> int:
    file = recipe_file(options.config)
    print(f"reading {file}", flush=True)
    built_settings(RunSettings, recipe_fields(file, options.fields))  # refuses a wrong field at once

    from ..training.settings import load_settings  # takes seconds to import, as what follows

    settings = load_settings(file, options.fields)
    print(f"everything goes to {settings.output_dir}", flush=True)

    from ..common.processes import end, is_main
    from ..evaluation.tables import table
    from ..pipeline import run_experiment

    with naming(settings.output_dir):
        results = run_experiment(settings, options.called)
    end()
    if not is_main():
        return 0
    folder = Path(settings.output_dir)
    print(f"\n{table(results)}\n\nscores in per cent, means over tasks with 95 % intervals; {folder / 'model'} is the "
          f"checkpoint, {folder / 'report' / 'index.html'} shows it all")  # fmt: skip
    pushed = results.get("hub")
    if pushed and "error" in pushed:
        raise OSError(pushed["error"])
    if pushed:
        print(f"pushed to {pushed['url']}")
    return 0


def known_fields() -> str:
    """Returns every field of a run with its default; modeling_tagi/training/setting_fields.py says what they mean."""
    import json

    from ..common.methods import METHODS
    from ..common.yaml_files import flat

    found = {"method": " | ".join(METHODS), **flat(default_fields())}
    lines = [f"  --{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()]
    return "\n".join(["fields, with their defaults where the configuration does not set them:", *lines])
