"""Every recipe of hub_configs/: loaded, planned, and run for three steps a stage on a tiny backbone of its family."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import write_tiny_data
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modeling_tagi import TagiConfig
from modeling_tagi.common.yaml_files import joined, read_recipe
from modeling_tagi.costs.flops import TaskFlops
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.planning.plan import plan_run
from modeling_tagi.planning.printed import shown
from modeling_tagi.studies.cells import cells
from modeling_tagi.studies.settings import load_study
from modeling_tagi.training.settings import build_settings, load_settings

CONFIGS = Path(__file__).parents[1] / "hub_configs"
STUDIES = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("studies/*.yaml"))
LAUNCHES = {file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("accelerate/*.yaml")}  # see test_launches.py
RECIPES = sorted({file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml")} - set(STUDIES) - LAUNCHES)
# One of each kind; the others differ from these, or from quickstart.yaml (test_train.py stands for it), in numbers.
TELLING = {"t5-base-sni-def-2pos.yaml", "gemma-2-2b-sni-def.yaml", "mistral-7b-sni-def.yaml"}
NAMED = {
    "t5-base-sni-def", "t5-base-sni-def-2pos", "t5-xl-sni-def", "t5-xl-sni-def-2pos", "t5-xxl-sni-def",
    "t5-xxl-sni-def-2pos", "t5-base-p3", "t5-large-p3", "t5-xl-p3", "t0-3b-p3", "qwen3-0.6b-sni-def",
    "llama-3.2-1b-sni-def", "gemma-2-2b-sni-def", "mistral-7b-sni-def",
}  # fmt: skip
STAGES = ("text", "instruction_tuning", "task_adapters", "pretraining", "finetuning")
TINY = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """`tiny(fields)`: a folder with data, text and a random backbone of a recipe's family, small, with a tokenizer."""
    folder = tmp_path_factory.mktemp("recipes")
    write_tiny_data(folder, unseen=["next"])
    lines = (folder / "text.txt").read_text().splitlines()
    instructions = [json.loads(line)["instruction"] for line in (folder / "data" / "train.jsonl").open()]
    tokenizer = train_tokenizer([*lines, *instructions, "Input: Output: Example"], 90)

    def make(fields):
        place = folder / fields["model_type"]
        if not place.exists():
            kept = {name: fields[name] for name in ("model_type", "feed_forward_proj", "sliding_window",
                                                    "tie_word_embeddings") if name in fields}  # fmt: skip
            special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "vocab_size": len(tokenizer)}
            if fields["model_type"] == "t5":
                special["decoder_start_token_id"] = 0
            size = {name: value for name, value in TINY.items() if name in fields}
            torch.manual_seed(0)
            config = AutoConfig.for_model(**kept, **size, **special)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            auto.from_config(config).save_pretrained(place)
            tokenizer.save_pretrained(place)
        return folder, place

    return make


def sizes(values):
    """The fields of the backbone that a recipe makes or names; a T5 where it says none, as my-data.yaml."""
    return values["backbone"].get("config") or values["backbone"].get("shape") or {"model_type": "t5"}


def small(name, tiny, output_dir):
    """The recipe's fields, at sizes and with data that take a second or two."""
    values = read_recipe(CONFIGS / name)
    folder, backbone = tiny(sizes(values))
    scratch = values["backbone"].get("name") is None
    least = {"batch_size": 2, "max_length": 24, "tasks_per_batch": 2, "examples_per_task": 1, "at_once": 2}
    stages = {}
    for stage in STAGES:
        given = values.get(stage, {})
        if given.get("steps"):
            stages[stage] = {"steps": 3, **{field: x for field, x in least.items() if field in given}}
            stages[stage] |= {field: min(given[field], 2) for field in ("accumulation",) if field in given}
    for stage in {"text", "pretraining"} & stages.keys():
        stages[stage]["max_length"] = 24
    own = {
        **stages,
        "output_dir": str(output_dir),
        "train_tasks": None,  # there are three
        "max_input_length": 32,
        "max_target_length": 8,
        "data": {"source": "tables", "path": str(folder / "data"), "text": str(folder / "text.txt"), "t0_eval": None},
        "backbone": {"vocab_size": 60, "config": {k: v for k, v in TINY.items() if k in sizes(values)}}
        if scratch else {"name": str(backbone)},
        "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4,
                 "max_instruction_length": 64},
        "evaluation": {"splits": ["unseen"], "max_records": 2, "oracle": {"steps": 2}},
    }  # fmt: skip
    values["data"]["options"] = {}
    return joined(values, own)


def test_the_recipes_of_the_paper_and_ours_are_there():
    assert {Path(name).stem for name in RECIPES} >= NAMED and TELLING <= set(RECIPES) and len(STUDIES) >= 2


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "my-data.yaml"])  # whose backbone is the user's
def test_every_recipe_is_loaded_and_planned_where_neither_hub_nor_data_are(name, monkeypatch):
    monkeypatch.delenv("TAGI_DATA", raising=False)
    settings = load_settings(CONFIGS / name)
    assert settings.output_dir == f"outputs/{Path(name).stem}"
    plan = plan_run(settings, flops_per_second=400e12, with_data=settings.data.source != "builtin")
    json.dumps(plan)
    assert plan["backbone"]["shape_from"] == ("scratch" if settings.backbone.name is None else "config")
    parameters = plan["parameters"]
    assert parameters["trained"] + parameters["frozen"] == parameters["total"]
    assert [stage["name"] for stage in plan["stages"]] == [s for s in STAGES if getattr(settings, s).steps]
    for stage in plan["stages"]:
        assert stage["flops"] > 0 and stage["seconds"] == pytest.approx(stage["flops"] / 160e12)
        assert all(number > 0 for number in stage["device_memory"].values())
        assert stage["name"] in shown(plan)


@pytest.mark.parametrize("name, millions", [
    ("qwen3-0.6b-sni-def", 596.05), ("llama-3.2-1b-sni-def", 1235.81), ("gemma-2-2b-sni-def", 2614.34),
    ("mistral-7b-sni-def", 7248.02),
])  # fmt: skip
def test_the_shapes_of_causal_recipes_have_as_many_parameters_as_their_models(name, millions):
    # as the Hub counts them in the models' own files; a head that is tied to the embeddings is counted once
    plan = plan_run(load_settings(CONFIGS / f"{name}.yaml"), flops_per_second=1e12, with_data=False)
    assert plan["parameters"]["backbone"] == pytest.approx(millions * 1e6, abs=1e4)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_loaded_and_its_runs_planned(name, monkeypatch):
    monkeypatch.delenv("TAGI_DATA", raising=False)
    every = cells(load_study(CONFIGS / name))
    kinds = {json.dumps(dataclasses.asdict(cell.settings)["tagi"], sort_keys=True): cell for cell in every}
    for cell in kinds.values():
        if cell.settings.backbone.config:  # else it is a pretrained one, whose shape is told
            cell.settings.backbone.name = None  # of a start that has not been run
        assert plan_run(cell.settings, flops_per_second=1e12, with_data=False)["total"]["disk"] > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in TELLING else [pytest.mark.slow]) for name in RECIPES]
)
def test_every_recipe_runs_three_steps_of_every_stage(name, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TAGI_DATA", str(tmp_path))
    settings = build_settings(small(name, tiny, tmp_path / "out"))
    plan = plan_run(settings, flops_per_second=1e9)
    results = run_experiment(settings)
    done = [json.loads(file.read_text()) for file in (tmp_path / "out" / "stages").glob("*/done.json")]
    ran = {stage["name"] for stage in plan["stages"]}
    assert {entry["steps"] for entry in done if "steps" in entry} == {3}
    assert ran <= {file.parent.name for file in (tmp_path / "out" / "stages").glob("*/done.json")}
    losses = {name: results["run"]["losses"][name] for name in ran}
    assert all(0 < loss < 1e4 for loss in losses.values()), losses
    assert results["splits"]["unseen"]["methods"]["tagi"]["n"] == 2
    saved = TagiConfig.from_pretrained(tmp_path / "out" / "model")
    assert saved.backbone_config.model_type == sizes(read_recipe(CONFIGS / name))["model_type"]
    model = TaskFlops(saved).model
    assert plan["parameters"]["total"] == sum(x.numel() for x in model.parameters())


@pytest.mark.parametrize("name", [name for name in RECIPES if Path(name).stem in NAMED])
def test_a_recipe_takes_its_data_from_an_environment_variable(name):
    data = load_settings(CONFIGS / name).data
    assert data.path.startswith("${TAGI_DATA}/") and data.text == "${TAGI_DATA}/text"
    assert "TAGI_DATA" in yaml.safe_dump(read_recipe(CONFIGS / name)["data"])


@pytest.mark.parametrize("name, rate, batch", [
    ("t5-base-sni-def", 1e-4, (8, 2)), ("t5-xl-sni-def", 5e-5, (2, 4)), ("t5-xxl-sni-def", 5e-5, (1, 2)),
    ("t5-base-p3", 1e-4, (8, 2)), ("t5-large-p3", 1e-4, (4, 4)), ("t5-xl-p3", 5e-5, (2, 4)),
    ("t0-3b-p3", 5e-5, (2, 4)), ("t5-xl-sni-def-2pos", 5e-5, (2, 4)),
])  # fmt: skip
def test_the_papers_recipes_have_the_hyper_parameters_of_table_6(name, rate, batch):
    settings = load_settings(CONFIGS / f"{name}.yaml")
    stage = settings.finetuning
    assert (stage.steps, stage.learning_rate, stage.warmup, stage.schedule) == (20000, rate, 0.02, "linear")
    assert (stage.tasks_per_batch * stage.examples_per_task, stage.accumulation) == batch
    assert (stage.distillation_weight, stage.temperature) == (5.0, 3.0)
    assert (stage.alignment, stage.alignment_weight, stage.optimizer) == ("factors", "sigmoid", "adamw_torch_fused")
    lengths = (512, 64) if "p3" in name else (1024, 128)
    assert (settings.max_input_length, settings.max_target_length) == lengths
    assert settings.tagi["r"] == 32 and settings.bf16
    tuned = settings.task_adapters
    assert (tuned.steps, tuned.learning_rate, tuned.by, tuned.reads) == (10000, 1e-4, "group", "prompt")
    assert tuned.examples_per_task * tuned.accumulation == 16
    pretraining = settings.pretraining
    assert (pretraining.steps, pretraining.batch_size * pretraining.accumulation) == (50000, 8)
    assert (pretraining.optimizer, pretraining.learning_rate, pretraining.max_length) == ("adafactor", 1e-3, 1024)
    assert settings.data.options.get("positive_examples", 0) == (2 if "2pos" in name else 0)
