import json
import os
import re
import subprocess
import sys

import pytest
from hub_stand_in import hub_stand_in, log_in
from huggingface_hub import ModelCard

from modeling_tagi import TagiModel
from modeling_tagi.evaluation.references import REFERENCES
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.publishing.pushing import push_at_the_end, push_on_the_way
from modeling_tagi.publishing.run_card import PARTS, run_card, write_run_card
from modeling_tagi.training.settings import RunSettings, load_settings


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """A whole run, pushed on its way and at its end: its folder, what it returned, and the Hub."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = load_settings(config, {
        "output_dir": str(folder), "evaluation.references": json.dumps(list(REFERENCES)), "push_to_hub": "user/run",
        "push_every": "2", "push_private": "true"})  # fmt: skip
    with hub_stand_in() as hub, pytest.MonkeyPatch.context() as patch:
        log_in(hub, patch, folder.parent)
        attempts = []
        # the first attempt to push on the way breaks off each time it is tried
        hub.breaks = lambda command, path: command == "PUT" and (attempts.append(path) or len(set(attempts)) == 1)
        results = run_experiment(settings, "train.py /home/someone/tiny.yaml")
        yield folder, results, hub


def test_a_run_leaves_checkpoint_tables_and_report(made):
    folder, results, _ = made
    assert {path.name for path in folder.iterdir()} >= {
        "settings.yaml", "model", "results.json", "results.md", "adapters.json", "costs.json", "report",
    }  # fmt: skip
    assert json.loads((folder / "results.json").read_text()) == results
    page = (folder / "report" / "index.html").read_text()
    assert "train.py" in page and "<svg" in page and (folder / "report" / "report.md").is_file()


def test_a_part_of_the_card_is_one_function_and_one_line_of_the_list(made, monkeypatch):
    folder, results, _ = made
    monkeypatch.setitem(PARTS, "Toys", lambda run: [f"Made up for {run.name}, seed {run.results['run']['seed']}."])
    monkeypatch.setitem(PARTS, "Nothing", lambda run: [])
    text = run_card(folder, "user/it", [], set())
    assert "\n\n## Toys\n\nMade up for user/it, seed 0.\n" in text and "## Nothing" not in text


def test_every_reference_is_scored(made):
    _, results, _ = made
    assert list(results["splits"]["unseen"]["methods"]) == [
        "no_instruction", "start_prompted", "tagi", "wrong_instruction", "random_words", "mean_adapter",
        "nearest_adapter", "oracle",
    ]  # fmt: skip
    assert results["tasks"]["next"] == {"group": "next", "split": "unseen"}
    assert results["run"]["seed"] == 0 and results["run"]["train_tasks"] == 3


def test_scores_over_steps_are_written(made):
    folder, _, _ = made
    lines = [json.loads(line) for line in (folder / "stages/finetuning/scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6] and {line["split"] for line in lines} == {"unseen"}


def test_a_baseline_is_scored_as_what_it_reads(config, tmp_path):
    settings = load_settings(config, {
        "output_dir": str(tmp_path / "run"), "method": "input_only", "train_tasks": "2",
        "evaluation.references": "[no_instruction]"})  # fmt: skip
    results = run_experiment(settings)
    assert list(results["splits"]["unseen"]["methods"]) == ["no_instruction", "input_only"]
    assert results["run"]["train_tasks"] == 2 and not (tmp_path / "run" / "adapters.json").exists()


# On the Hub


def test_a_run_is_pushed_on_its_way_and_at_its_end(made, capsys):
    folder, results, hub = made
    repository = hub.repositories["user/run"]
    assert repository.messages == ["initial commit", "Finetuning, step 4 of 6", "Upload tagi"]  # step 2 broke off
    assert results["hub"] == {"repository": "user/run", "url": f"{hub.endpoint}/user/run"} and repository.private
    assert not list(folder.glob(".push-*"))
    pushed = hub.files("user/run")
    for path in (path for path in (folder / "model").rglob("*") if path.is_file()):
        assert pushed[path.relative_to(folder / "model").as_posix()] == path.read_bytes(), path
    on_the_way = hub.files("user/run", list(repository.commits)[1])
    config = json.loads(on_the_way["config.json"])
    assert config["backbone_trained"] is True and config["backbone_name_or_path"] is None
    assert on_the_way["model.safetensors"] != pushed["model.safetensors"]
    assert b"Nothing is recorded here" in on_the_way["README.md"]


def test_nothing_that_is_pushed_tells_where_it_was_made_or_what_instructions_it_was_trained_on(made):
    folder, _, hub = made
    pushed = hub.files("user/run")
    assert not [name for name, content in pushed.items() if str(folder.parent).encode() in content]
    assert "texts" not in json.loads(pushed["instruction_index.json"])


def test_a_runs_card_has_its_results_in_the_hubs_form(made):
    folder, results, _ = made
    card = ModelCard.load(folder / "model" / "README.md")
    found = {(result.dataset_split, result.metric_type): result for result in card.data.eval_results}
    scores = results["splits"]["unseen"]["methods"]["tagi"]
    assert set(found) == {("unseen", "exact_match"), ("unseen", "rouge")}
    one = found["unseen", "rouge"]
    assert one.metric_value == pytest.approx(scores["rouge_l"], abs=0.01)
    low, high = scores["rouge_l_interval"]
    assert one.metric_args == {"level": 0.95, "low": round(low, 2), "high": round(high, 2)}
    assert card.data.model_name == "run" and card.data.library_name == "transformers"
    assert card.data.license == "other"  # data of its own
    for title in ("Use", "Results", "How it was trained", "Cost", "Limits", "Licence", "Citation"):
        assert f"## {title}\n" in card.text, title
    assert "someone" not in card.text and "…/tiny.yaml" in card.text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert "plots/scores-unseen.png" in pictures and "plots/loss-finetuning.png" in pictures
    for picture in pictures:
        content = (folder / "model" / picture).read_bytes()
        assert content.startswith(b"\x89PNG") and 5_000 < len(content) < 200_000


def test_the_snippet_of_a_runs_card_runs_as_it_is_pasted(made, tmp_path):
    folder, _, hub = made
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "model" / "README.md").read_text(), re.DOTALL)
    assert '"user/run"' in snippet and "say the word before the last" in snippet
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x", "HOME": str(tmp_path),
                   **{name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}}
    snippet += "\nimport sys\nassert 'modeling_tagi' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"\['.*', '.*'\]", done.stdout.strip())


def test_a_private_run_stays_private_where_its_repository_was_deleted_on_the_way(made, hub, tmp_path, capsys):
    model = TagiModel.from_pretrained(made[0] / "model")
    settings = RunSettings(push_to_hub="user/gone", push_private=True, push_every=2)
    push_on_the_way("user/gone", tmp_path, settings, lambda model, folder: model.save_pretrained(folder))(model, 2)
    assert hub.repositories["user/gone"].private and not capsys.readouterr().out


def test_what_could_not_be_pushed_at_the_end_is_told_how_to_push(made):
    folder, _, hub = made
    settings = RunSettings(push_to_hub="user/later")
    hub.breaks = lambda command, path: "/api/" in path
    told = push_at_the_end(folder / "model", "user/later", settings)
    hub.breaks = lambda command, path: False
    assert told["repository"] == "user/later" and "\n" not in told["error"]
    assert f"push it with: tagi push {folder / 'model'} user/later" in told["error"]
    assert "user/later" not in hub.repositories


def test_a_card_that_was_edited_is_not_written_again(made):
    folder, results, hub = made
    card = folder / "model" / "README.md"
    kept = card.read_text()
    card.write_text(kept.replace("# run", "# My own run"))
    assert write_run_card(folder, "user/run") is None and "# My own run" in card.read_text()
    card.write_text(kept)
    assert write_run_card(folder, "user/other") == card and '"user/other"' in card.read_text()
    card.write_text(kept)


def test_a_pushed_run_loads(made):
    folder, _, _ = made
    loaded, local = TagiModel.from_pretrained("user/run"), TagiModel.from_pretrained(folder / "model")
    states = local.state_dict()
    assert all(states[name].equal(tensor) for name, tensor in loaded.state_dict().items())
