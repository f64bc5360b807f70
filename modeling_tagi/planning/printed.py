"""A plan for people: its tables in Markdown, with numbers in units that can be read."""

from pathlib import Path
from typing import Optional

from ..common.markdown import markdown_table
from .trial import STEPS

_AROUND = {"evaluation": "evaluation, report", "start": "start, reading data"}  # what is no stage that trains
_UNKNOWN = "–"


def shown(plan: dict) -> str:
    """Returns the text of a plan that `plan_run` has made."""
    backbone = plan["backbone"]
    from_where = ", shape by the recipe" if backbone["shape_from"] == "config" else ""
    lines = [f"Plan of {Path(plan['output_dir']).name}: {backbone['name']} ({backbone['model_type']}{from_where})"]
    for part in (_parameters, _data, _lengths, _tokens, _memory_and_time, _notes):
        lines += ["", *part(plan)] if part(plan) else []
    return "\n".join(lines)


def _parameters(plan: dict) -> list[str]:
    parameters = plan["parameters"]
    bank = parameters["adapters_in_bank"]
    names = ("backbone", "hypernetwork", "fusion", "total", "trained", "frozen")
    rows = [[name, millions(parameters[name])] for name in names]
    rows.append(["a task adapter" + (f" (of {bank})" if bank else ""), millions(parameters["adapter"])])
    return markdown_table(["parameters", "millions"], rows)


def _data(plan: dict) -> list[str]:
    data = plan["data"]
    if data is None:
        return []
    return [f"Data to train on: {data['records']:,} records, {data['tasks']} tasks, {data['groups']} groups"]


def _lengths(plan: dict) -> list[str]:
    lengths = {name: found for name, found in plan["lengths"].items() if found is not None}
    rows = [[name, *(f"{found[name]:,.0f}" for found in lengths.values())] for name in lengths["limit"]]
    return markdown_table(["tokens of", *lengths], rows)


def _tokens(plan: dict) -> list[str]:
    rows = []
    for stage in plan["stages"]:
        tokens, most = stage["tokens"]["mean"] or stage["tokens"]["limit"], stage["tokens"]["limit"]
        epochs = _UNKNOWN if stage["epochs"] is None else f"{stage['epochs']:.1f}"
        rows.append([
            stage["name"], f"{stage['steps']:,}", f"{stage['rows_per_step']:,.0f}", epochs,
            *(millions(number) for number in tokens.values()), millions(sum(most.values())),
        ])  # fmt: skip
    heads = ["stage", "steps", "rows a step", "epochs", "hypernetwork reads", "backbone reads", "targets",
             "teacher reads", "at most"]  # fmt: skip
    at = "the mean lengths" if plan["lengths"]["mean"] is not None else "the limits of all lengths"
    return [f"Tokens in millions, at {at}:", "", *markdown_table(heads, rows)]


def _memory_and_time(plan: dict) -> list[str]:
    rows, total = [], plan["total"]
    for stage in plan["stages"]:
        rows.append([
            stage["name"], *(bytes_text(number) for number in stage["device_memory"].values()),
            bytes_text(stage["disk"]["checkpoints"]), bytes_text(stage["disk"]["kept"]), flops_text(stage["flops"]),
            time_text(stage["seconds"]),
        ])  # fmt: skip
    for name, seconds in (plan["time"] or {}).items():
        rows.append([_AROUND[name], *[""] * 8, time_text(seconds)])
    rows.append(["all", "", "", "", "", bytes_text(total["device_memory"]), bytes_text(total["disk"]), "",
                 flops_text(total["flops"]), time_text(total["seconds"])])  # fmt: skip
    heads = ["stage", "weights", "gradients", "optimizer", "activations, roughly", "memory", "checkpoints", "kept",
             "FLOPs", "time"]  # fmt: skip
    greatest = plan["lengths"]["mean"] is not None
    at = "the greatest lengths of the data" if greatest else "the limits of all lengths"
    return [f"Memory at {at}, and time:", "", *markdown_table(heads, rows)]


def _notes(plan: dict) -> list[str]:
    notes = ["a sequence is as long as it is: padding to the longest of a batch comes on top", *plan["notes"]]
    if plan["total"]["seconds"] is not None:
        notes.insert(0, f"time: {_timed(plan)}")
    return [f"* {note}" for note in notes]


def _timed(plan: dict) -> str:
    """Says what the plan's seconds are worked out from."""
    device, tried = plan["device"], plan["time"]
    if tried is not None:
        return f"of {STEPS} steps of every stage and a few answers, tried on {device['name']}, as busy as it is"
    what = f"{device['name']}, measured:" if device["name"] != "given" else "a device of"
    speed = f"{flops_text(device['flops_per_second'])}/s in {device['dtype']}, {device['utilisation']:.0%} of it used"
    return f"{what} {speed}; evaluation and the reading of data are not counted"


def millions(number: float) -> str:
    return f"{number / 1e6:,.{1 if number >= 1e7 else 3}f}"


def bytes_text(number: Optional[float]) -> str:
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def flops_text(number: Optional[float]) -> str:
    return _scaled(number, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def time_text(seconds: Optional[float]) -> str:
    if seconds is None:
        return _UNKNOWN
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _scaled(number: Optional[float], base: int, units: tuple[str, ...]) -> str:
    if number is None:
        return _UNKNOWN
    for unit in units[:-1]:
        if number < base:
            return f"{number:.3g} {unit}"
        number /= base
    return f"{number:,.1f} {units[-1]}"
