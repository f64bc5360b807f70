"""Parts that the reports of runs and of studies have in common: losses, adapters, costs and leaks; reading files."""

import json
from pathlib import Path
from statistics import fmean
from typing import Iterable, Optional, Sequence

import yaml

from ...common.methods import PROMPTED
from ...common.writing import reading
from .formats import STEPS, number, plain, title_of
from .page import Plot, Section, Table
from .plots import Line, line_plot, map_plot

_TERMS = {  # of the finetuning loss
    "loss": "all terms, weighted", "loss_prediction": "prediction", "loss_distillation": "distillation",
    "loss_alignment": "alignment",
}  # fmt: skip
_SIMILARITY = {
    "own": "generated to its own tuned one", "others": "generated to another group's tuned",
    "ratio": "ratio of these two", "generated": "generated to another generated", "tuned": "tuned to another tuned",
}  # fmt: skip
_CURVES = {
    "by_instruction_length": ("instruction length (tokens)", "Cost by the length of the instruction"),
    "by_inputs": ("inputs per task", "Cost by the number of inputs"),
}


def read_json(path: Path) -> Optional[dict]:
    """Returns what a JSON file holds; `None` if it is not there."""
    return json.loads(path.read_text()) if path.is_file() else None


def read_lines(path: Path) -> list[dict]:
    """Returns the objects of a JSON-lines file; none if it is not there."""
    if not path.is_file():
        return []
    with reading(path, "delete it: a report leaves out what is not there, and a study writes its own lines anew"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings_table(path: Path, folded: str) -> list[Table]:
    """Returns the fields of a YAML file as a table that is shut until it is clicked; none if it is not there."""
    values = yaml.safe_load(path.read_text()) if path.is_file() else None
    if not values:
        return []
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in values.items()]
    return [Table((), rows, text=2, wrap=True, folded=folded)]


def loss_plots(folder: Path, stages: Iterable[str]) -> list[Plot]:
    """Plots the losses of each stage of a run that has a log; the alignment, which has no unit, apart."""
    plots = []
    for stage in stages:
        logs = {path.stem.removeprefix("log").removeprefix("-"): read_lines(path)
                for path in sorted((folder / "stages" / stage).glob("log*.jsonl"))}  # fmt: skip
        logs = {part: log for part, log in logs.items() if log}
        if not logs:
            continue
        name, caption = f"loss-{stage.replace('_', '-')}", f"Loss of the stage “{plain(stage)}” over its steps"
        if stage == "task_adapters":
            caption += ", summed over the adapters that are tuned together"
            lines = {f"adapters from {part} on" if len(logs) > 1 else "all": _line(log, "loss")
                     for part, log in logs.items()}  # fmt: skip
        else:
            lines = _terms(next(iter(logs.values())))
        plots.append(line_plot(name, caption, lines, STEPS, "loss (nats per token)", from_zero=True))
        if any("loss_alignment" in entry for log in logs.values() for entry in log):
            plots.append(_alignment_plot(f"{name}-alignment", stage, next(iter(logs.values()))))
    return plots


def _terms(log: Sequence[dict]) -> dict[str, Line]:
    """Returns a line for each term of the loss that a log has, without the alignment; further terms by their names."""
    further = sorted({name for entry in log for name in entry if name.startswith("loss_")} - _TERMS.keys())
    titles = {**_TERMS, **{name: plain(name.removeprefix("loss_")) for name in further}}
    terms = [term for term in titles if any(term in entry for entry in log)]
    if terms == ["loss", "loss_prediction"]:
        terms = ["loss_prediction"]
    return {titles[term] if len(terms) > 1 else "all": _line(log, term) for term in terms if term != "loss_alignment"}


def _alignment_plot(name: str, stage: str, log: Sequence[dict]) -> Plot:
    caption = f"Alignment of generated with tuned adapters in the stage “{plain(stage)}” (L_ins, before its weight)"
    lines = {"alignment": _line(log, "loss_alignment")}
    return line_plot(name, caption, lines, STEPS, "alignment loss (no unit)", from_zero=True)


def _line(log: Sequence[dict], name: str) -> Line:
    shown = [entry for entry in log if name in entry]
    return Line([entry["step"] for entry in shown], [entry[name] for entry in shown])


def mean_line(logs: Sequence[Sequence[dict]], name: str) -> Optional[Line]:
    """Returns the mean over logs (seeds) at the steps that all have, with a band from the least to the most."""
    by_step = [{entry["step"]: entry[name] for entry in log if entry.get(name) is not None} for log in logs]
    steps = [step for step in by_step[0] if all(step in values for values in by_step)]
    if not steps:
        return None
    values = [[log[step] for log in by_step] for step in steps]
    band = (list(map(min, values)), list(map(max, values))) if len(logs) > 1 else (None, None)
    return Line(steps, list(map(fmean, values)), *band)


def adapter_section(found: Optional[dict], whose: str = "") -> Section:
    """Shows what `adapter_map` found."""
    section = Section("Generated adapters")
    if not found or not found.get("points"):
        return section
    caption = f"Generated updates ΔW{whose}: the tasks by category, in the first two principal components"
    section.parts.append(map_plot("adapters", caption, found["points"], found["explained"]))
    if found.get("similarity"):
        rows = [[title, number(found["similarity"].get(name), 3)] for name, title in _SIMILARITY.items()]
        head, caption = ["adapter", "mean cosine of ΔW"], "Similarity of adapters"
        section.parts.append(Table(head, rows, caption=caption, beside=True))
    return section


def cost_section(found: Optional[dict]) -> Section:
    """Shows what `costs_if_known` found."""
    section = Section("Cost")
    if not found:
        return section
    if "missing" in found:
        section.parts.append(f"Not counted: {found['missing']}.")
        return section
    lengths = found["lengths"]
    section.parts.append(
        f"Computed, not measured: FLOPs of a task with {found['inputs_per_task']} inputs on the backbone "
        f"“{found['backbone']}”, from reading the instruction to the last token; on average "
        f"{lengths['instruction']:.0f} tokens of instruction, {lengths['input']:.0f} of input and "
        f"{lengths['target']:.0f} of target."
    )
    rows = [[title_of(name), f"{cost['flops'] / 1e9:,.3g}", number(cost["relative"], 3)]
            for name, cost in found["methods"].items()]  # fmt: skip
    section.parts.append(Table(["method", "GFLOPs", "relative to prompting"], rows))
    section.parts += [plot for key in _CURVES for plot in _cost_curve(key, dict(found.get(key) or {}))]
    return section


def _cost_curve(key: str, values: dict) -> list[Plot]:
    """Plots costs by the length of the instruction or the number of inputs; a line for methods that cost the same."""
    unit, caption = _CURVES[key]
    x, same = values.pop("x", None), {}
    for method, y in values.items():
        if method != PROMPTED:
            same.setdefault(tuple(y), []).append(title_of(method))
    if not x or not same:
        return []
    lines = {", ".join(names): Line(x, y) for y, names in same.items()}
    return [line_plot(
        f"cost-{key.replace('_', '-')}", caption, lines, unit, "FLOPs relative to prompting", log_x=True,
        level=(1.0, PROMPTED), from_zero=True,
    )]  # fmt: skip


def leak_section(found: Optional[dict]) -> Section:
    """Shows what `check_splits` found."""
    section = Section("Leak check")
    if not found:
        return section
    train, splits = found["train"], found["splits"]
    section.parts.append(
        f"What evaluation shares with training (records: {train['records']:,}, tasks: {train['tasks']:,}, "
        f"instructions: {train['instructions']:,}), texts compared in lower case with single blanks. "
        + (f"Shared, but meant to be new: {found['leaks']:,}."
           if found["leaks"] else "Nothing is shared but what is meant to be.")
    )  # fmt: skip
    head = ["split", "shared by design", "records", "tasks", "instructions", "shared tasks", "shared instructions",
            "shared instances", "leaks"]  # fmt: skip
    rows = [
        [plain(split), " and ".join(f"{kind}s" for kind in one["may_share"]) or "nothing",
         *(f"{one[name]:,}" for name in ("records", "tasks", "instructions")),
         *(f"{one['shared'][kind]:,}" for kind in ("task", "instruction", "instance")), f"{one['leaks']:,}"]
        for split, one in splits.items()
    ]  # fmt: skip
    leaking = [place for place, one in enumerate(splits.values()) if one["leaks"]]
    section.parts.append(Table(head, rows, text=2, strong=leaking))
    return section
