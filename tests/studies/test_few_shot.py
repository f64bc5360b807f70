import json

import pytest
from tiny import WORDS, tiny_settings, write_tiny_data

from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.studies import few_shot_curve
from modeling_tagi.studies.few_shot import main
from modeling_tagi.studies.few_shot_curve import tasks_of
from modeling_tagi.training.settings import build_settings


def records(task, number, place):
    lists = [[WORDS[(n + k * (n // 12 + 2)) % 12] for k in range(5)] for n in range(number)]
    return [
        Record(task, f"say word {wording}", " ".join(words), (words[place],))
        for wording, words in zip(["a", "b"] * number, lists)
    ]


def test_examples_and_scored_records_are_apart_and_grow(monkeypatch):
    monkeypatch.setattr(few_shot_curve, "SCORED", 3)
    made = records("one", 12, 0)
    [task] = tasks_of(made, 6, seed=0)
    assert task.scored == made[:3] and len(task.examples) == 6
    assert not {r.input for r in task.examples} & {r.input for r in task.scored}
    assert tasks_of(made, 6, seed=0)[0].examples == task.examples != tasks_of(made, 6, seed=1)[0].examples
    assert [tasks_of(made, 2, seed=s)[0].instruction.instruction for s in (0, 1, 2)] == [
        "say word a", "say word b", "say word a"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="task 'one' has 12 records, but the curve takes 3 \\+ 10"):
        tasks_of(made, 10, seed=0)


@pytest.mark.slow
def test_the_curve_is_written_as_lines_table_and_plot(tmp_path, monkeypatch):
    write_tiny_data(tmp_path, unseen=["next", "third"])
    settings = build_settings({
        **tiny_settings(tmp_path), "output_dir": str(tmp_path / "run"),
        "instruction_tuning": {"steps": 1, "tasks_per_batch": 2},
        "text": {"steps": 0}, "pretraining": {"steps": 0}, "task_adapters": {"steps": 0},
        "finetuning": {"steps": 1, "train": "all", "distillation_weight": 0.0, "alignment": "none",
                       "tasks_per_batch": 2, "examples_per_task": 2},
        "evaluation": {"references": []},
    })  # fmt: skip
    run_experiment(settings)
    for split, names in (("dev", ["x", "y"]), ("unseen", ["z", "w"])):
        made = [r for place, name in enumerate(names) for r in records(name, 8, place)]
        write_table(made, tmp_path / "data" / f"{split}.jsonl")
    monkeypatch.setattr(few_shot_curve, "SCORED", 3)
    monkeypatch.setattr(few_shot_curve, "GRID", [(1e-3, 1), (1e-2, 2)])
    model, said = str(tmp_path / "run" / "model"), []
    arguments = [model, model, "--data", str(tmp_path / "data"), "--sizes", "1", "4", "--output"]
    assert main([*arguments, str(tmp_path / "out" / "curve")], said.append) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "curve.jsonl").read_text().splitlines()]
    assert [(x["start"], x["examples"], x["seed"]) for x in lines] == [
        *((start, size, seed) for start in few_shot_curve.STARTS for size in (0, 1, 4) for seed in (0, 1)),
        *((start, size, None) for start in few_shot_curve.STARTS for size in (0, 1, 4)),
    ]
    for line in lines:
        assert 0 <= line["exact_match"] <= 100 and line["tasks"] == 2 and line["split"] == "unseen"
        assert ("steps" in line) == (line["examples"] > 0)
    page = (tmp_path / "out" / "curve.md").read_text()
    assert said[0] in page and "| examples | generated | memory | zero |" in page
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_checkpoint_is_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["nowhere/at/all", "--data", str(tmp_path / "none"), "--output", "out/curve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("few_shot: ") and "none" in line
    assert not list(tmp_path.iterdir())
