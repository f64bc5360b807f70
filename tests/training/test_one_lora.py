"""One LoRA for all tasks, with the instruction in the input and without: what generators are seen against."""

import pytest
import torch
from tiny import tiny_settings, write_tiny_data

from modeling_tagi import TagiModel
from modeling_tagi.common.methods import METHODS
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.records import Record
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.tokens import Tokens
from modeling_tagi.training.settings import build_settings


@pytest.fixture(scope="module")
def values(tmp_path_factory, make_backbone, tokenizer):
    """Returns the fields of a run on a pretrained backbone that finetunes for four steps, and does nothing else."""
    folder = tmp_path_factory.mktemp("one_lora")
    write_tiny_data(folder, unseen=["next"])
    make_backbone("t5").save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    found = tiny_settings(folder, steps=0)
    found["backbone"] = {"name": str(folder / "backbone")}
    found["evaluation"] = {"references": ["start_prompted", "wrong_instruction"], "max_records": 4}
    found["finetuning"] |= {"steps": 4, "train": "generator", "learning_rate": 3e-2}
    return found


@pytest.mark.parametrize("method", ["prompted_lora", "input_only_lora"])
def test_a_run_trains_one_lora_and_nothing_else(values, method, tmp_path):
    settings = build_settings(values, {"method": method, "output_dir": str(tmp_path)})
    results = run_experiment(settings)
    assert set(results["splits"]["unseen"]["methods"]) >= {method, "start_prompted"}
    model = TagiModel.from_pretrained(tmp_path / "model")
    assert model.config.generator == "constant" and not model.config.backbone_trained
    assert any(b.any() for b in model.hypernetwork.b.values())
    adapters = model.generate_adapter(["say the first word", "say the last word"])
    for factor in (*adapters.lora_a.values(), *adapters.lora_b.values()):
        assert torch.equal(factor[0], factor[1])
    told = "It was trained with the instruction in the input too" in (tmp_path / "model" / "README.md").read_text()
    assert told == (method == "prompted_lora")


def test_both_ways_of_reading_are_in_a_batch(tokenizer):
    tokens = Tokens(tokenizer, is_encoder_decoder=True)
    record = Record("first", "say the first word", "red green", ("red",))
    ways = ("adapter", "prompt", "adapter_and_prompt")
    adapter, prompt, both = (RecordCollator(tokens, way)([record]) for way in ways)
    assert torch.equal(both["input_ids"], prompt["input_ids"])
    assert not torch.equal(both["input_ids"], adapter["input_ids"])
    assert torch.equal(both["instruction_input_ids"], adapter["instruction_input_ids"])


def test_a_fused_model_is_not_to_read_the_instruction_twice(values):
    with pytest.raises(ValueError, match="would read the instruction twice: set tagi.fusion to none"):
        build_settings(values, {"finetuning.reads": "adapter_and_prompt", "finetuning.distillation_weight": 0,
                                "finetuning.alignment": "none"})  # fmt: skip


def test_the_methods_are_baselines_beside_tagi():
    for name in ("prompted_lora", "input_only_lora"):
        assert METHODS[name].among_references and METHODS[name].fusion == "none"
