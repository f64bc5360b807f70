"""What a run would have failed on late, or trained wrongly, is refused before its first step, whoever asks."""

import json

import pytest
import yaml
from tiny import records, write_tiny_data
from transformers import LlamaConfig

from modeling_tagi import TagiConfig
from modeling_tagi.costs.work import TextLengths
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.planning import checks, device_memory
from modeling_tagi.planning.plan import plan_run
from modeling_tagi.planning.shapes import flops_of
from modeling_tagi.studies.settings import load_study
from modeling_tagi.studies.study import run_study
from modeling_tagi.training.backbones import backbone_config, made_config
from modeling_tagi.training.settings import load_settings
from modeling_tagi.training.stage_costs import RunCosts
from modeling_tagi.training.stages import base, training_stages


@pytest.fixture
def refused(config, tmp_path, monkeypatch):
    """`refused(message, **overrides)`: whether `train.py`, `tagi plan` and `tagi study` refuse it alike, and before
    any training."""

    def no_training(*args, **kwargs):
        raise AssertionError("a stage was begun")

    monkeypatch.setattr(base, "train_stage", no_training)
    monkeypatch.setattr("modeling_tagi.studies.study._run_cells", no_training)

    def refused(message, kind=ValueError, **fields):
        overrides = {name.replace("__", "."): value for name, value in fields.items()}
        overrides = {"output_dir": str(tmp_path / "run"), **overrides}
        for ask in (run_experiment, plan):
            with pytest.raises(kind, match=message):
                ask(load_settings(config, overrides))
        values = {"config": str(config), "methods": ["tagi"], "overrides": {
            name: yaml.safe_load(value) for name, value in overrides.items() if name != "output_dir"},
            "output_dir": str(tmp_path / "study"), "references": []}  # fmt: skip
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(kind, match=message):
            run_study(load_study(tmp_path / "study.yaml"))

    def plan(settings):
        return plan_run(settings, flops_per_second=1e9)

    return refused


@pytest.mark.parametrize("fields, message", [
    ({"tagi__target_modules": "[nope]"}, r"target_modules \['nope'\] match no Linear"),
    ({"backbone__config__num_heads": "0"}, "backbone.config.num_heads is 0, but must be a whole number of 1 or more"),
    ({"backbone__config__d_model": "-5"}, "backbone.config.d_model is -5, but must be a whole number of 1 or more"),
    ({"backbone__config__dropout_rate": "2"}, "backbone.config.dropout_rate is 2, but must be a share from 0 to 1"),
    ({"backbone__config__n_layrs": "3"}, "unknown field backbone.config.n_layrs of a 't5' backbone; did you mean"),
    ({"backbone__config__model_type": "t6"}, "backbone.config.model_type is 't6', but must be a family.*'t5'"),
    ({"text__optimizer": "adamw_anyprecision"}, "text.optimizer is 'adamw_anyprecision', which cannot be used here"),
    ({"text__schedule": "cosine_with_min_lr"}, "text.schedule is 'cosine_with_min_lr', which cannot be used here"),
    ({"finetuning__tasks_per_batch": "10000"}, "finetuning.tasks_per_batch is 10000, but there are 3 tasks"),
    ({"finetuning__examples_per_task": "100000"},
     "finetuning.examples_per_task is 100000, but the largest task has 6 records, each .* 16,667 times; give at most"),
    ({"task_adapters__examples_per_task": "100"}, "task_adapters.examples_per_task is 100, but the largest task has"),
    ({"text__batch_size": "1000"}, "text.batch_size is 1000, but the text has 12 passages"),
    ({"evaluation__splits": "[nowhere]"}, "evaluation.splits names 'nowhere', but the data has train, unseen"),
    ({"data__options": "{column: {}}"}, "data.options has 'column', but tables takes columns"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_alike_by_train_plan_and_study(refused, fields, message):
    refused(message, **fields)


@pytest.mark.parametrize("name, kind, message", [
    ("/nowhere/model", FileNotFoundError, "backbone.name is '/nowhere/model', but there is no such folder"),
    ("{file}", ValueError, "which is a file; name the folder that its config.json is in"),
    ("{folder}", FileNotFoundError, "a folder without a config.json"),
    ("nobody/nothing", FileNotFoundError, "is no folder here, and cannot be had from the Hub"),
    ("{tagi}", ValueError, "it is a TAGI checkpoint, and a generator is made for a plain language model"),
    ("{broken}", (ValueError, FileNotFoundError), "backbone.name is .*broken', which can"),
])  # fmt: skip
def test_a_backbone_that_is_not_there_is_named(config, tmp_path, name, kind, message):
    for place, text in (("tagi", '{"model_type": "tagi"}'), ("broken", "{"), ("folder", None)):
        (tmp_path / place).mkdir()
        if text is not None:
            (tmp_path / place / "config.json").write_text(text)
    (tmp_path / "file").write_text("")
    name = name.format(**{place: tmp_path / place for place in ("file", "folder", "tagi", "broken")})
    settings = load_settings(config, {"backbone.name": name, "output_dir": str(tmp_path / "run")})
    with pytest.raises(kind, match=message):
        run_experiment(settings)
    assert not (tmp_path / "run").exists()


def test_data_with_a_train_split_alone_is_refused_before_training(refused, config, tmp_path):
    write_table(records(["first", "last"], 4), tmp_path / "train.jsonl")
    refused("there is nothing to evaluate on: the data has a train split alone", data__path=str(tmp_path),
            finetuning__tasks_per_batch="2")  # fmt: skip


def test_a_split_without_records_is_not_evaluated(config):
    settings = load_settings(config, {"evaluation.splits": "[unseen]"})
    with pytest.raises(ValueError, match="the split 'unseen' has no records to evaluate"):
        checks.check_data(settings, {"train": records(["first"], 4), "unseen": []}, ["text"])
    with pytest.raises(ValueError, match="the train split has no records"):
        checks.check_data(settings, {"train": [], "unseen": records(["first"], 4)}, ["text"])


def test_a_rank_that_no_memory_holds_is_refused_with_numbers(config, tmp_path):
    overrides = {"output_dir": str(tmp_path / "run"), "tagi.r": "100000000"}
    with pytest.raises(ValueError, match=r"needs [\d,.]+ GiB of memory \(weights .* and this .* has [\d,.]+: use"):
        run_experiment(load_settings(config, overrides))
    plan = plan_run(load_settings(config, overrides))  # says it, since it may be for another machine
    assert any("it does not fit into this machine" in note for note in plan["notes"])


def test_a_batch_that_no_memory_holds_is_refused_and_one_that_may_fit_is_not(config, monkeypatch):
    settings = load_settings(config)
    tagi = TagiConfig(backbone_config(settings, 60), **settings.tagi)
    lengths = TextLengths(10, 10, 4, 20)
    costs = RunCosts(settings, flops_of(tagi), 3)
    needed = max(stage.device_memory(costs, lengths).total for stage in training_stages(settings))
    monkeypatch.setattr(device_memory, "memory_there", lambda: (needed, "this test"))
    device_memory.require_device_memory(settings, tagi, 3, lengths)
    monkeypatch.setattr(device_memory, "memory_there", lambda: (needed / 4, "this test"))
    with pytest.raises(ValueError, match="GiB of memory .*, and this test has"):
        device_memory.require_device_memory(settings, tagi, 3, lengths)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, but the backbone's vocab_size is 10"):
        run_experiment(load_settings(config, {"output_dir": str(tmp_path), "backbone.config.vocab_size": "10"}))


def test_small_tasks_may_repeat_their_records(config):
    few = [Record("one", "do it", f"x {n}", ("y",)) for n in range(3)]
    settings = load_settings(config, {"finetuning.tasks_per_batch": "1", "instruction_tuning.tasks_per_batch": "1"})
    assert settings.task_adapters.examples_per_task == 8
    checks.check_data(settings, {"train": few, "unseen": few}, ["text"])


@pytest.mark.parametrize("fields", [
    {"model_type": "llama", "rope_theta": 500000.0, "head_dim": None, "num_key_value_heads": 2, "hidden_size": 64},
    {"model_type": "t5", "hidden_size": 16, "num_attention_heads": 2, "decoder_start_token_id": 0},
    {"model_type": "gpt2", "n_inner": None, "resid_pdrop": 0.0},
])  # fmt: skip
def test_fields_that_a_family_has_by_another_name_or_none_are_known(fields):
    assert made_config(fields).model_type == fields["model_type"]


def test_a_real_config_is_what_a_recipe_may_say_of_it():
    values = json.loads(LlamaConfig().to_json_string())
    assert made_config({name: value for name, value in values.items() if not name.startswith("_")})


def test_a_studys_runs_are_checked_on_the_backbone_that_their_start_will_make(tmp_path):
    write_tiny_data(tmp_path, unseen=["next"])
    (tmp_path / "mine.yaml").write_text("finetuning: {steps: 1, distillation_weight: 0, alignment: none}\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({
        "config": "mine.yaml", "methods": [{"odd": {"base": "hint", "tagi.target_modules": ["nope"]}}],
        "output_dir": str(tmp_path / "out"), "references": [],
        "overrides": {"data.source": "tables", "data.path": str(tmp_path / "data"),
                      "backbone.config": {"model_type": "t5", "d_model": 16, "num_heads": 2}}}))  # fmt: skip
    with pytest.raises(ValueError, match=r"-seed0: target_modules \['nope'\] match no Linear"):
        run_study(load_study(tmp_path / "study.yaml"))
    assert not (tmp_path / "out" / "cells").exists()
