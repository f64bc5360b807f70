"""Trains a generator of adapters: config -> task adapters -> pretraining -> finetuning -> evaluation -> save.

    python train.py [CONFIG.yaml] [--field value ...]

The configuration is one of hub_configs/ (default: quickstart.yaml); any of its fields can be given on the command
line, nested ones with dots: --seed 1 --finetuning.steps 2000. The same command takes up a run that was cut off.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modeling_tagi import TagiModel
from modeling_tagi.data.sources import read_source
from modeling_tagi.evaluation.evaluate import evaluate_split, spread, table
from modeling_tagi.evaluation.predict import Answering, wrong_instructions
from modeling_tagi.training import stages
from modeling_tagi.training.run import Run, quiet_libraries, replacing, write_text
from modeling_tagi.training.settings import RunSettings, load_settings

QUICKSTART = str(Path(__file__).parent / "hub_configs" / "quickstart.yaml")


def main(arguments=None) -> int:
    settings = parse(arguments)
    began = time.monotonic()
    quiet_libraries()

    # data
    splits, text, leaks = read_source(**dataclasses.asdict(settings.data))
    train = splits["train"]
    wanted = settings.evaluation.splits or [name for name in splits if name != "train"]
    unknown = [name for name in wanted if name not in splits]
    if unknown:
        raise ValueError(f"evaluation.splits names {unknown[0]!r}, but the data has {', '.join(splits)}")
    print(f"data: {len({r.task for r in train})} tasks with {len(train)} records to train on, "
          f"{len(text)} passages of text; no leak into {', '.join(wanted)}")  # fmt: skip

    # model and training
    tokenizer = stages.read_tokenizer(settings, train, text)
    stages.check_model(settings, tokenizer, splits, text)
    run = Run(settings, stage_names(settings))
    backbone, revision = stages.taught_backbone(run, tokenizer, train, text)
    model = stages.start_model(run, backbone, revision)
    tokens = stages.read_tokens(run, tokenizer, model.config.is_encoder_decoder)
    bank = stages.tuned_adapters(run, model, tokens, train)
    model = stages.pretrained_model(run, model, tokens, text)
    model = stages.finetuned_model(run, model, tokens, train, bank)

    # save
    if backbone != settings.backbone.name:  # made here: the checkpoint's own, not to be had elsewhere
        model.config.backbone_trained, model.config.backbone_name_or_path = True, None
    model.tokenizer = tokens.tokenizer
    with replacing(run.folder / "model") as beside:
        model.save_pretrained(beside)

    # evaluation
    stage = run.stage("evaluation")
    stage.start(anew=True)
    results = evaluate(settings, model, tokens, (backbone, revision), {name: splits[name] for name in wanted},
                       train)  # fmt: skip
    stage.finish()

    results["seconds"] = {name: (run.stage(name).facts or {}).get("seconds") for name in run.stages}
    results["run"] = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": settings.seed,
        "seconds_of_this_call": round(time.monotonic() - began, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "losses": {name: (run.stage(name).facts or {}).get("loss") for name in run.stages},
    }
    results["leaks"] = leaks
    write_text(run.folder / "results.json", json.dumps(results, indent=2) + "\n")
    shown = table(results, wanted)
    write_text(run.folder / "results.md", shown + "\n")
    print(f"\n{shown}\n\nscores in per cent, means over tasks; {run.folder / 'model'} is the checkpoint, "
          f"{run.folder / 'results.json'} has it all")  # fmt: skip
    return 0


def evaluate(settings: RunSettings, model: TagiModel, tokens, prompted: tuple, splits: dict, train: list) -> dict:
    """The methods' scores on every split: `results[split][method]`."""
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    baseline = auto.from_pretrained(prompted[0], revision=prompted[1], dtype=torch.float32).to(device)
    model, batch_size = model.to(device), settings.evaluation.batch_size
    splits = {name: spread(records, settings.evaluation.max_records) for name, records in splits.items()}
    evaluated = [record for records in splits.values() for record in records]
    wrong = wrong_instructions(evaluated + train, settings.seed)  # for a lone task, one that was trained on
    wrong.update(wrong_instructions(evaluated, settings.seed))
    results = {}
    for name, records in splits.items():
        methods = {
            "no_instruction": Answering(baseline, tokens, "input", batch_size),
            "prompted": Answering(baseline, tokens, "prompt", batch_size),
            "tagi": Answering(model, tokens, "adapter", batch_size),
            "wrong_instruction": Answering(model, tokens, "adapter", batch_size, wrong),
        }
        if any(record.task not in wrong for record in records):
            del methods["wrong_instruction"]
        results[name] = evaluate_split(methods, records, settings.evaluation.rank_options, name)
    return results


def stage_names(settings: RunSettings) -> list[str]:
    wanted = {
        "text": settings.text.steps,
        "prompted": settings.prompted.steps or settings.backbone.name is None,
        "task_adapters": settings.task_adapters.steps and settings.task_adapters.path is None,
        "pretraining": settings.pretraining.steps,
        "finetuning": settings.finetuning.steps,
        "evaluation": True,
    }
    return [name for name, on in wanted.items() if on]


def parse(arguments=None) -> RunSettings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=QUICKSTART, metavar="CONFIG.yaml")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    has_config = bool(arguments) and not arguments[0].startswith("-")
    known, _ = parser.parse_known_args(arguments[:1] if has_config or arguments[:1] in (["-h"], ["--help"]) else [])
    rest = arguments[1:] if has_config else arguments
    overrides = {}
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            parser.error(f"{name!r} is no field with a value; fields are given as --field value")
        overrides[name[2:]] = value if equals else rest.pop(0)
    return load_settings(known.config, overrides)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
