import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import everything  # noqa: E402
import harness  # noqa: E402

OPTIONS = Namespace(repeats=3, device="cpu", threads=1)


def test_a_ratio_is_the_median_of_the_repeats_ratios_and_not_the_ratio_of_medians():
    ratio = harness.Ratio.of("x", [2, 9, 4, 8, 30], [1, 3, 4, 4, 3])  # 2, 3, 1, 2, 10
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 3)
    once = harness.Ratio.of("x", [3], [2])
    assert once.value == once.low == once.high == 1.5
    with pytest.raises(ValueError):
        harness.Ratio.of("x", [1, 2], [1])


@pytest.mark.parametrize("value, goal, met, said", [
    (1.3, {"at_most": 1.3}, True, "≤ 1.3"), (1.3004, {"at_most": 1.3}, True, "≤ 1.3"),
    (1.301, {"at_most": 1.3}, False, "≤ 1.3"), (3.0, {"at_least": 3}, True, "≥ 3"),
    (2.99, {"at_least": 3}, False, "≥ 3"), (9.0, {}, None, "–"),
])  # fmt: skip
def test_a_goal_is_met_from_its_side(value, goal, met, said):
    ratio = harness.Ratio("x", value, **goal)
    assert ratio.met is met and ratio.goal == said


def test_cases_take_turns_after_the_warmup():
    calls = []
    times = harness.measured({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, OPTIONS, warmups=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(second > 0 for seconds in times.values() for second in seconds)


def test_peak_memory_is_what_a_case_needs_at_most_not_what_it_leaves():
    def case():
        for _ in range(3):
            torch.ones(48 * 2**20, dtype=torch.uint8)

    assert 44 < harness.peak_memory(case) / 2**20 < 72
    assert harness.peak_memory(lambda: None) / 2**20 < 16


def test_a_case_that_fails_in_its_process_is_no_figure(capfd):
    with pytest.raises(RuntimeError, match="died; see above"):
        harness.peak_memory(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def result_of(capsys, name, threads, ratio):
    options = Namespace(**{**vars(OPTIONS), "threads": threads})
    harness.finish("why?", [ratio, harness.Ratio("told", 7.0)], options, seen=5)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {"benchmark": name, **result, "command": f"python {name} --threads {threads}", "seconds": 1}


def test_the_last_line_answers_the_question(capsys):
    result = result_of(capsys, "x", 2, harness.Ratio.of("x", [3, 3, 3], [2, 2, 2], at_most=1.3))
    assert (result["question"], result["ratio"], result["goal"], result["met"]) == ("why?", 1.5, "≤ 1.3", False)
    assert result["seen"] == 5 and result["options"]["threads"] == 2
    assert result["ratios"] == [
        {"name": "x", "value": 1.5, "low": 1.5, "high": 1.5, "at_most": 1.3, "met": False},
        {"name": "told", "value": 7.0, "met": None},
    ]


def test_a_result_takes_the_place_of_its_commands_earlier_one_and_others_stay(capsys, tmp_path):
    folder = tmp_path / "results"
    for name, threads, value in (("b", 1, 2.0), ("a", 2, 3.0), ("a", 1, 4.0), ("b", 1, 5.0)):
        everything.record(folder, result_of(capsys, name, threads, harness.Ratio("x / y", value, at_most=3)))
    lines = [json.loads(line) for line in (folder / "benchmarks.json").read_text().splitlines()]
    assert [(x["benchmark"], x["options"]["threads"], x["ratio"]) for x in lines] == [
        ("a", 1, 4.0), ("a", 2, 3.0), ("b", 1, 5.0)
    ]  # fmt: skip
    table = (folder / "benchmarks.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("| ")]
    assert ["a", "x / y", "1", "4.000", "–", "≤ 3", "**no**"] in rows
    assert ["a", "x / y", "2", "3.000", "–", "≤ 3", "yes"] in rows
    assert ["b", "told", "1", "7.000", "–", "–", "–"] in rows
    assert "- `python b --threads 1`: why? (1 s)" in table
