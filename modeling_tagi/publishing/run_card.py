"""The model card of a run: what the checkpoint is, how well it does, how it was made.

To add a part is a function and a line in `PARTS`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..common.writing import write_text
from ..configuration_tagi import TagiConfig
from ..data.readers import READERS
from ..data.reading import READS
from ..evaluation.report.formats import duration, number
from ..evaluation.report.page import Plot, Section, Table
from ..evaluation.report.write import read_report
from ..evaluation.results import read_results
from ..evaluation.tables import columns_of
from ..training.stages import STAGES
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


def write_run_card(folder: Path, name: Optional[str] = None, report: Optional[tuple] = None) -> Optional[Path]:
    """Writes `model/README.md` of a run that was evaluated, and its plots into `model/plots/`.

    Args:
        folder: The run's folder.
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


@dataclass(frozen=True)
class CardRun:
    """Holds what a card is written from.

    Args:
        name: What the snippet loads.
        settings: The run's settings, flat.
        results: The run's results.
        config: Its checkpoint's configuration.
        shown: The blocks of Markdown of each section of its report, by title.
    """

    name: str
    settings: dict
    results: dict
    config: TagiConfig
    shown: dict[str, list[str]]


def run_card(folder: Path, name: str, sections: Sequence[Section], plots: set[str]) -> str:
    """Returns the card's text, with pictures of those `plots` that it has."""
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    shown = {section.title: _markdown(section, plots) for section in sections}
    config = TagiConfig.from_pretrained(folder / "model")
    run = CardRun(name, settings, read_results(folder), config, shown)
    blocks = _introduction(run)
    for title, part in PARTS.items():
        found = part(run)
        blocks += [f"## {title}", *found] if found else []
    return written(_data(run), blocks)


def _introduction(run: CardRun) -> list[str]:
    """Returns what the checkpoint is, and how it is used."""
    example = run.results.get("example") or {"instruction": "say yes or no", "inputs": ["is it so?"]}
    blocks = checkpoint_blocks(run.config, run.name, example["instruction"], example["inputs"])
    reads = run.settings["finetuning.reads"]
    if all(READS[reads]):
        blocks.insert(2, "**It was trained with the instruction in the input too**: give it both.")
    elif not READS[reads].adapter or not run.settings["finetuning.steps"]:
        blocks.insert(2, "**A baseline**: no generator was trained in this run, and an adapter of it changes nothing.")
    return blocks


def _data(run: CardRun) -> ModelCardData:
    """Returns what the Hub reads of the card."""
    data = checkpoint_data(
        run.config,
        model_name=run.name.rstrip("/").rpartition("/")[2],
        eval_results=_eval_results(run.settings, run.results) or None,
        **_licence_data(run.settings),
    )
    if is_repository(run.settings["backbone.name"]):  # though the checkpoint's own differs from it by now
        data.base_model = run.settings["backbone.name"]
    return data


def _scores(run: CardRun) -> list[str]:
    scored = next(iter(run.results["splits"].values()))["methods"].get(run.results["run"]["label"])
    return run.shown.get("Scores", []) if scored else ["It was not scored."]


def _of_report(title: str) -> Callable[[CardRun], list[str]]:
    """Returns a part that is a section of the report."""
    return lambda run: run.shown.get(title, [])


def _eval_results(settings: dict, results: dict) -> list[EvalResult]:
    """Returns the scores of what was trained, as the Hub has them."""
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


def _training(run: CardRun) -> list[str]:
    return [_circumstances(run.settings, run.results), _stages(run.settings, run.results),
            *run.shown.get("Training", [])]  # fmt: skip


def _stages(settings: dict, results: dict) -> str:
    """Returns the table of the stages that took steps."""
    losses, seconds = results["run"]["losses"], results.get("seconds") or {}
    rows = [
        [f"`{name}`: {stage.description}", f"{settings[f'{name}.steps']:,}", f"{settings[f'{name}.learning_rate']:g}",
         duration(seconds.get(name)), number(losses.get(name), 3)]
        for name, stage in STAGES.items() if settings.get(f"{name}.steps")
    ]  # fmt: skip
    return "\n".join(Table(["stage", "steps", "learning rate", "wall time", "loss at the end"], rows).markdown())


def _circumstances(settings: dict, results: dict) -> str:
    """Returns the table of data, backbone, weights of the losses, precision, versions and command."""
    run, train = results["run"], results["leaks"]["train"]
    finetuning = {name.removeprefix("finetuning."): value for name, value in settings.items()
                  if name.startswith("finetuning.losses.") or name.startswith("finetuning.")
                  and ("weight" in name or name.endswith((".alignment", ".train")))}
    return facts([
        ("data", _described(settings["data.source"])),
        ("trained on", f"{train['tasks']:,} tasks, {train['instructions']:,} instructions, {train['records']:,} "
                       "records"),
        ("backbone", source_of(settings["backbone.name"], settings["backbone.revision"]) or "from scratch"),
        ("finetuning", ", ".join(f"{name} {value}" for name, value in finetuning.items())),
        ("precision", "bfloat16" if settings["bf16"] else "float32"),
        ("seed", run["seed"]),
        ("device", run.get("device")),
        ("versions", ", ".join(f"{name} {run[name]}" for name in ("python", "torch", "transformers", "peft")
                               if run.get(name))),
        ("command", _without_folders(run.get("command") or "")),
    ])  # fmt: skip


def _limits(run: CardRun) -> list[str]:
    settings, results = run.settings, run.results
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
    return ["\n".join(lines)]


def _licence(run: CardRun) -> list[str]:
    settings = run.settings
    if _nothing_of_others(settings):
        return [f"{CODE_LICENCE} The weights are too: they were trained only on data that this run generated."]
    backbone = source_of(settings["backbone.name"])
    parts = [f"the backbone ({backbone})"] if backbone else []
    parts.append(f"the data ({_described(settings['data.source'])})")
    return [f"{CODE_LICENCE} The weights are under the terms of {' and of '.join(parts)}."]


def _licence_data(settings: dict) -> dict:
    if _nothing_of_others(settings):
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "of-backbone-and-data", "license_link": CARD_FILE}


def _nothing_of_others(settings: dict) -> bool:
    """Tells whether backbone and data both come from this run or package, and from nobody else."""
    reader = READERS.get(settings["data.source"])
    ours = reader is not None and not reader.others
    return settings["backbone.name"] is None and ours and not settings["data.text"]


def _described(source: str) -> str:
    """Returns the description of a data source; its name, if its reader is not known here."""
    return READERS[source].description if source in READERS else source


def _without_folders(command: str) -> str:
    """Returns a command without the folders of whoever has called it."""
    return re.sub(r"(^|[\s=])~?/\S*/", r"\1…/", command)


def _markdown(section: Section, plots: set[str]) -> list[str]:
    """Returns a section of the report as blocks of a card, with pictures of those `plots` that it has."""
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
    """Returns an instruction and inputs for the snippet, of the first task."""
    first = records[0]
    inputs = dict.fromkeys(record.input for record in records if record.instruction == first.instruction)
    return {"instruction": first.instruction, "inputs": list(inputs)[:2]}


# Title -> what makes its blocks of Markdown; a part without any is left out.
PARTS: dict[str, Callable[[CardRun], list[str]]] = {
    "Results": _scores,
    "How it was trained": _training,
    "Generated adapters": _of_report("Generated adapters"),
    "Cost": _of_report("Cost"),
    "Leak check": _of_report("Leak check"),
    "Limits": _limits,
    "Licence": _licence,
    "Citation": lambda run: [CITATION],
}
