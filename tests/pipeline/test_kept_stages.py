"""What a second call of a run does with what the first one left: keeps it, or says why not."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import records, tiny_settings, write_tiny_data

from modeling_tagi.data.tables import write_table
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.training.settings import build_settings
from modeling_tagi.training.stages import base


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished run from nothing, with its data beside it."""
    folder = tmp_path_factory.mktemp("first")
    write_tiny_data(folder, unseen=["next"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_experiment(settings())
    return folder


@pytest.fixture
def done(first, tmp_path, monkeypatch):
    """A copy of it, in which the test is at work."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**fields):
    values = tiny_settings(".", save_every=2)
    values |= {"output_dir": "run", "evaluation": {"references": []}}
    values["task_adapters"]["by"] = "task"
    return build_settings(values, fields)


def untouched(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*.safetensors")}


def test_a_run_whose_data_have_changed_is_not_passed_over(done):
    """Else what was trained on would be scored as never seen."""
    before = untouched(done)
    write_table(records(["next", "last", "second"], 4), done / "data" / "train.jsonl")
    write_table(records(["first"], 5), done / "data" / "unseen.jsonl")
    with pytest.raises(ValueError) as refused:
        run_experiment(settings())
    said = str(refused.value)
    assert "its stage text was begun with other records than the data hold now (the files have changed since)" in said
    assert "delete run/stages/text and run/stages/instruction_tuning and" in said
    assert untouched(done) == before


def test_fewer_tasks_than_were_trained_on_are_named_as_what_changed(done):
    with pytest.raises(ValueError, match="other records than the data hold now .train_tasks was None, is now 2."):
        run_experiment(settings(train_tasks=2))


def test_what_is_evaluated_and_where_data_lie_may_change(done, capsys):
    write_table(records(["third"], 5), done / "data" / "unseen.jsonl")
    (done / "data").rename(done / "moved")
    (done / "run" / "settings.yaml").write_text("a: [")  # of which nothing is needed where stages say it themselves
    (done / "run" / "stages" / "evaluation" / "seconds.json").write_text("x")
    results = run_experiment(settings(**{"data.path": "moved"}))
    assert list(results["tasks"]) == ["third"] and capsys.readouterr().out.count("was done before") == 5


@pytest.mark.slow
def test_a_stage_that_failed_may_be_given_other_settings(done, monkeypatch, capsys):
    shutil.rmtree(done / "run" / "stages" / "finetuning")
    train = base.train_stage

    def fail(run, stage, settings, *args, **kwargs):
        if settings.learning_rate == 2.0:
            raise ValueError("no rate for this")
        return train(run, stage, settings, *args, **kwargs)

    monkeypatch.setattr(base, "train_stage", fail)
    with pytest.raises(ValueError, match="no rate for this"):
        run_experiment(settings(**{"finetuning.learning_rate": 2.0}))
    capsys.readouterr()
    run_experiment(settings(**{"finetuning.learning_rate": 1e-3}))
    assert capsys.readouterr().out.count("was done before") == 4


def cut(file):
    file.write_bytes(file.read_bytes()[:50])


def adapter_of(folder):
    return next((folder / "task_adapters").glob("*/adapter_model.safetensors"))


# What is damaged, how, the file that is named, and what is to be deleted.
DAMAGE = {
    "facts": (lambda run: run / "stages/instruction_tuning/done.json", lambda file: file.write_text(""),
              "stages/instruction_tuning"),
    "weights": (lambda run: run / "stages/finetuning/model/model.safetensors", cut, "stages/finetuning"),
    "backbone": (lambda run: run / "stages/instruction_tuning/backbone/model.safetensors", lambda file: file.unlink(),
                 "stages/instruction_tuning"),
    "text": (lambda run: run / "stages/text/backbone/model.safetensors", cut, "stages/text"),
    "adapter": (adapter_of, cut, "task_adapters"),
    "missing adapter": (adapter_of, lambda file: file.unlink(), "task_adapters"),
    "index": (lambda run: run / "task_adapters/index.json", cut, "task_adapters"),
    "log": (lambda run: run / "stages/finetuning/log.jsonl", lambda file: file.write_text('{"loss": 1'), None),
    "tokenizer": (lambda run: run / "tokenizer/tokenizer.json", lambda file: file.write_text(""), None),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named_with_its_mend(done, name):
    find, damage, to_delete = DAMAGE[name]
    file = find(Path("run"))
    damage(file)
    with pytest.raises(ValueError) as refused:
        run_experiment(settings())
    said = str(refused.value)
    assert said.startswith((f"{file} is damaged or not", f"{file.parent} is damaged or not")) and "\n" not in said
    assert f"; delete run/{to_delete}" in said if to_delete else "; delete it: " in said


def test_who_mends_what_is_damaged_has_the_same_run_again(done):
    scores = json.loads((done / "run" / "results.json").read_text())["splits"]
    DAMAGE["backbone"][0](done / "run").unlink()
    for folder in ("stages/instruction_tuning", "stages/task_adapters", "task_adapters", "tokenizer"):
        shutil.rmtree(done / "run" / folder)
    assert run_experiment(settings())["splits"] == scores


@pytest.mark.parametrize("stage, place", [("pretraining", "model"), ("instruction_tuning", "backbone")])
def test_weights_that_are_not_finite_are_not_gone_on_from(done, stage, place):
    file = Path("run") / "stages" / stage / place / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "hypernetwork" in name or place == "backbone")
    save_file({**weights, name: weights[name] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(ValueError) as refused:
        run_experiment(settings())
    said = str(refused.value)  # reading a checkpoint says it in words of its own
    assert "not finite" in said and name in said and f"; delete run/stages/{stage} to do that stage again" in said


def test_adapters_of_which_nothing_says_how_they_were_tuned_are_not_used(done):
    shutil.rmtree(done / "run" / "stages" / "task_adapters")
    with pytest.raises(ValueError, match="nothing says how its adapters were tuned.; delete run/task_adapters and"):
        run_experiment(settings())
