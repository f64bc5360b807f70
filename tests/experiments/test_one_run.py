import json

import pytest

from modeling_tagi.experiments.run import run_experiment
from modeling_tagi.training.settings import load_settings


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """A whole run: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    names = ["prompted", "no_instruction", "wrong_instruction", "random_words", "nearest_adapter", "oracle"]
    settings = load_settings(config, {"output_dir": str(folder), "evaluation.references": json.dumps(names)})
    return folder, run_experiment(settings, "the command")


def test_a_run_leaves_checkpoint_tables_and_report(made):
    folder, results = made
    assert {path.name for path in folder.iterdir()} >= {
        "settings.yaml", "model", "results.json", "results.md", "adapters.json", "costs.json", "report",
    }  # fmt: skip
    assert json.loads((folder / "results.json").read_text()) == results
    page = (folder / "report" / "index.html").read_text()
    assert "the command" in page and "<svg" in page and (folder / "report" / "report.md").is_file()


def test_every_reference_is_scored(made):
    _, results = made
    assert list(results["splits"]["unseen"]["methods"]) == [
        "no_instruction", "prompted_start", "tagi", "wrong_instruction", "random_words", "nearest_adapter", "oracle"
    ]  # fmt: skip
    assert results["tasks"]["next"] == {"group": "next", "split": "unseen"}
    assert results["run"]["seed"] == 0 and results["run"]["train_tasks"] == 3


def test_scores_over_steps_are_written(made):
    folder, _ = made
    lines = [json.loads(line) for line in (folder / "stages/finetuning/scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6] and {line["split"] for line in lines} == {"unseen"}


def test_a_baseline_is_scored_as_what_it_reads(config, tmp_path):
    settings = load_settings(config, {
        "output_dir": str(tmp_path / "run"), "method": "input_only", "train_tasks": "2",
        "evaluation.references": "[no_instruction]"})  # fmt: skip
    results = run_experiment(settings)
    assert list(results["splits"]["unseen"]["methods"]) == ["no_instruction", "input_only"]
    assert results["run"]["train_tasks"] == 2 and not (tmp_path / "run" / "adapters.json").exists()
