"""Runs of all stages on a tiny backbone, what ends them, and what tests compare of them."""

import json

import pytest
import torch
import yaml

from modeling_tagi import TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.training import stage_training
from modeling_tagi.training.run import Run
from modeling_tagi.training.run_state import RunState
from modeling_tagi.training.settings import load_settings
from modeling_tagi.training.stages import STAGES as KNOWN
from modeling_tagi.training.stages import base, run_stages
from modeling_tagi.training.tokenizer import read_tokenizer

TEXT = ["red green blue one two three", "four apple pear plum", "cat dog cat red one", "plum blue dog two four pear"]
STAGES = ["instruction_tuning", "task_adapters", "pretraining", "finetuning"]
STEPS = 7


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def make_run(request, backbones, tmp_path_factory):
    """Runs by name, each in a folder of its own; a module's `AT_ONCE` says how many adapters are tuned together."""
    folder, at_once = tmp_path_factory.mktemp("runs"), getattr(request.module, "AT_ONCE", 4)

    def make(name, **sections):
        each = {"steps": STEPS, "save_every": 2, "learning_rate": 1e-2}
        batch = {"tasks_per_batch": 2, "examples_per_task": 2}
        values = {
            "output_dir": str(folder / name), "max_input_length": 48, "max_target_length": 8,
            "backbone": {"name": backbones("t5", 0.2)},
            "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4},
            "instruction_tuning": {**each, **batch},
            "task_adapters": {**each, "at_once": at_once, "examples_per_task": 2},
            "pretraining": {**each, "batch_size": 2, "max_length": 16},
            "finetuning": {**each, **batch, "train": "all", "alignment": "delta", "accumulation": 2},
        }  # fmt: skip
        for section, fields in sections.items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return Run(load_settings(folder / "config.yaml"), STAGES, KNOWN)

    return make


def go(run, records, text=TEXT):
    """The stages as train.py calls them."""
    state = RunState(run, read_tokenizer(run.settings, records, text), records, text)
    run_stages(state)
    return state.model, state.bank


def moved(run, before):
    """Names of the weights that finetuning changed, in comparison with a model from before it."""
    after = TagiModel.from_pretrained(run.folder / "stages" / "finetuning" / "model").state_dict()
    return {name for name, x in before.state_dict().items() if not torch.equal(x, after[name])}


def logs(run):
    return {
        str(file.relative_to(run.folder)): [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        for file in sorted(run.folder.rglob("log*.jsonl"))
    }


def adapters(run):
    loaded = AdapterBank(run.folder / "task_adapters").load()
    return {**{f"a {p}": x for p, x in loaded.lora_a.items()}, **{f"b {p}": x for p, x in loaded.lora_b.items()}}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(x, right[name]) for name, x in left.items())


@pytest.fixture
def kill(monkeypatch):
    """Ends a stage (or the second chunk of it: `part=2`) with an exception behind one of its steps."""
    checkpoints = stage_training.Checkpoints

    def arm(stage, step, part=1):
        seen = []

        class Deadly(checkpoints):
            def on_train_begin(self, args, state, control, **kwargs):
                seen.append(self.stage.name)

            def on_step_end(self, args, state, control, **kwargs):
                super().on_step_end(args, state, control, **kwargs)
                if self.stage.name == stage and seen.count(stage) == part and state.global_step == step:
                    raise Killed

        monkeypatch.setattr(stage_training, "Checkpoints", Deadly)

    yield arm
    monkeypatch.undo()


def count_trained(monkeypatch):
    trained, original = [], base.train_stage

    def train_stage(run, stage, *args, part="", **kwargs):
        trained.append((stage.name, part))
        return original(run, stage, *args, part=part, **kwargs)

    monkeypatch.setattr(base, "train_stage", train_stage)
    return trained
