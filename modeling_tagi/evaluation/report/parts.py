"""What the reports of runs and of studies share: how numbers are written; losses, adapters, costs and leaks."""

import json
from pathlib import Path
from statistics import fmean
from typing import Iterable, Optional, Sequence

import yaml

from ...common.writing import reading
from .. import references
from .page import Plot, Section, Table
from .plots import Line, line_plot, map_plot

INTERVALS = "95 % intervals over the groups that the tasks come from (families, categories or data sets)"
UNITS = {
    "exact_match": "exact match (%)", "rouge_l": "ROUGE-L (%)", "rank_accuracy": "rank accuracy (%)",
    "rank_accuracy_mean": "rank accuracy, by token (%)",
}  # fmt: skip
STEPS = "optimizer steps"
_SPELLED = {"tagi": "TAGI", "hint": "HINT", "hypter": "Hypter", "hypertuning": "HyperTuning"}
_TERMS = {  # of the finetuning loss
    "loss": "all terms, weighted", "loss_prediction": "prediction", "loss_distillation": "distillation",
    "loss_alignment": "alignment",
}  # fmt: skip
_SIMILARITY = {
    "own": "generated to its own tuned one", "others": "generated to another group's tuned",
    "ratio": "ratio of these two", "generated": "generated to another generated", "tuned": "tuned to another tuned",
}  # fmt: skip


def title_of(name: str) -> str:
    """Returns what a report calls a method or a reference."""
    return _SPELLED.get(name) or references.title_of(name)


def number(value: Optional[float], digits: int = 1, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign},.{digits}f}".replace("-", "−")


def with_interval(value: Optional[float], interval: Optional[Sequence[float]] = None, sign: str = "") -> str:
    """`72.5 [70.1, 74.0]`."""
    if value is None or interval is None:
        return number(value, sign=sign)
    return f"{number(value, sign=sign)} [{number(interval[0], sign=sign)}, {number(interval[1], sign=sign)}]"


def duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def read_json(path: Path) -> Optional[dict]:
    return json.loads(path.read_text()) if path.is_file() else None


def read_lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file; none if it is not there."""
    if not path.is_file():
        return []
    with reading(path, "delete it: a report leaves out what is not there, and a study writes its own lines anew"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings_table(path: Path, folded: str) -> list[Table]:
    """The fields of a YAML file, shut."""
    values = yaml.safe_load(path.read_text()) if path.is_file() else None
    if not values:
        return []
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in values.items()]
    return [Table((), rows, text=2, wrap=True, folded=folded)]


def loss_plots(folder: Path, stages: Iterable[str]) -> list[Plot]:
    """A plot of the losses of each stage of a run that has a log; the alignment, which has no unit, apart."""
    plots = []
    for stage in stages:
        logs = {path.stem.removeprefix("log").removeprefix("-"): read_lines(path)
                for path in sorted((folder / "stages" / stage).glob("log*.jsonl"))}  # fmt: skip
        logs = {part: log for part, log in logs.items() if log}
        if not logs:
            continue
        name, title, unit = f"loss-{stage.replace('_', '-')}", stage.replace("_", " "), "loss (nats per token)"
        caption = f"Loss of the stage “{title}” over its steps"
        if stage == "task_adapters":
            caption += ", summed over the adapters that are tuned together"
            lines = {f"adapters from {part} on" if len(logs) > 1 else "all": _line(log, "loss")
                     for part, log in logs.items()}  # fmt: skip
        else:
            log = next(iter(logs.values()))
            terms = [term for term in _TERMS if any(term in entry for entry in log)]
            if terms == ["loss", "loss_prediction"]:
                terms = ["loss_prediction"]
            lines = {_TERMS[term] if len(terms) > 1 else "all": _line(log, term) for term in terms
                     if term != "loss_alignment"}  # fmt: skip
        plots.append(line_plot(name, caption, lines, STEPS, unit, from_zero=True))
        if any("loss_alignment" in entry for log in logs.values() for entry in log):
            line, unit = {"alignment": _line(log, "loss_alignment")}, "alignment loss (no unit)"
            caption = f"Alignment of generated with tuned adapters in the stage “{title}” (L_ins, before its weight)"
            plots.append(line_plot(f"{name}-alignment", caption, line, STEPS, unit, from_zero=True))
    return plots


def _line(log: Sequence[dict], name: str) -> Line:
    shown = [entry for entry in log if name in entry]
    return Line([entry["step"] for entry in shown], [entry[name] for entry in shown])


def mean_line(logs: Sequence[Sequence[dict]], name: str) -> Optional[Line]:
    """The mean over logs (seeds) of what they say at the steps that all have, and a band from least to most."""
    by_step = [{entry["step"]: entry[name] for entry in log if entry.get(name) is not None} for log in logs]
    steps = [step for step in by_step[0] if all(step in values for values in by_step)]
    if not steps:
        return None
    values = [[log[step] for log in by_step] for step in steps]
    band = (list(map(min, values)), list(map(max, values))) if len(logs) > 1 else (None, None)
    return Line(steps, list(map(fmean, values)), *band)


def adapter_section(found: Optional[dict], whose: str = "") -> list[Section]:
    """What `adapter_map` found."""
    if not found or not found.get("points"):
        return []
    caption = f"Generated updates ΔW{whose}: the tasks by category, in the first two principal components"
    section = Section("Generated adapters", [map_plot("adapters", caption, found["points"], found["explained"])])
    if found.get("similarity"):
        rows = [[title, number(found["similarity"].get(name), 3)] for name, title in _SIMILARITY.items()]
        head, caption = ["adapter", "mean cosine of ΔW"], "Similarity of adapters"
        section.parts.append(Table(head, rows, caption=caption, beside=True))
    return [section]


def cost_section(found: Optional[dict]) -> list[Section]:
    """What `costs_if_known` found."""
    if not found:
        return []
    if "missing" in found:
        return [Section("Cost", [f"Not counted: {found['missing']}."])]
    lengths = found["lengths"]
    text = (
        f"Computed, not measured: FLOPs of a task with {found['inputs_per_task']} inputs on the backbone "
        f"“{found['backbone']}”, from reading the instruction to the last token; on average "
        f"{lengths['instruction']:.0f} tokens of instruction, {lengths['input']:.0f} of input and "
        f"{lengths['target']:.0f} of target."
    )
    rows = [[title_of(name), f"{cost['flops'] / 1e9:,.3g}", number(cost["relative"], 3)]
            for name, cost in found["methods"].items()]  # fmt: skip
    section = Section("Cost", [text, Table(["method", "GFLOPs", "relative to prompting"], rows)])
    curves = {
        "by_instruction_length": ("instruction length (tokens)", "Cost by the length of the instruction"),
        "by_inputs": ("inputs per task", "Cost by the number of inputs"),
    }
    for key, (unit, caption) in curves.items():
        values = dict(found.get(key) or {})
        x, same = values.pop("x", None), {}
        for method, y in values.items():
            if method != "prompted":
                same.setdefault(tuple(y), []).append(title_of(method))
        if x and same:
            lines = {", ".join(names): Line(x, y) for y, names in same.items()}
            section.parts.append(line_plot(
                f"cost-{key.replace('_', '-')}", caption, lines, unit, "FLOPs relative to prompting", log_x=True,
                level=(1.0, "prompted"), from_zero=True,
            ))  # fmt: skip
    return [section]


def leak_section(found: Optional[dict]) -> list[Section]:
    """What `check_splits` found."""
    if not found:
        return []
    train, splits = found["train"], found["splits"]
    text = (
        f"What evaluation shares with training (records: {train['records']:,}, tasks: {train['tasks']:,}, "
        f"instructions: {train['instructions']:,}), texts compared in lower case with single blanks. "
        + (f"Shared, but meant to be new: {found['leaks']:,}."
           if found["leaks"] else "Nothing is shared but what is meant to be.")
    )  # fmt: skip
    head = ["split", "shared by design", "records", "tasks", "instructions", "shared tasks", "shared instructions",
            "shared instances", "leaks"]  # fmt: skip
    rows = [
        [split.replace("_", " "), " and ".join(f"{kind}s" for kind in one["may_share"]) or "nothing",
         *(f"{one[name]:,}" for name in ("records", "tasks", "instructions")),
         *(f"{one['shared'][kind]:,}" for kind in ("task", "instruction", "instance")), f"{one['leaks']:,}"]
        for split, one in splits.items()
    ]  # fmt: skip
    leaking = [place for place, one in enumerate(splits.values()) if one["leaks"]]
    return [Section("Leak check", [text, Table(head, rows, text=2, strong=leaking)])]
