"""The few-shot curve as files: its lines, a page with tables, and a plot."""

import json
import time
from pathlib import Path
from typing import Sequence

import torch

from ..common.console import circumstances, quiet_libraries
from ..common.writing import write_text
from ..data.readers import DEFAULT, READERS
from ..data.records import Splits
from ..data.sources import read_source
from ..evaluation.report.plots import PALETTE
from ..modeling_tagi import TagiModel
from .few_shot_curve import SCORED, SIZES, STARTS, Curve, run

_HOW = """\
A checkpoint a seed. Each task is tuned on the first n of its examples, drawn by the seed, and scored on others; all
tasks are tuned side by side over one frozen backbone. Learning rate and steps are chosen for each start and number of
examples with the first checkpoint on the `dev` split, never on the one that is shown."""


def write_curve(
    checkpoints: Sequence[str],
    output: str,
    data: str = "builtin",
    split: str = "unseen",
    sizes: Sequence[int] = SIZES,
    lengths: tuple[int, int] = (64, 16),
    command: str = "",
) -> str:
    """Tunes, scores and writes the curve of checkpoints (one for each seed) to files, and returns its table.

    Args:
        checkpoints: Trained generators.
        output: The files without their ending: .jsonl, .md and .png.
        data: `builtin`, or a folder of tables, with dev and the shown split.
        split: The one that is shown.
        sizes: Numbers of examples.
        lengths: Tokens kept of an input and of a target.
        command: What was called, for the page.
    """
    quiet_libraries()
    began = time.monotonic()
    splits = _splits(data, max(sizes))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curves = [
        Curve(TagiModel.from_pretrained(name).eval().to(device), seed, lengths)
        for seed, name in enumerate(checkpoints)
    ]
    lines = run(curves, splits, split, sizes)
    seconds = time.monotonic() - began
    place = Path(output)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    write_text(place.with_suffix(".md"), page(lines, place.with_suffix(".png").name, len(curves), seconds, command))
    plot(lines, place.with_suffix(".png"))
    return table(lines)


def _splits(data: str, most: int) -> Splits:
    if data not in READERS or READERS[data].in_folder:
        return read_source(DEFAULT, data)[0]
    # as many to train on as in the quickstart, so that the check for leaks sees what was trained on
    return read_source(data, options={"train_instances": 200, "eval_instances": SCORED + most})[0]


def page(lines: Sequence[dict], picture: str, seeds: int, seconds: float, command: str) -> str:
    """Returns the page, in Markdown."""
    facts = circumstances("", 0)
    parts = [
        "# Few-shot tuning, from the generated adapter and from nothing",
        f"```bash\n{command}\n```",
        _HOW,
        "\n".join(f"* {name}: {what}" for name, what in STARTS.items()),
        f"Exact match in per cent on {lines[0]['tasks']} tasks of `{lines[0]['split']}`, {SCORED} records each; means "
        f"over {seeds} seeds with 95 % intervals over the groups that the tasks come from.",
        table(lines),
        f"![the curve]({picture})",
        f"{seconds / 60:.0f} minutes on {facts['threads']} thread(s) of {facts['device']}; torch {facts['torch']}, "
        f"transformers {facts['transformers']}.",
    ]
    return "\n\n".join(parts) + "\n"


def table(lines: Sequence[dict]) -> str:
    """Returns the table of means over seeds with their intervals, a row for each number of examples."""
    means = {(line["start"], line["examples"]): line for line in lines if line["seed"] is None}
    starts, sizes = (list(dict.fromkeys(key[place] for key in means)) for place in (0, 1))

    def cell(start: str, size: int) -> str:
        line = means[start, size]
        return f"{line['exact_match']:.1f} [{line['low']:.1f}, {line['high']:.1f}]"

    def gain(start: str, size: int) -> str:
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*means[start, size]["generated_minus_this"])

    others = [start for start in starts if start != "generated"]
    head = ["examples", *starts, *(f"generated − {n}" for n in others)]
    rows = [head, ["---:"] * len(head)]
    for size in sizes:
        rows.append([str(size), *(cell(s, size) for s in starts), *(gain(s, size) for s in others)])
    settings = [["start", "examples", "learning rate", "steps", "exact match on dev"], ["---", *["---:"] * 4]]
    for (start, size), line in means.items():
        if size:
            values = f"{line['learning_rate']:g}", str(line["steps"]), f"{line['dev_exact_match']:.1f}"
            settings.append([start, str(size), *values])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, settings))


def plot(lines: Sequence[dict], path: Path):
    """Plots the curves with their intervals."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    means = [line for line in lines if line["seed"] is None]
    sizes = sorted({line["examples"] for line in means})
    places = {size: place for place, size in enumerate(sizes)}
    for colour, start in zip(PALETTE, dict.fromkeys(line["start"] for line in means)):
        of_start = [line for line in means if line["start"] == start]
        x = [places[line["examples"]] for line in of_start]
        axes.plot(x, [line["exact_match"] for line in of_start], "o-", color=colour, label=STARTS[start], markersize=4)
        low, high = ([line[name] for line in of_start] for name in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="examples of the task", ylabel="exact match on other examples (%)", ylim=(0, 100))
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.grid(color="#e6e9ee")
    figure.legend(loc="outside lower left", title="tuning starts from", alignment="left", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
