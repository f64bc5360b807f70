import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_stages import STAGES, STEPS, TEXT, Killed, go, moved, same
from tqdm.auto import tqdm
from transformers import AutoTokenizer

import modeling_tagi.common.console
from modeling_tagi import TagiAdapter
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.fit import require_fit
from modeling_tagi.training import stage_training
from modeling_tagi.training.finite import NotFinite
from modeling_tagi.training.model_checks import check_model
from modeling_tagi.training.run_state import RunState, start_model
from modeling_tagi.training.sharding.fsdp import cut
from modeling_tagi.training.sharding.sharded import require_possible_sharding
from modeling_tagi.training.stages import base
from modeling_tagi.training.teacher import Teacher
from modeling_tagi.training.tokenizer import read_tokenizer


def test_every_stage_draws_its_own_batches_cuts_and_dropout(make_run, records, monkeypatch):
    alike = {"steps": STEPS, "batch_size": 2, "max_length": 16}
    run = make_run("streams", text=alike, pretraining=alike, task_adapters={"at_once": 1})
    run.stages = ["text", *STAGES]
    drawn, seeds = {}, {}

    def watched(run, stage, settings, model, collator, sampler, dataset, seed, part="", **options):
        drawn[stage.name, part] = [list(batch) for batch in sampler]
        return train_stage(run, stage, settings, model, collator, sampler, dataset, seed, part, **options)

    def arguments(run, settings, model, folder, seed):
        seeds[folder.parent.parent.name, folder.name] = seed
        return training_arguments(run, settings, model, folder, seed)

    train_stage, training_arguments = base.train_stage, stage_training.training_arguments
    monkeypatch.setattr(base, "train_stage", watched)
    monkeypatch.setattr(stage_training, "training_arguments", arguments)
    go(run, records)
    assert len(drawn) == len(seeds) == 6  # of five stages, the task adapters in two parts
    assert len(set(seeds.values())) == len(seeds) and run.settings.seed not in seeds.values()
    for one, other in (("text", "pretraining"), ("instruction_tuning", "finetuning")):
        a, b = drawn[one, ""], drawn[other, ""]
        assert sum(x == y for x, y in zip(a, b)) < len(a) / 2
    cuts = [{draw for batch in drawn[name, ""] for _, draw in batch} for name in ("text", "pretraining")]
    assert not cuts[0] & cuts[1]
    (first, second) = (batches for (name, _), batches in drawn.items() if name == "task_adapters")
    assert [[index % 6 for index in batch] for batch in first] != [[index % 6 for index in batch] for batch in second]


def test_a_stage_whose_numbers_run_away_is_named_with_its_last_good_checkpoint(make_run, records):
    run = make_run("runaway", instruction_tuning={"save_every": 1})
    run.settings.instruction_tuning.learning_rate = 1e30  # which a configuration may not have
    where = str(run.folder / "stages" / "instruction_tuning")
    with pytest.raises(NotFinite) as stopped:
        go(run, records)
    said = str(stopped.value)
    # a rate that is still 0 in step 1, and finite weights that are too large in step 2
    assert re.match(r"\[1/4\] instruction_tuning stopped at step 3: the weight [a-z_.]+ is no longer finite; ", said)
    assert f"{where}/checkpoints/all/checkpoint-2 is from before it" in said
    assert said.endswith(f"delete {where} and lower --instruction_tuning.learning_rate (it is 1e+30)")
    kept = sorted(path.name for path in Path(where).rglob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"] and run.stage("instruction_tuning").facts is None


# What must not choose a path: names from data, whoever has made them.
HOSTILE = ["../../../../outside", "/tmp/tagi-outside", "x" * 300, "a\0b", ".", "..", "-", "a/b", "😀", "con", "a\nb"]


@pytest.mark.parametrize("by", ["task", pytest.param("group", marks=pytest.mark.slow)])
def test_no_name_of_a_task_or_group_leaves_the_runs_folder(make_run, records, by, tmp_path):
    places = [{"task": name} if by == "task" else {"group": name} for name in HOSTILE]
    hostile = [dataclasses.replace(records[n], **place) for n, place in enumerate(places)]
    run = make_run(f"hostile-{by}", output_dir=str(tmp_path / "a" / "b" / "run"), instruction_tuning={"steps": 0},
                   task_adapters={"steps": 1, "save_every": 1, "by": by, "at_once": 1}, pretraining={"steps": 0},
                   finetuning={"steps": 1})  # fmt: skip
    _, bank = go(run, hostile)
    assert bank.names == HOSTILE and len({folder.name for folder in bank.folders()}) == len(HOSTILE)
    assert [str(path) for path in tmp_path.glob("*")] == [f"{tmp_path}/a"] and not Path("/tmp/tagi-outside").exists()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["run"]
    logs = list((run.folder / "stages" / "task_adapters").glob("log-*.jsonl"))
    assert len(logs) == len(HOSTILE) and len(list(run.folder.rglob("adapter_model.safetensors"))) == len(HOSTILE)
    go(make_run(f"hostile-{by}", output_dir=str(run.folder), instruction_tuning={"steps": 0}, pretraining={"steps": 0},
                task_adapters={"steps": 1, "save_every": 1, "by": by, "at_once": 1}, finetuning={"steps": 1}), hostile)


def test_a_missing_bank_is_refused_before_any_training_of_the_generator(make_run, records, tmp_path):
    run = make_run("none", task_adapters={"given": str(tmp_path / "nowhere")}, instruction_tuning={"steps": 0})
    with pytest.raises(FileNotFoundError, match="nowhere has no index.json"):
        go(run, records)


def test_instructions_that_cannot_be_read_whole_are_refused(make_run, records):
    run = make_run("short", tagi={"max_instruction_length": 8})
    tokenizer = read_tokenizer(run.settings, records, [])
    with pytest.raises(ValueError, match="of task 'both' has .* tokens, but tagi.max_instruction_length is 8; rai"):
        check_model(run.settings, tokenizer, {"train": records}, TEXT)


def test_a_stage_of_text_without_text_is_refused_early(make_run, records):
    settings = make_run("silent").settings
    with pytest.raises(ValueError, match="pretraining.steps is above 0, but there is no text; give --data.text"):
        check_model(settings, read_tokenizer(settings, records, []), {"train": records})


def test_a_bank_of_another_rank_is_refused_where_factors_are_compared(make_run, records):
    run = make_run("bank")
    go(run, records)
    bank = AdapterBank(run.folder / "task_adapters")
    taught = str(run.folder / "stages" / "instruction_tuning" / "backbone")
    other = start_model(make_run("ranks", tagi={"r": 3}), taught, None)
    with pytest.raises(ValueError, match="its A of .*set tagi.r and tagi.target_modules .*alignment to delta"):
        bank.require_like(other, ranks=True)
    bank.require_like(other, ranks=False)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_backbone_from_scratch_learns_text_and_prompts(make_run, records, family):
    config = {
        "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "llama": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128},
    }[family]  # fmt: skip
    backbone = {"name": None, "vocab_size": 60, "config": config, "embedding_std": 0.1}
    run = make_run(
        f"scratch {family}", backbone=backbone, text={"steps": 2, "batch_size": 2, "max_length": 16},
        instruction_tuning={"steps": 2}, task_adapters={"steps": 1}, pretraining={"steps": 1}, finetuning={"steps": 1},
    )  # fmt: skip
    run.stages = ["text", *STAGES]
    model, _ = go(run, records)
    assert model.config.is_encoder_decoder == (family == "t5")
    assert model.config.pad_token_id == 0 and model.config.eos_token_id == 1
    adapter = model.generate_adapter("say the first word")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    output = model.generate(**tokenizer(["red cat"], return_tensors="pt"), adapter=adapter, max_new_tokens=2)
    assert output.shape[0] == 1


def test_progress_is_a_bar_and_nothing_else(make_run, records, kill, monkeypatch, capsys):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(modeling_tagi.common.console, "tqdm", Bar)
    run = make_run("bar", task_adapters={"steps": 1}, pretraining={"steps": 0}, finetuning={"steps": 1})
    kill("instruction_tuning", 5)
    with pytest.raises(Killed):
        go(run, records)
    kill("nothing", 0)
    go(run, records)
    (cut, whole), last = bars[:2], run.stage("instruction_tuning").facts["loss"]
    assert (cut.desc, cut.initial, cut.n, cut.total) == ("[1/4] instruction_tuning", 0, 4, STEPS)
    assert (whole.desc, whole.initial, whole.n, whole.total) == ("[1/4] instruction_tuning", 4, STEPS, STEPS)
    assert whole.postfix == f"loss={last:.3f}"
    shown = capsys.readouterr()
    assert "{'" not in shown.out + shown.err and "[1/4] instruction_tuning:" in shown.err
    lines = [line for line in shown.out.splitlines() if "instruction_tuning" in line]
    assert lines[:2] == ["[1/4] instruction_tuning: starts", "[1/4] instruction_tuning: goes on"] and len(lines) == 3


def test_a_frozen_hypernetwork_leaves_the_fusion_alone_to_learn(make_run, records):
    run = make_run("frozen-hypernetwork", finetuning={
        "freeze": ["hypernetwork"], "alignment": "none", "distillation_weight": 0.0, "train": "all"})  # fmt: skip
    model, _ = go(run, records)
    assert all(not b.any() for b in model.generate_adapter("say the first word").lora_b.values())
    names = moved(run, start_model(run, str(run.folder / "stages" / "instruction_tuning" / "backbone"), None))
    assert names and not any(name.startswith("hypernetwork") for name in names)
    assert any(name.startswith("fusion") for name in names) and any(name.startswith("backbone") for name in names)


@pytest.mark.parametrize("reads", ["prompt", "input"])
def test_a_baseline_trained_on_as_long_has_no_generator(make_run, records, reads):
    run = make_run(f"reads-{reads}", pretraining={"steps": 0}, task_adapters={"steps": 0}, finetuning={
        "reads": reads, "alignment": "none", "distillation_weight": 0.0, "train": "all"})  # fmt: skip
    go(run, records)
    names = moved(run, start_model(run, str(run.folder / "stages" / "instruction_tuning" / "backbone"), None))
    assert names and all(name.startswith("backbone") for name in names)


def test_adapters_tuned_on_inputs_alone_say_so_and_teach_so(make_run, records, monkeypatch):
    read = []
    teach = Teacher.logits
    monkeypatch.setattr(Teacher, "logits", lambda self, batch, *rest: read.append(batch) or teach(self, batch, *rest))
    run = make_run("input", task_adapters={"by": "task", "reads": "input"})
    _, bank = go(run, records)
    assert bank.reads == "input" and AdapterBank(bank.folder).reads == "input" and len(bank.names) == 4
    longest = max(len(record.input.split()) for record in records)
    assert read and all(inputs["input_ids"].shape[1] <= 4 * longest + 2 for inputs in read)


def test_task_adapters_are_refused_by_another_backbone_than_they_were_tuned_on(make_run, records):
    run = make_run("fingerprints")
    model, bank = go(run, records)
    require_fit(bank.load(), start_model(run, str(run.folder / "stages" / "instruction_tuning" / "backbone"), None))
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        require_fit(bank.load(), model)


ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
SHARES = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}


@pytest.mark.parametrize("environment, overrides, wrong", [
    ({**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, {}, "was given a deepspeed_config_file"),
    ({**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, {}, "zero_stage is 0, but must be 1, 2 or 3"),
    ({**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, {}, "offload_optimizer_device is 'cpu'"),
    ({**ZERO, "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, {}, "accelerate's gradient_clipping is 1.0"),
    ({**ZERO, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "accelerate's gradient_accumulation_steps is 4"),
    (ZERO, {"pretraining.optimizer": "adafactor"}, "pretraining.optimizer is 'adafactor'"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, {}, "fsdp_version: 2"),
    ({**SHARES, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, {}, "fsdp_state_dict_type: SHARDED_STATE_DICT"),
    ({**SHARES, "FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params is true"),
    (SHARES, {"pretraining.optimizer": "adafactor"}, "pretraining.optimizer is 'adafactor'"),
    (SHARES, {"evaluation.every": 5}, "evaluation.every is 5"),
])  # fmt: skip
def test_shares_that_cannot_be_trained_in_are_refused_before_any_work(
    make_run, records, tokenizer, monkeypatch, environment, overrides, wrong
):
    monkeypatch.setattr("accelerate.__version__", "1.15")
    monkeypatch.setattr("modeling_tagi.training.sharding.zero.is_deepspeed_available", lambda: True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = make_run("shares").settings
    for stage in ("text", "instruction_tuning", "task_adapters", "pretraining", "finetuning"):
        getattr(settings, stage).optimizer = "adamw_torch"
    for name, value in overrides.items():
        part, field = name.split(".")
        setattr(getattr(settings, part), field, value)
    with pytest.raises(ValueError, match=wrong):
        check_model(settings, tokenizer, {"train": records}, TEXT)


def test_deepspeed_that_is_not_there_is_asked_for(make_run, monkeypatch):
    for name, value in ZERO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("modeling_tagi.training.sharding.zero.is_deepspeed_available", lambda: False)
    with pytest.raises(ImportError, match="pip install deepspeed"):
        require_possible_sharding(make_run("without").settings)


def test_an_accelerate_without_fsdp2_is_refused(make_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("accelerate.__version__", "1.3.0")
    with pytest.raises(ValueError, match="need accelerate 1.15 or later, this is 1.3.0"):
        require_possible_sharding(make_run("old").settings)


def test_weights_are_cut_where_every_process_has_a_part():
    assert cut(torch.empty(12, 768), 8).dim == 1  # eighths of 12 rows would be 2 at most, and leave two with none
    assert cut(torch.empty(12, 768), 4).dim == 0
    assert cut(torch.empty(7), 4).dim == 0 and cut(torch.empty(7), 6) is None and cut(torch.empty(()), 2) is None


def test_a_bank_of_a_backbone_of_another_width_is_not_mended_by_the_rank(tmp_path):
    class Generator(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.hypernetwork = SimpleNamespace(shared_factors=lambda: {"q": torch.zeros(2, width)})

    adapter = TagiAdapter({"q": torch.ones(1, 2, 4)}, {"q": torch.ones(1, 4, 2)}, 2.0)
    bank = AdapterBank(tmp_path / "bank")
    bank.add(["first"], adapter, [{"reads": "input"}])
    with pytest.raises(ValueError, match="tuned on a backbone of another width"):
        bank.require_like(Generator(6), ranks=True)


def test_statistics_of_instructions_are_those_of_the_start(make_run, records, kill, monkeypatch):
    sections = {"tagi": {"standardise": True}, "instruction_tuning": {"steps": 0}, "task_adapters": {"steps": 0}}
    sections["finetuning"] = {"alignment": "none", "distillation_weight": 0}
    run = make_run("standardised", **sections)
    tokenizer = read_tokenizer(run.settings, records, TEXT)
    start = RunState(run, tokenizer, records, TEXT)
    pooled = start.model.pooled_from_rows(
        [start.tokens.instruction(text) for text in dict.fromkeys(r.instruction for r in records)]
    )
    kill("finetuning", 4)
    with pytest.raises(Killed):
        go(run, records)
    monkeypatch.undo()
    model, _ = go(make_run("standardised", **sections), records)
    torch.testing.assert_close(model.standardised.mean, pooled.mean(0))
    torch.testing.assert_close(model.standardised.std, pooled.std(0, correction=0))
    whole, _ = go(make_run("standardised-at-once", **sections), records)
    assert same(model.state_dict(), whole.state_dict())
    assert not torch.equal(model.pooled_from_rows([[5, 6, 7]]), start.model.pooled_from_rows([[5, 6, 7]]))
