"""The model card of a run: what the checkpoint is, how well it does, how it was made, from what the run has left."""

import re
from pathlib import Path
from typing import Optional, Sequence

import yaml
from huggingface_hub import EvalResult

from ..common.writing import write_text
from ..configuration_tagi import TagiConfig
from ..data.readers import READERS
from ..evaluation.report.formats import duration, number
from ..evaluation.report.page import Plot, Section, Table
from ..evaluation.report.write import read_report
from ..evaluation.results import read_results
from ..evaluation.tables import columns_of
from .cards import (
    CARD_FILE,
    CITATION,
    CODE_LICENCE,
    cell,
    checkpoint_blocks,
    checkpoint_data,
    facts,
    is_edited,
    is_repository,
    source_of,
    written,
)

PLOTS_FOLDER = "plots"
_PLOTS = ("scores-", "score-over-steps", "loss-finetuning", "adapters")  # beginnings of the names of those shown
# Column -> the Hub's identifier of the metric, and its name.
_METRICS = {
    "exact_match": ("exact_match", "exact match (%)"),
    "rouge_l": ("rouge", "ROUGE-L (%)"),
    "rank_accuracy": ("accuracy", "rank accuracy (%)"),
    "rank_accuracy_mean": ("accuracy", "rank accuracy by token (%)"),
}
_STAGES = {
    "text": "language modelling on text",
    "instruction_tuning": "instructions in the input",
    "task_adapters": "a LoRA for each task or group of tasks",
    "pretraining": "hypernetwork on text (eq. 3)",
    "finetuning": "hypernetwork on tasks (eqs 4-6)",
}


def write_run_card(folder: Path, name: Optional[str] = None, report: Optional[tuple] = None) -> Optional[Path]:
    """Writes `model/README.md` of a run that was evaluated, and its plots into `model/plots/`.

    Args:
        folder: Of the run.
        name: What the snippet loads; `None` is the folder's `model/`.
        report: What `read_report` gave for it, if that was called before.

    Returns:
        The card's path; `None` if there is one that a person has edited, which stays.
    """
    folder = Path(folder)
    model = folder / "model"
    card = model / CARD_FILE
    if card.is_file() and is_edited(card.read_text(encoding="utf-8")):
        return None
    _, _, sections = report or read_report(folder)
    plots = [part for section in sections for part in section.parts if isinstance(part, Plot)]
    plots = [plot for plot in plots if plot.name.startswith(_PLOTS) and plot.png is not None]
    (model / PLOTS_FOLDER).mkdir(exist_ok=True)
    for plot in plots:
        (model / PLOTS_FOLDER / f"{plot.name}.png").write_bytes(plot.png())
    write_text(card, run_card(folder, name or str(model), sections, {plot.name for plot in plots}))
    return card


def run_card(folder: Path, name: str, sections: Sequence[Section], plots: set[str]) -> str:
    """The card's text, with pictures of those `plots` that it has."""
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    results, config = read_results(folder), TagiConfig.from_pretrained(folder / "model")
    example = results.get("example") or {"instruction": "say yes or no", "inputs": ["is it so?"]}
    by_title = {section.title: section for section in sections}

    def shown(title: str) -> list[str]:
        return _markdown(by_title[title], plots) if title in by_title else []

    own = next(iter(results["splits"].values()))["methods"].get(results["run"]["label"])
    blocks = checkpoint_blocks(config, name, example["instruction"], example["inputs"])
    if settings["finetuning.reads"] != "adapter" or not settings["finetuning.steps"]:
        blocks.insert(2, "**A baseline**: no generator was trained in this run, and an adapter of it changes nothing.")
    blocks += ["## Results", *(shown("Scores") if own else ["It was not scored."])]
    blocks += ["## How it was trained", *_training(settings, results), *shown("Training")]
    blocks += [f"## {title}\n\n" + "\n\n".join(found) for title in ("Generated adapters", "Cost", "Leak check")
               if (found := shown(title))]  # fmt: skip
    blocks += ["## Limits", _limits(settings, results), "## Licence", _licence(settings), "## Citation", CITATION]
    data = checkpoint_data(
        config,
        model_name=name.rstrip("/").rpartition("/")[2],
        eval_results=_eval_results(settings, results) or None,
        **_licence_data(settings),
    )
    if is_repository(settings["backbone.name"]):  # though the checkpoint's own differs from it by now
        data.base_model = settings["backbone.name"]
    return written(data, blocks)


def _eval_results(settings: dict, results: dict) -> list[EvalResult]:
    found = []
    for split, scored in results["splits"].items():
        scores = scored["methods"].get(results["run"]["label"])
        for column in columns_of(scored) if scores else ():
            if scores.get(column) is None:
                continue
            kind, title = _METRICS[column]
            interval = scores.get(f"{column}_interval")
            extent = {"level": 0.95, "low": round(interval[0], 2), "high": round(interval[1], 2)} if interval else None
            if interval:
                title += f", 95 % interval {number(interval[0])} to {number(interval[1])}"
            found.append(EvalResult(
                task_type="text-generation",
                task_name="tasks given by instructions",
                dataset_type=settings["data.source"],
                dataset_name=f"{settings['data.source']}, {split.replace('_', ' ')}",
                dataset_split=split,
                metric_type=kind,
                metric_name=title,
                metric_value=round(scores[column], 2),
                metric_args=extent,
            ))  # fmt: skip
    return found


def _training(settings: dict, results: dict) -> list[str]:
    run, train = results["run"], results["leaks"]["train"]
    start = source_of(settings["backbone.name"], settings["backbone.revision"]) or "from scratch"
    rows = [
        [f"`{stage}`: {what}", f"{settings[f'{stage}.steps']:,}", f"{settings[f'{stage}.learning_rate']:g}",
         duration((results.get("seconds") or {}).get(stage)), number(run["losses"].get(stage), 3)]
        for stage, what in _STAGES.items() if settings.get(f"{stage}.steps")
    ]  # fmt: skip
    table = Table(["stage", "steps", "learning rate", "wall time", "loss at the end"], rows)
    finetuning = {name.removeprefix("finetuning."): value for name, value in settings.items()
                  if name.startswith("finetuning.") and ("weight" in name or name.endswith((".alignment", ".train")))}
    return [
        facts([
            ("data", _described(settings["data.source"])),
            ("trained on", f"{train['tasks']:,} tasks, {train['instructions']:,} instructions, {train['records']:,} "
                           "records"),
            ("backbone", start),
            ("finetuning", ", ".join(f"{name} {value}" for name, value in finetuning.items())),
            ("precision", "bfloat16" if settings["bf16"] else "float32"),
            ("seed", run["seed"]),
            ("device", run.get("device")),
            ("versions", ", ".join(f"{name} {run[name]}" for name in ("python", "torch", "transformers", "peft")
                                   if run.get(name))),
            ("command", _without_folders(run.get("command") or "")),
        ]),
        "\n".join(table.markdown()),
    ]  # fmt: skip


def _limits(settings: dict, results: dict) -> str:
    splits = ", ".join(f"“{name.replace('_', ' ')}”" for name in results["splits"])
    lines = [
        f"- The scores are of one run with one seed, on {splits}; the intervals are over groups of tasks, not over "
        "seeds.",
        "- An instruction unlike those of training may give an adapter that is of no use. The model warns of one that "
        "is far from all that it was finetuned on.",
        f"- Inputs were cut at {settings['max_input_length']} tokens and outputs at {settings['max_target_length']}.",
    ]
    if settings["backbone.name"] is None:
        lines.insert(0, "- The backbone was made from scratch for this run: it knows nothing but this data.")
    else:
        lines.append("- The backbone's own limits and biases hold for it as well.")
    if results["leaks"]["leaks"]:
        lines.append(f"- **{results['leaks']['leaks']} records of evaluation have leaked into training.**")
    return "\n".join(lines)


def _licence(settings: dict) -> str:
    if _nothing_of_others(settings):
        return f"{CODE_LICENCE} The weights are too: they are made of nothing of anyone else's."
    backbone = source_of(settings["backbone.name"])
    parts = [f"the backbone ({backbone})"] if backbone else []
    parts.append(f"the data ({_described(settings['data.source'])})")
    return f"{CODE_LICENCE} The weights are under the terms of {' and of '.join(parts)}."


def _licence_data(settings: dict) -> dict:
    if _nothing_of_others(settings):
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "of-backbone-and-data", "license_link": CARD_FILE}


def _nothing_of_others(settings: dict) -> bool:
    reader = READERS.get(settings["data.source"])
    ours = reader is not None and not reader.others
    return settings["backbone.name"] is None and ours and not settings["data.text"]


def _described(source: str) -> str:
    """What the data of a source is; its name, where no such reader is known here."""
    return READERS[source].description if source in READERS else source


def _without_folders(command: str) -> str:
    """A command without the folders of whoever has called it."""
    return re.sub(r"(^|[\s=])~?/\S*/", r"\1…/", command)


def _markdown(section: Section, plots: set[str]) -> list[str]:
    blocks = []
    for part in section.parts:
        if isinstance(part, Table):
            blocks.append("\n".join(part.markdown()))
        elif isinstance(part, Plot):
            blocks += [f"![{cell(part.caption)}]({PLOTS_FOLDER}/{part.name}.png)"] if part.name in plots else []
        else:
            blocks.append(cell(part))
    return blocks


def example_of(records: Sequence) -> dict:
    """An instruction and inputs for the snippet, of the first task."""
    first = records[0]
    inputs = dict.fromkeys(record.input for record in records if record.instruction == first.instruction)
    return {"instruction": first.instruction, "inputs": list(inputs)[:2]}
