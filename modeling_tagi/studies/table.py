"""The table of a study in Markdown."""

from typing import Iterator, Optional

_NOTHING = "–"


def table(summary: dict) -> str:
    """Returns, for each split and number of training tasks, the methods with their intervals and differences."""
    lines = []
    for split in dict.fromkeys(row["split"] for row in summary["rows"]):
        for size in dict.fromkeys(row["train_tasks"] for row in summary["rows"]):
            rows = [row for row in summary["rows"] if row["split"] == split and row["train_tasks"] == size]
            if rows:
                lines += [f"### {_plain(split)}, {size} training tasks", "", *_part(summary, split, rows), ""]
    groups = [f"{_plain(split)}: {found['tasks']} tasks of {found['groups']} groups"
              for split, found in (summary.get("clusters") or {}).items()]  # fmt: skip
    lines.append(f"In brackets: 95 % intervals over the groups that the tasks come from ({'; '.join(groups)}).")
    lines += ["", *(f"* {note}" for note in summary.get("notes", ()))]
    return "\n".join(lines).rstrip()


def _part(summary: dict, split: str, rows: list[dict]) -> Iterator[str]:
    """Yields the lines of one split's methods at one number of training tasks."""
    metrics = summary["metrics"]
    main = next((m for m in ("rank_accuracy", *metrics) if any(m in row for row in rows)), metrics[0])
    heads = [*map(_plain, metrics), f"{_plain(main)}, lowest and highest seed", f"{_plain(main)} − prompted's"]
    yield "| method | " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * len(heads)
    for row in rows:
        shown = row.get(main) or {}
        cells = [_interval(row.get(metric)) for metric in metrics]
        cells += [_seeds(shown.get("seeds")), _interval(shown.get("minus_prompted"), sign=True)]
        yield f"| {_plain(row['method'])} | " + " | ".join(cells) + " |"
    if any("rank" in metric for metric in metrics):
        for name, value in summary["floors"].get(split, {}).items():
            cells = [f"{value:.1f}" if "rank" in metric else _NOTHING for metric in metrics]
            yield f"| *{name}* | " + " | ".join([*cells, _NOTHING, _NOTHING]) + " |"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _seeds(seeds: Optional[dict[str, float]]) -> str:
    if not seeds:
        return _NOTHING
    return f"{min(seeds.values()):.1f}, {max(seeds.values()):.1f} (of {len(seeds)})"


def _interval(value: Optional[dict], sign: bool = False) -> str:
    if value is None:
        return _NOTHING
    mean, low, high = (f"{value[name]:{'+' if sign else ''}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
