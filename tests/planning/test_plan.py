import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.common.yaml_files import read_recipe
from modeling_tagi.costs.flops import TaskFlops
from modeling_tagi.costs.work import TextLengths
from modeling_tagi.planning.plan import plan_run
from modeling_tagi.planning.printed import shown
from modeling_tagi.planning.speed import measured_flops_per_second
from modeling_tagi.training.settings import build_settings, load_settings
from modeling_tagi.training.stage_costs import RunCosts
from modeling_tagi.training.stages import STAGES, TrainingStage, training_stages
from modeling_tagi.training.trainable import trained_parameters

CONFIGS = Path(__file__).parents[2] / "hub_configs"


@pytest.fixture(scope="module")
def xl():
    settings = load_settings(CONFIGS / "t5-xl-sni-def.yaml")
    return plan_run(settings, flops_per_second=400e12, utilisation=0.5, adapters=60, with_data=False)


def stage(plan, name):
    return next(entry for entry in plan["stages"] if entry["name"] == name)


# T5 v1.1 XL: 24 layers in the encoder and in the decoder, d_model 2048, d_ff 5120, 32 heads of 64, vocabulary 32128
D_MODEL, LAYERS, RANK = 2048, 24, 32
ATTENTION = 4 * D_MODEL * 32 * 64  # q, k, v, o
FEED_FORWARD = 3 * D_MODEL * 5120  # gated: wi_0, wi_1, wo
ENCODER = LAYERS * (ATTENTION + FEED_FORWARD)
DECODER = LAYERS * (2 * ATTENTION + FEED_FORWARD)  # self-attention and cross-attention
EMBEDDING = 32128 * D_MODEL
TARGETS = LAYERS * 2 + LAYERS * 4  # q and v: of the encoder's self-attention, of the decoder's two attentions


def test_the_xl_recipes_parameters_are_those_worked_out_by_hand(xl):
    backbone = ENCODER + DECODER + 2 * EMBEDDING  # input and output; transformers counts them as one
    assert backbone == pytest.approx(2.85e9, rel=0.001)  # what the model is known for
    # for each of the 48 layers an MLP from the pooled instruction (2048) and an index (32) over 128 hidden units to A
    # and B of rank 32; and the A that all tasks share
    mlp = (2048 + 32) * 128 + 128 * RANK * (D_MODEL + D_MODEL)
    generator = 48 * mlp + TARGETS * RANK * D_MODEL
    fusion = LAYERS * ATTENTION  # a cross-attention in every layer of the encoder
    parameters = xl["parameters"]
    assert parameters["backbone"] == pytest.approx(backbone, rel=0.1)
    assert parameters["backbone"] == pytest.approx(backbone - EMBEDDING, rel=0.001)
    assert parameters["hypernetwork"] == pytest.approx(generator, rel=0.001)
    assert parameters["fusion"] == pytest.approx(fusion, rel=0.001)
    assert parameters["total"] == pytest.approx(backbone + generator + fusion, rel=0.1)
    assert parameters["trained"] == parameters["hypernetwork"] + parameters["fusion"]
    assert parameters["adapter"] == TARGETS * RANK * (D_MODEL + D_MODEL) and parameters["adapters_in_bank"] == 60


def test_the_xl_recipes_tokens_are_those_worked_out_by_hand(xl):
    found = {entry["name"]: entry["tokens"]["limit"] for entry in xl["stages"]}
    # 60 categories, 10,000 steps of 16 prompts (an instruction and an input, 1024 tokens at most each) and 128 out
    prompts = 60 * 10_000 * 16
    assert found["task_adapters"]["backbone"] == pytest.approx(prompts * 2048, rel=0.1)
    assert found["task_adapters"]["target"] == pytest.approx(prompts * 128, rel=0.1)
    # 50,000 steps of 8 passages of 1024 tokens, cut into three
    passages = 50_000 * 8
    for name in ("hypernetwork", "backbone", "target"):
        assert found["pretraining"][name] == pytest.approx(passages * 1024 / 3, rel=0.1)
    # 20,000 steps of 2 x 4 examples
    examples = 20_000 * 8
    expected = {"hypernetwork": 1024, "backbone": 1024, "target": 128, "teacher": 2048}
    assert found["finetuning"] == pytest.approx({k: examples * length for k, length in expected.items()}, rel=0.1)


def test_the_xl_recipes_flops_are_two_a_parameter_and_token_and_the_scores_of_attention(xl):
    tokens = {name: 20_000 * 8 * length for name, length in
              (("instruction", 1024), ("input", 1024), ("target", 128), ("prompt", 2048))}  # fmt: skip
    memory = LAYERS * ATTENTION / 2  # keys and values of the decoder's cross-attention, of the encoder's output
    written = DECODER - memory + EMBEDDING

    def seen(queries, keys):
        return LAYERS * 4 * D_MODEL * queries * keys

    instruction = 2 * ENCODER * tokens["instruction"] + seen(tokens["instruction"], 1024)
    inputs = 2 * (ENCODER + memory) * tokens["input"] + seen(tokens["input"], 1024)
    outputs = 2 * written * tokens["target"] + seen(tokens["target"], 64 + 1024)
    attended = 2 * memory * tokens["instruction"] + seen(tokens["target"], 1024)
    fusion = 2 * LAYERS * ATTENTION * tokens["input"] + seen(tokens["input"], 1024)
    teacher = 2 * (ENCODER + memory) * tokens["prompt"] + seen(tokens["prompt"], 2048)
    teacher += 2 * written * tokens["target"] + seen(tokens["target"], 64 + 2048)
    # the backbone is frozen, and read through; the instruction's encoding and the teacher are only run
    total = instruction + 2 * (inputs + outputs + attended) + 3 * fusion + teacher
    assert stage(xl, "finetuning")["flops"] == pytest.approx(total, rel=0.02)
    assert stage(xl, "finetuning")["seconds"] == pytest.approx(total / 200e12, rel=0.02)


def test_the_xl_recipes_memory_is_weights_gradients_and_optimizer_states_of_four_bytes(xl):
    trained, total = xl["parameters"]["trained"], xl["parameters"]["total"]
    memory = stage(xl, "finetuning")["device_memory"]
    assert 60 * 4 * xl["parameters"]["adapter"] > 2 * 2**30  # more than is kept of a bank
    assert memory["weights"] == 4 * total + 2 * 2**30
    assert (memory["gradients"], memory["optimizer"]) == (4 * trained, 8 * trained)  # AdamW has two numbers for each
    assert 1e9 < memory["activations"] < 60e9
    assert stage(xl, "pretraining")["device_memory"]["optimizer"] < 0.05 * 4 * trained  # Adafactor: rows and columns
    disk = stage(xl, "finetuning")["disk"]
    assert disk == {"checkpoints": 2 * 4 * (total + 2 * trained), "kept": 4 * total}


def test_what_a_teacher_has_said_takes_disk_while_it_is_needed():
    formula, lengths = TaskFlops(TagiConfig(tiny_backbone(), r=2)), TextLengths(40, 30, 9, 99)

    def disk(cache, records=None):
        values = {"finetuning": {"steps": 5, "tasks_per_batch": 2, "examples_per_task": 3, "teacher_cache": cache},
                  "task_adapters": {"steps": 1}}  # fmt: skip
        return STAGES["finetuning"].disk(RunCosts(build_settings(values), formula, 3, records), lengths).checkpoints

    # 30 records are drawn at most, of 9 target tokens each: 16 numbers, or 64 of the vocabulary with their numbers
    assert disk("states") - disk(None) == 30 * 9 * 4 * 16
    assert disk(64) - disk(None) == 30 * 9 * 8 * 64
    assert disk("states", records=12) - disk(None) == 12 * 9 * 4 * 16


def tiny_backbone():
    return T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64, dropout_rate=0.0,
                    decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip


@pytest.mark.parametrize("train", ["generator", "all"])
def test_a_training_steps_flops_are_what_torch_counts(train):
    values = {"finetuning": {"train": train, "tasks_per_batch": 2, "examples_per_task": 3, "distillation_weight": 0,
                             "alignment": "none"}}  # fmt: skip
    config = TagiConfig(tiny_backbone(), r=2, lora_alpha=4, generator_hidden_size=8, generator_index_size=4)
    model = TagiModel(config)
    with torch.no_grad():  # a fresh gate of 0 would be a fusion all the same; a fresh generator's 0 too
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.set_trainable(train)
    instructions, inputs, labels = (torch.randint(3, 60, shape) for shape in ((2, 40), (6, 30), (6, 9)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(inputs, labels=labels, task_index=torch.arange(6) // 3, instruction_input_ids=instructions,
              instruction_attention_mask=torch.ones_like(instructions)).loss.backward()  # fmt: skip
    work = STAGES["finetuning"].work(RunCosts(build_settings(values), TaskFlops(config)), TextLengths(40, 30, 9, 99))
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert (work.rows, work.hypernetwork, work.backbone, work.target, work.teacher) == (6, 80, 180, 54, 0)


def test_what_is_trained_is_what_the_stages_train():
    config = TagiConfig(tiny_backbone(), r=2)
    model = TaskFlops(config).model
    sizes = {}
    for train, freeze in (("generator", []), ("generator", ["fusion"]), ("generator_and_norms", []), ("all", [])):
        settings = build_settings({"finetuning": {"train": train, "freeze": freeze}})
        sizes[train, len(freeze)] = sum(x.numel() for x in trained_parameters(model, settings))
    fusion = sum(x.numel() for x in model.fusion.parameters())
    assert sizes["generator", 1] == sizes["generator", 0] - fusion
    assert sizes["generator", 0] < sizes["generator_and_norms", 0] < sizes["all", 0]
    assert sizes["all", 0] == sum(x.numel() for x in model.parameters())


@pytest.fixture(scope="module")
def planned(config):
    return plan_run(load_settings(config), flops_per_second=1e9)


def test_a_plan_reads_the_data_that_is_there(config, planned):
    assert planned["data"] == {"records": 18, "tasks": 3, "groups": 3, "adapters": 3}
    lengths = planned["lengths"]
    for name, limit in lengths["limit"].items():
        assert 0 < lengths["mean"][name] <= lengths["longest"][name] <= max(limit, 1024), name
    finetuning = stage(planned, "finetuning")
    assert finetuning["epochs"] == finetuning["steps"] * finetuning["rows_per_step"] / 18
    assert finetuning["tokens"]["mean"]["target"] < finetuning["tokens"]["limit"]["target"]
    assert planned["parameters"]["adapters_in_bank"] == 3
    text = shown(planned)
    assert "Data to train on: 18 records, 3 tasks, 3 groups" in text and "at the mean lengths" in text
    without = plan_run(load_settings(config), flops_per_second=1e9, with_data=False)
    assert without["data"] is None and without["lengths"]["mean"] is None
    assert without["total"]["flops"] > planned["total"]["flops"]
    assert any("say it with --adapters" in note for note in without["notes"])


def test_a_plan_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan_run(load_settings(config), flops_per_second=1e9)
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there_is_a_note_and_data_that_is_wrong_an_error(config, tmp_path):
    plan = plan_run(load_settings(config, {"data.path": str(tmp_path / "nowhere")}), flops_per_second=1e9)
    assert plan["data"] is None and any("there is no" in note for note in plan["notes"])
    with pytest.raises(ValueError, match="data.options has 'column', but tables takes columns"):
        plan_run(load_settings(config, {"data.options": "{column: {}}"}), flops_per_second=1e9)
    with pytest.raises(ValueError, match="has .* tokens, but tagi.max_instruction_length is 2"):
        plan_run(load_settings(config, {"tagi.max_instruction_length": "2"}), flops_per_second=1e9)


def test_a_backbone_without_a_shape_is_refused(config):
    values = yaml.safe_load(Path(config).read_text())
    values["backbone"] = {"name": "nobody/nothing"}
    with pytest.raises(ValueError, match="the shape of the backbone 'nobody/nothing' is not to be had"):
        plan_run(build_settings({**values, "output_dir": "x"}), with_data=False)


def test_a_repositorys_own_shape_is_believed_before_the_recipes(config, tmp_path):
    tiny_backbone().save_pretrained(tmp_path / "own")
    overrides = {"backbone.name": str(tmp_path / "own"), "backbone.shape": "{model_type: t5, d_model: 32}"}
    plan = plan_run(load_settings(config, overrides), flops_per_second=1e9, with_data=False)
    assert plan["backbone"]["shape_from"] == "repository"
    assert any(f"says d_model 32, but {tmp_path / 'own'} has 16" in note for note in plan["notes"])


def test_a_bank_that_is_given_is_not_tuned():
    settings = build_settings({"task_adapters": {"steps": 9, "given": "bank"}, "finetuning": {"steps": 2}})
    assert [stage.name for stage in training_stages(settings)] == ["finetuning"]


def test_the_speed_of_this_machine_is_measured():
    assert 1e7 < measured_flops_per_second(torch.float32, seconds=0.05) < 1e16


def test_the_plan_is_json_of_numbers_and_texts(planned):
    assert json.loads(json.dumps(planned)) == planned


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "some/where/else"])
def test_a_backbones_folder_that_is_not_there_is_refused_whatever_the_recipe_says_of_its_shape(config, name):
    settings = load_settings(config, {"backbone.name": name})
    assert "model_type" in settings.backbone.config
    with pytest.raises(FileNotFoundError, match=f"backbone.name is '{name}', but there is no such folder"):
        plan_run(settings, flops_per_second=1e9, with_data=False)


OPT = {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1,
       "num_attention_heads": 2, "max_position_embeddings": 128, "vocab_size": 99}  # fmt: skip


def test_a_family_that_no_table_lists_is_planned_but_for_flops_and_time(config):
    values = read_recipe(config)
    values["backbone"]["config"] = OPT
    values["tagi"] |= {"target_modules": ["q_proj", "v_proj"], "fusion": "none"}
    plan = plan_run(build_settings({**values, "output_dir": "x"}), flops_per_second=1e9, adapters=3, with_data=False)
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert plan["total"]["flops"] is plan["total"]["seconds"] is None
    assert 0 < plan["parameters"]["trained"] <= plan["parameters"]["total"]
    for row in plan["stages"]:
        memory = row["device_memory"]
        assert row["flops"] is row["seconds"] is memory["activations"] is None
        assert memory["total"] == memory["weights"] + memory["gradients"] + memory["optimizer"] > 0
        assert row["disk"]["kept"] > 0 and row["tokens"]["limit"]["backbone"] > 0
    text = shown(plan)
    assert "* FLOPs and time are not known for a backbone of the family 'opt'" in text and "nan" not in text


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_its_work_its_memory_and_its_disk(name):
    values = {section: {"steps": 3} for section in STAGES}
    formula, lengths = TaskFlops(TagiConfig(tiny_backbone(), r=2)), TextLengths(40, 30, 9, 99)
    costs, stage = RunCosts(build_settings(values), formula, adapters=3), STAGES[name]
    work, memory, disk = stage.work(costs, lengths), stage.device_memory(costs, lengths), stage.disk(costs, lengths)
    assert stage.reads in ("records", "text") and stage.steps(costs) == 3
    assert all(number > 0 for number in (work.rows, work.backbone, work.target, work.flops, memory.total, disk.kept))
    assert min(memory.weights, memory.gradients, memory.optimizer, memory.activations) > 0
    assert disk.checkpoints > memory.optimizer
    longer = stage.work(costs, TextLengths(80, 60, 18, 198))
    assert longer.rows == work.rows and longer.flops > work.flops and longer.target > work.target
    assert TrainingStage.__abstractmethods__ >= {"batch", "device_memory", "disk"}
