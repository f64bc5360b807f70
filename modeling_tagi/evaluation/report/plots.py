"""The plots of a report, as SVG: as wide as a phone, so that their letters are large enough there too."""

import re
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Iterator, Optional, Sequence

from .page import Plot

_DOTS = 150  # of a PNG, per inch
_WIDTH = 5.0  # inches; letters of 10 points are then 1/36 of the width
_STYLE = {
    "font.family": "DejaVu Sans",  # which matplotlib brings along; a list of fonts is searched for every word
    "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e9ee", "axes.edgecolor": "#8a94a3", "axes.axisbelow": True, "xtick.color": "#3c4654",
    "ytick.color": "#3c4654", "axes.labelcolor": "#1c2430", "legend.frameon": False, "legend.fontsize": 9,
    "lines.linewidth": 1.8, "svg.fonttype": "path",
}  # fmt: skip
PALETTE = ("#1b5fc1", "#e0730d", "#2b8a3e", "#b3261e", "#7b4bb7", "#0f8b8d", "#b5891b", "#c2438b", "#6b7785",
           "#5c3d2e")  # fmt: skip
GREY = "#b4bcc7"
_PALE = "#83abe2"
_CATEGORIES = 20  # colours that can still be told apart
_ROWS = 14  # of bars, in a plot


@dataclass
class Line:
    """Holds one line of a plot.

    Args:
        x, y: Places of its points.
        low, high: An interval of each y, or nothing.
        bars: Whether intervals are error bars; else a band.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Optional[Sequence[float]] = None
    high: Optional[Sequence[float]] = None
    bars: bool = False


def bar_plot(
    name: str, caption: str, values: dict[str, tuple[float, Optional[Sequence[float]]]], unit: str,
    strong: Sequence[str] = (), grey: Sequence[str] = (),
) -> Plot:  # fmt: skip
    """Plots a bar for each name, with its interval (or `None`) and its number, in three shades."""
    with _drawing(0.9 + 0.29 * len(values)) as (figure, axes, done):
        for place, (label, (value, interval)) in enumerate(values.items()):
            colour = PALETTE[0] if label in strong else GREY if label in grey else _PALE
            axes.barh(place, value, 0.68, color=colour)
            end = value
            if interval is not None:
                low, high = interval
                axes.plot([low, high], [place, place], color="#1c2430", linewidth=1.2)
                end = max(value, high)
            axes.annotate(f"{value:.1f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set(yticks=range(len(values)), yticklabels=list(values), xlabel=unit)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
    return done(name, caption)


def grouped_bar_plots(
    name: str, caption: str, categories: Sequence[str], series: dict[str, Sequence[Optional[float]]], unit: str
) -> list[Plot]:
    """Plots for each category a bar of each series; `None` is no bar. Many categories make several plots."""
    count = -(-len(categories) // _ROWS)
    size = -(-len(categories) // count)
    most = max(value for values in series.values() for value in values if value is not None)
    plots = []
    for start in range(0, len(categories), size):
        part = {label: values[start: start + size] for label, values in series.items()}
        suffix, which = (f"-{len(plots) + 1}", f" ({len(plots) + 1} of {count})") if count > 1 else ("", "")
        rows = categories[start: start + size]
        plots.append(_grouped_bars(name + suffix, caption + which, rows, part, unit, most))
    return plots


def _grouped_bars(name, caption, categories, series, unit, most) -> Plot:
    each = 0.8 / len(series)
    with _drawing(1.0 + len(categories) * (0.12 + 0.13 * len(series))) as (figure, axes, done):
        for number, (label, values) in enumerate(series.items()):
            for place, value in enumerate(values):
                if value is not None:
                    at = place + (number - (len(series) - 1) / 2) * each
                    axes.barh(at, value, each, color=PALETTE[number])
                    if value == 0:  # else one could take it for missing
                        axes.annotate("0", (0, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
            axes.barh(0, 0, color=PALETTE[number], label=label)  # for the legend
        axes.set(yticks=range(len(categories)), yticklabels=[_short(text, 24) for text in categories], xlabel=unit)
        axes.set_ylim(len(categories) - 0.4, -0.6)
        axes.set_xlim(0, (most or 1) * 1.05)
        axes.grid(axis="y", visible=False)
        _legend(figure, axes)
    return done(name, caption)


def line_plot(
    name: str,
    caption: str,
    lines: dict[str, Line],
    x_unit: str,
    y_unit: str,
    log_x: bool = False,
    level: Optional[tuple[float, str]] = None,
    from_zero: bool = False,
) -> Plot:
    """Plots lines over one axis; `level` is a height that is marked, and its name. Few points are marked too."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    with _drawing(3.3 + 0.17 * ((len(lines) + 2) // 3)) as (figure, axes, done):
        for number, (label, line) in enumerate(lines.items()):
            colour = PALETTE[number % len(PALETTE)]
            style = {"color": colour, "label": label, "marker": "o" if len(line.x) <= 12 else "", "markersize": 4,
                     "linestyle": "-" if number < len(PALETTE) else "--"}  # fmt: skip
            if line.low is not None and line.bars:
                below = [max(0.0, y - low) for y, low in zip(line.y, line.low)]
                above = [max(0.0, high - y) for y, high in zip(line.y, line.high)]
                axes.errorbar(line.x, line.y, (below, above), capsize=3, elinewidth=1.2, **style)
            else:
                axes.plot(line.x, line.y, **style)
                if line.low is not None:
                    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
        if level is not None:
            axes.axhline(level[0], color="#5b6675", linestyle=":", linewidth=1.4, label=level[1])
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(_ticks_at(next(iter(lines.values())).x))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set(xlabel=x_unit, ylabel=y_unit)
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(lines) > 1 or level is not None:
            _legend(figure, axes)
    return done(name, caption)


def map_plot(name: str, caption: str, points: Sequence[dict], explained: Sequence[float]) -> Plot:
    """Plots points coloured by group, with a mark for each split; beyond 20 groups the rarest have one colour."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    counts = Counter(point["group"] for point in points)
    named = sorted(counts) if len(counts) <= _CATEGORIES else sorted(g for g, _ in counts.most_common(_CATEGORIES - 1))
    colours = dict(zip(named, PALETTE if len(named) <= len(PALETTE) else colormaps["tab20"].colors))
    splits = list(dict.fromkeys(point["split"] for point in points))
    marks = dict(zip(splits, ("o", "^", "s", "D", "v", "P", "X", "*")))
    rows = (len(colours) + 1 + 2) // 3 + (len(splits) + 2) // 3
    with _drawing(4.1 + 0.17 * rows) as (figure, axes, done):
        for split, group in dict.fromkeys((point["split"], point["group"]) for point in points):
            here = [point for point in points if (point["split"], point["group"]) == (split, group)]
            seen = split == "train"
            axes.scatter(
                [point["x"] for point in here], [point["y"] for point in here], s=16 if seen else 40,
                marker=marks.get(split, "o"), color=[colours.get(group, GREY)], linewidths=0 if seen else 0.7,
                edgecolors="none" if seen else "#1c2430", alpha=0.75 if seen else 1.0, zorder=2 if seen else 3,
            )  # fmt: skip
        axes.set(
            xlabel=f"first component of ΔW ({explained[0]:.0%} of the variance)",
            ylabel=f"second component ({explained[1]:.0%})",
        )
        style = {"linestyle": "", "markersize": 6}
        handles = [Line2D([], [], marker=marks.get(split, "o"), label=_split_name(split), **style,
                          color="white", markeredgecolor="#1c2430") for split in splits]  # fmt: skip
        handles += [Line2D([], [], marker="o", color=colour, label=_short(group, 19), **style)
                    for group, colour in colours.items()]  # fmt: skip
        if len(named) < len(counts):
            handles.append(Line2D([], [], marker="o", color=GREY, label=f"{len(counts) - len(named)} others", **style))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=0.8, handletextpad=0.2,
                      fontsize=8)  # fmt: skip
    return done(name, caption)


def _split_name(split: str) -> str:
    return "seen (train)" if split == "train" else split.replace("_", " ")


def _ticks_at(places: Sequence[float]):
    from matplotlib.ticker import FixedLocator

    return FixedLocator(places if len(places) <= 8 else [x for x in places if str(x).strip("0") == "1"])


def _legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) <= 15 and len(labels) > 2 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.0, handlelength=1.6)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@contextmanager
def _drawing(height: float) -> Iterator[tuple]:
    """Yields a figure of this height in inches, its axes, and what makes a `Plot` of it, the same bytes each time."""
    import matplotlib  # takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")

    def done(name: str, caption: str) -> Plot:
        file = StringIO()
        with _without_glyph_warnings(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # a picture keeps the layout that the drawing has found
        return Plot(name, _with_own_ids(file.getvalue(), name), caption, picture)

    def picture() -> bytes:
        file = BytesIO()
        with _without_glyph_warnings(), matplotlib.rc_context(_STYLE):
            figure.savefig(file, format="png", dpi=_DOTS, metadata={"Software": None})
        return file.getvalue()

    with matplotlib.rc_context(_STYLE):
        yield figure, figure.add_subplot(), done


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """Silences warnings of letters that the font lacks, such as an emoji in a task's name; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _with_own_ids(svg: str, name: str) -> str:
    """Returns the drawing with ids that no other plot of a page has."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
