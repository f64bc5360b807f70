import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from transformers import T5Config

from modeling_tagi.configuration_tagi import TagiConfig
from modeling_tagi.costs.flops import Lengths
from modeling_tagi.costs.inference import cost_of_methods
from modeling_tagi.data.records import Record
from modeling_tagi.data.splits import check_splits
from modeling_tagi.evaluation.report import run_report, study_report
from modeling_tagi.evaluation.report.page import Section, Table, html_page, markdown_page
from modeling_tagi.evaluation.report.plots import Line, bar_plot, line_plot
from modeling_tagi.evaluation.report.write import write_report
from modeling_tagi.evaluation.statistics import SCORES, mean_interval
from modeling_tagi.studies.summary import summarise
from modeling_tagi.studies.table import table

SKILL = {"tagi": 72, "prompted": 65, "hint": 60, "without_fusion": 66, "wrong_instruction": 3, "no_instruction": 2}
TRAINED = ("tagi", "prompted", "hint", "without_fusion")
FAMILIES = [f"family_{letter}" for letter in "abcdef"]
TASKS = {f"{family}:{n}": family for family in FAMILIES for n in range(4)}


def lines_of(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def method_scores(method, seed=0):
    rng = random.Random(f"{method} {seed}")
    tasks = {task: {"exact_match": min(100, max(0, rng.gauss(SKILL[method], 12))), "n": 20} for task in TASKS}
    for scores in tasks.values():
        scores["rouge_l"] = min(100, scores["exact_match"] + 8)
    means = {c: sum(t[c] for t in tasks.values()) / len(tasks) for c in ("exact_match", "rouge_l")}
    by_family = {
        family: {"exact_match": sum(tasks[t]["exact_match"] for t in TASKS if TASKS[t] == family) / 4, "rouge_l": 50.0,
                 "n": 80} for family in FAMILIES
    }  # fmt: skip
    return {**means, "n": 480, "per_task": tasks, "per_category": by_family,
            **{f"{c}_interval": [mean - 5, mean + 4] for c, mean in means.items()}}  # fmt: skip


def write_run(folder, methods=("tagi", "prompted", "wrong_instruction", "no_instruction"), seed=0, train_tasks=300):
    """A run's folder as `run_experiment` leaves it, with scores made up."""
    folder.mkdir(parents=True)
    splits = {
        split: {"methods": {method: method_scores(method, f"{split} {seed}") for method in methods},
                "differences": {"tagi - prompted": {"exact_match": {"mean": 7.1, "low": -1.2, "high": 12.3}}},
                "chance": None, "majority": None} for split in ("unseen", "dev")
    }  # fmt: skip
    old, new = (Record(t, f"say {t}", f"input of {t}", ("y",)) for t in ("old", "new"))
    results = {
        "splits": splits, "tasks": {task: {"group": group, "split": "unseen"} for task, group in TASKS.items()},
        "notes": ["dev: one task alone, so intervals over tasks have no width"],
        "seconds": {"instruction_tuning": 90.5, "task_adapters": 40.0, "finetuning": 190.0, "evaluation": 12.0},
        "run": {"command": f"train.py a.yaml --seed {seed}", "seed": seed, "train_tasks": train_tasks,
                "torch": "9.8.7", "transformers": "6.5.4", "peft": "0.3.2", "python": "3.99.1", "threads": 3,
                "seconds_of_this_call": 341.0, "losses": {"finetuning": 0.4567}},
        "leaks": check_splits({"train": [old], "unseen": [new], "dev": [old]}, same_tasks=["dev"]),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "settings.yaml").write_text("seed: 0\nfinetuning.steps: 1357\n")
    rng = random.Random(seed)
    steps = range(50, 1001, 50)
    loss = {step: 3 / step**0.3 + rng.random() / 20 for step in steps}
    log = [{"step": s, "loss": 1.3 * x, "loss_prediction": x, "loss_distillation": x / 3, "loss_alignment": 2 * x}
           for s, x in loss.items()]  # fmt: skip
    lines_of(folder / "stages" / "finetuning" / "log.jsonl", log)
    lines_of(folder / "stages" / "instruction_tuning" / "log.jsonl", [{"step": s, "loss": x} for s, x in loss.items()])
    for part in ("add", "nth"):
        lines_of(folder / "stages" / "task_adapters" / f"log-{part}.jsonl",
                 [{"step": s, "loss": 9 * x} for s, x in loss.items()])  # fmt: skip
    scores = [{"step": s, "split": "unseen", "exact_match": 70 * (1 - 0.99**(s / 5)) + rng.random(), "rouge_l": 80}
              for s in range(250, 1001, 250)]  # fmt: skip
    lines_of(folder / "stages" / "finetuning" / "scores.jsonl", scores)
    points = [
        {"task": f"{task}{split}", "group": group, "split": split, "x": rng.gauss(ord(group[-1]) - 100, 1),
         "y": rng.gauss(0, 1)} for task, group in TASKS.items() for split in ("train", "unseen")
    ]  # fmt: skip
    similarity = {"own": 0.615, "others": 0.205, "ratio": 3.0, "generated": 0.25, "tuned": 0.111}
    (folder / "adapters.json").write_text(
        json.dumps({"points": points, "explained": [0.31, 0.12], "similarity": similarity})
    )
    config = TagiConfig(T5Config(vocab_size=400, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4))
    (folder / "costs.json").write_text(json.dumps(cost_of_methods(config, Lengths(30, 12, 4))))
    return results


def write_study(folder, seeds=(0, 1, 2), sizes=(300, 60)):
    """A study's folder as `run_study` leaves it."""
    by_split, by_task = [], []
    for size in sizes:
        for seed in seeds:
            for method in SKILL:
                found = method_scores(method, f"{seed} {size}")
                place = {"method": method, "seed": seed, "train_tasks": size, "split": "unseen"}
                kind = "trained" if method in TRAINED else "reference"
                by_split.append({**place, "kind": kind, "exact_match": found["exact_match"], "n": 480, "seconds": 300})
                by_task += [{**place, "task": task, "group": TASKS[task], **scores}
                            for task, scores in found["per_task"].items()]  # fmt: skip
                if method in TRAINED:
                    name = f"{method}-seed{seed}" + ("" if size == sizes[0] else f"-tasks{size}")
                    write_run(folder / "cells" / name, seed=seed, train_tasks=size)
    lines_of(folder / "by_split.jsonl", by_split)
    lines_of(folder / "by_task.jsonl", by_task)
    summary = {**summarise(by_split, by_task), "command": "tagi study b.yaml", "versions": {"torch": "9.8.7"},
               "seconds": 7200.0, "workers": 2, "threads": 1}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "study.yaml").write_text("config: a.yaml\nseeds: [0, 1, 2]\n")
    return summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    results = write_run(folder)
    return folder, results, write_report(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "ours"
    summary = write_study(folder)
    return folder, summary, write_report(folder)


def test_a_studys_intervals_are_over_groups_and_older_lines_without_them_are_noted(study):
    folder, summary, _ = study
    by_split, by_task = ([json.loads(line) for line in (folder / name).read_text().splitlines()]
                         for name in ("by_split.jsonl", "by_task.jsonl"))  # fmt: skip
    groups = {line["task"]: line["group"] for line in by_task}
    assert summary["clusters"] == {"unseen": {"tasks": len(groups), "groups": len(set(groups.values()))}}
    assert not summary["notes"]
    first = summary["rows"][0]
    values = {}
    for line in by_task:
        if (line["method"], line["train_tasks"]) == (first["method"], first["train_tasks"]):
            values.setdefault(line["task"], []).append(line["exact_match"])
    means = [sum(seeds) / len(seeds) for seeds in values.values()]
    expected = mean_interval(means, [groups[task] for task in values], bounds=SCORES)
    assert (first["exact_match"]["low"], first["exact_match"]["high"]) == (
        round(expected.low, 2), round(expected.high, 2)
    )  # fmt: skip
    older = summarise(by_split, [{name: x for name, x in line.items() if name != "group"} for line in by_task])
    alone = mean_interval(means, bounds=SCORES)
    assert older["rows"][0]["exact_match"]["low"] == round(alone.low, 2) != round(expected.low, 2)
    assert "do not say which group" in older["notes"][0]
    shown = table({**older, "floors": {}})
    assert "these results do not say which group a task comes from" in shown and "(unseen: " in shown


class Page(HTMLParser):
    """Headings, rows of tables, plots, ids and addresses of a page; `open` holds elements that were never closed."""

    VOID = {"meta", "br", "path", "use", "rect", "circle", "link"}

    def __init__(self, text):
        super().__init__()
        self.headings, self.rows, self.plots, self.ids, self.addresses, self.open = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs, closed=False):
        attrs = dict(attrs)
        if not closed and tag not in ("meta",):
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[name] for name in ("src", "href", "xlink:href") if name in attrs]
        if tag == "h2":
            self.headings.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "svg":
            self.plots.append(attrs)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs, closed=True)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += text
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text


def test_a_runs_report_has_all_that_is_there(run):
    folder, results, path = run
    assert path == folder / "report" / "index.html"
    page = Page(path.read_text())
    assert page.open == []
    assert page.headings == ["Scores", "By category", "Training", "Generated adapters", "Cost", "Leak check",
                             "How it was made"]  # fmt: skip
    tagi = results["splits"]["unseen"]["methods"]["tagi"]
    value, (low, high) = tagi["exact_match"], tagi["exact_match_interval"]
    row = next(row for row in page.rows if row[0] == "TAGI")
    assert row[1] == f"{value:.1f} [{low:.1f}, {high:.1f}]" and len(row) == 3
    assert ["unseen", "TAGI − prompted", "+7.1 [−1.2, +12.3]", "–"] in page.rows
    assert ["ratio of these two", "3.000"] in page.rows and ["generated to its own tuned one", "0.615"] in page.rows
    assert ["unseen", "nothing", "1", "1", "1", "0", "0", "0", "0"] in page.rows
    assert ["dev", "tasks and instructions", "1", "1", "1", "1", "1", "1", "1"] in page.rows
    for row in (["command", "train.py a.yaml --seed 0"], ["torch", "9.8.7"], ["threads", "3"], ["seed", "0"],
                ["wall time of this call", "5 min 41 s"], ["finetuning", "3 min 10 s", "0.457"],
                ["all", "5 min 32 s", ""], ["finetuning.steps", "1357"]):  # fmt: skip
        assert row in page.rows
    assert "Dev: one task alone, so intervals over tasks have no width." in path.read_text()


def names_of_plots(folder):
    return {path.stem for path in (folder / "report").glob("*.svg")}


def test_a_runs_plots(run):
    folder, _, path = run
    assert names_of_plots(folder) == {
        "scores-unseen", "scores-dev", "families", "score-over-steps", "loss-instruction-tuning", "loss-task-adapters",
        "loss-finetuning", "loss-finetuning-alignment", "adapters", "cost-by-instruction-length", "cost-by-inputs",
    }  # fmt: skip
    page = Page(path.read_text())
    assert len(page.plots) == 11 and all(plot["role"] == "img" and plot["aria-label"] for plot in page.plots)


def test_a_studys_report(study):
    folder, summary, path = study
    page, text = Page(path.read_text()), path.read_text()
    assert page.open == []
    assert page.headings == ["Scores", "Number of training tasks", "By category", "Training", "Generated adapters",
                             "Cost", "Leak check", "How it was made"]  # fmt: skip
    row = next(r for r in summary["rows"] if r["method"] == "tagi" and r["train_tasks"] == 300)["exact_match"]
    shown = next(r for r in page.rows if r[0] == "TAGI")
    assert shown[1] == f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    assert shown[-1] == ", ".join(f"{value:.1f}" for value in row["seeds"].values())
    assert any(f"{row['minus_prompted']['mean']:+.1f} [" in cell for cell in shown)
    assert ["TAGI", "3", "0.615", "0.205", "3.000", "0.250", "0.111"] in page.rows
    assert ["hint-seed1-tasks60", "train.py a.yaml --seed 1", "1", "60", "5 min 32 s"] in page.rows
    assert text.count("<details>") == 4  # the smaller number of tasks, all methods by category, runs, settings
    assert ["command", "tagi study b.yaml"] in page.rows and ["seeds", "[0, 1, 2]"] in page.rows
    assert "unseen, 60 training tasks, seeds 0, 1, 2" in text and "300 training tasks" in text
    assert names_of_plots(folder) == {
        "scores", "score-by-tasks", "families", "score-over-steps-methods", "loss-over-steps-methods",
        "score-over-steps-ablations", "loss-over-steps-ablations", "adapters", "cost-by-instruction-length",
        "cost-by-inputs",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["run", "study"])
def test_the_page_needs_nothing_else(kind, request):
    folder, _, path = request.getfixturevalue(kind)
    text = path.read_text()
    page = Page(text)
    assert page.addresses and all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", text)


@pytest.mark.parametrize("kind", ["run", "study"])
def test_markdown_says_the_same(kind, request):
    folder, _, path = request.getfixturevalue(kind)
    text, page = (folder / "report" / "report.md").read_text(), Page(path.read_text())
    assert re.findall(r"^## (.*)$", text, re.M) == page.headings
    shown = re.findall(r"^!\[.*\]\((.*)\.svg\)$", text, re.M)
    assert set(shown) == names_of_plots(folder) and len(shown) == len(page.plots)
    rows = [[c.strip() for c in line[2:-2].split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    assert all(row in rows for row in page.rows if "" not in row)


@pytest.mark.parametrize("kind", ["run", "study"])
def test_plots_are_drawings_with_something_in_them(kind, request):
    folder, _, _ = request.getfixturevalue(kind)
    for path in (folder / "report").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        groups = [group.get("id", "") for group in root.iter("{http://www.w3.org/2000/svg}g")]
        drawn = [group for group in groups if re.search(r"-(patch|line2d|\w+Collection)_\d+$", group)]
        assert len(drawn) > 8, path  # axes and ticks alone are fewer
        assert root.get("width") == "360pt"


def test_the_same_folder_gives_the_same_files(tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "mine" / "report").iterdir()}

    write_run(tmp_path / "mine")
    write_report(tmp_path / "mine")
    first = files()
    (tmp_path / "mine" / "report" / "left-over.svg").write_text("of another time")
    write_report(tmp_path / "mine")
    assert files() == first and len(first) == 13


@pytest.mark.parametrize("module, write", [(run_report, write_run), (study_report, write_study)])
def test_a_section_is_one_function_and_one_line_of_the_list(module, write, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECTIONS", [lambda found: Section("Toys", [f"made up in {found.folder.name}"])])
    write(tmp_path / "mine")
    page = write_report(tmp_path / "mine").read_text()
    assert Page(page).headings == ["Toys"] and "made up in mine" in page


def test_what_is_not_there_has_no_section(tmp_path):
    results = write_run(tmp_path / "mine")
    for name in ("adapters.json", "costs.json", "settings.yaml"):
        (tmp_path / "mine" / name).unlink()
    for path in (tmp_path / "mine" / "stages").rglob("*.jsonl"):
        path.unlink()
    methods = {"prompted": {"exact_match": 12.34, "rouge_l": None, "n": 5}}
    bare = {"splits": {"unseen": {"methods": methods}}, "tasks": {}, "notes": [], "leaks": None,
            "run": results["run"], "seconds": {"evaluation": 3.0}}  # fmt: skip
    (tmp_path / "mine" / "results.json").write_text(json.dumps(bare))
    page = Page(write_report(tmp_path / "mine").read_text())
    assert page.headings == ["Scores", "How it was made"]
    assert ["prompted", "12.3"] in page.rows and names_of_plots(tmp_path / "mine") == {"scores-unseen"}


def test_ranked_answers_by_data_set_beside_the_floors(tmp_path):
    folder = tmp_path / "mine"
    results = write_run(folder)
    spread = {"median": 61.0, "q1": 55.5, "q3": 66.0, "iqr": 10.5, "min": 50, "max": 70}
    ranked = {"exact_match": None, "rouge_l": None, "n": 0, "n_ranked": 40, "rank_accuracy": 60.04,
              "rank_accuracy_interval": [52, 67.7], "rank_accuracy_mean": 58.0,
              "rank_accuracy_mean_interval": [50, 66],
              "per_task_ranked": {"cb/1": {"sum": 60.0, "mean": 58.0, "n": 40}},
              "per_dataset_ranked": {"cb": {"templates": 3, "n": 40, "sum": spread, "mean": spread}}}  # fmt: skip
    results["splits"] = {"cb": {"methods": {"tagi": ranked}, "differences": {}, "chance": 33.33, "majority": 50.0}}
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write_report(folder).read_text())
    assert ["method", "rank accuracy (%)", "rank accuracy, by token (%)"] in page.rows
    assert ["TAGI", "60.0 [52.0, 67.7]", "58.0 [50.0, 66.0]"] in page.rows
    assert ["(chance)", "33.3", "33.3"] in page.rows and ["(majority)", "50.0", "50.0"] in page.rows
    assert ["cb", "3", "61.0 [55.5, 66.0]"] in page.rows
    assert "families" not in names_of_plots(folder) and "scores-cb" in names_of_plots(folder)


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has neither results.json, as a run has, nor summary.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


NASTY = "<script>alert('a|b')</script> & [x](y)"


def test_texts_are_only_texts(tmp_path):
    plot = bar_plot("bars", NASTY, {NASTY: (1.0, None)}, "exact match (%)")
    section = Section(NASTY, [NASTY, Table([NASTY], [[NASTY]], caption=NASTY), plot])
    html, markdown = html_page(NASTY, NASTY, [section]), markdown_page(NASTY, NASTY, [section])
    assert "<script" not in html and "<script" not in markdown
    page = Page(html)
    assert page.headings == [NASTY] and page.rows == [[NASTY], [NASTY]] and page.plots[0]["aria-label"] == NASTY
    assert "alert('a\\|b')" in markdown


def test_a_curve_keeps_its_interval_and_level():
    line = {"one": Line([1, 10, 100], [1.0, 2.0, 3.0], [0.5, 1.5, 2.0], [1.5, 2.5, 4.0], bars=True)}
    full = line_plot("p", "c", line, "x", "y", log_x=True, level=(1.0, "prompted"))
    bare = line_plot("p", "c", {"one": Line([1, 10, 100], [1.0, 2.0, 3.0])}, "x", "y", log_x=True)
    assert "LineCollection" in full.svg and "LineCollection" not in bare.svg
    assert len(full.svg) > len(bare.svg)


def test_no_name_of_a_split_leaves_the_reports_folder(tmp_path):
    folder, hostile = tmp_path / "a" / "run", ["../../../x", "/tmp/tagi-outside", "x" * 300, "a.b", "a-b", ".."]
    results = write_run(folder)
    results["splits"] = {name: results["splits"]["unseen"] for name in hostile}
    (folder / "results.json").write_text(json.dumps(results))
    write_report(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and [p.name for p in folder.parent.iterdir()] == ["run"]
    assert len([name for name in names_of_plots(folder) if name.startswith("scores-")]) == len(hostile)
