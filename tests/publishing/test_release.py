import json

import pytest
import torch
from safetensors.torch import load_file
from without_package import WRITTEN_BY_AUTO_MODEL, run_without_package

from modeling_tagi import TagiModel
from modeling_tagi.commands.main import main
from modeling_tagi.publishing.release import release

INSTRUCTION = "say yes"


@pytest.fixture
def trained(make_model, make_backbone, tokenizer, tmp_path):
    """A run's folder: a generator with statistics, its backbone beside it, a card and results."""
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    backbone = make_backbone("llama")
    model = make_model("llama", "none", backbone=backbone, standardise=True, backbone_in_checkpoint=False,
                       backbone_name_or_path=str(tmp_path / "backbone"))  # fmt: skip
    model.standardised.mean.fill_(0.123456789)
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "README.md").write_text("The card.")
    (tmp_path / "run" / "results.json").write_text("{}")
    return tmp_path / "run" / "model"


def written(model):
    return sum(float(b.abs().sum()) for b in model.generate_adapter(INSTRUCTION).lora_b.values())


def test_a_bare_checkpoint_is_a_generator_that_the_package_loads(trained, tmp_path):
    release(trained, tmp_path / "bare", bare=True)
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "README.md", "results.json"
    }  # fmt: skip
    states = load_file(tmp_path / "bare" / "model.safetensors")
    assert {x.dtype for name, x in states.items() if "standardised" not in name} == {torch.bfloat16}
    assert states["standardised.mean"][0] == torch.tensor(0.123456789)  # a float32
    assert not {"auto_map", "custom_pipelines"} & set(json.loads((tmp_path / "bare" / "config.json").read_text()))
    loaded = TagiModel.from_pretrained(tmp_path / "bare")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert written(loaded) == pytest.approx(written(TagiModel.from_pretrained(trained)), rel=0.02)


def test_results_of_a_bare_checkpoint_have_no_texts_of_the_data(trained, tmp_path):
    """The texts may be others' property, and the run's folder is nobody's business."""
    secret = {"instruction": "secret words", "input": "secret words"}
    split = {"methods": {"TAGI": {"exact_match": 7.0}}, "examples": [secret]}
    results = {
        "splits": {"unseen": split}, "example": secret, "run": {"seed": 3},
        "leaks": {"leaks": 0, "splits": {"unseen": {"leaks": 0, "examples": {"task": ["secret words"]}}}},
    }  # fmt: skip
    for command, expected in (
        ("train.py smoke --output_dir /secret/run --seed 3", "train.py smoke --seed 3"),
        ("train.py smoke --output_dir='/secret words/run'", "train.py smoke"),
    ):
        results["run"]["command"] = command
        (trained.parent / "results.json").write_text(json.dumps(results))
        release(trained, tmp_path / "bare", bare=True)
        text = (tmp_path / "bare" / "results.json").read_text()
        found = json.loads(text)
        assert "secret" not in text and found["run"] == {"seed": 3, "command": expected}
        assert found["splits"]["unseen"]["methods"] == split["methods"] and found["leaks"]["leaks"] == 0


def test_what_is_released_of_a_bare_checkpoint_works_without_the_package(trained, tmp_path, capsys):
    release(trained, tmp_path / "bare", bare=True)
    assert main(["release", str(tmp_path / "bare"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"modeling_tagi.py", "tokenizer.json", "README.md", "results.json", "model.safetensors"} <= found
    assert (tmp_path / "out" / "README.md").read_text() == "The card."
    found = run_without_package(WRITTEN_BY_AUTO_MODEL, tmp_path / "out", INSTRUCTION, cwd=tmp_path)
    expected = written(TagiModel.from_pretrained(tmp_path / "bare"))
    assert float(found.split()[-1]) == pytest.approx(expected, rel=1e-5)


def test_another_backbone_can_be_named(trained, make_backbone, tokenizer, tmp_path):
    make_backbone("llama", seed=1).save_pretrained(tmp_path / "other")  # other weights, which are not compared
    tokenizer.save_pretrained(tmp_path / "other")
    release(trained, tmp_path / "out", backbone=str(tmp_path / "other"))
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["backbone_name_or_path"] == str(tmp_path / "other") and not fields.get("backbone_sha256")
    other = TagiModel.from_pretrained(tmp_path / "out").backbone.get_input_embeddings().weight
    assert torch.equal(other, make_backbone("llama", seed=1).get_input_embeddings().weight)


def test_a_checkpoint_without_a_card_gets_one(trained, tmp_path):
    (trained / "README.md").unlink()
    release(trained, tmp_path / "mine")
    assert "# mine" in (tmp_path / "mine" / "README.md").read_text()


def test_a_backbone_is_not_put_into_a_bare_checkpoint(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole holds its backbone, and a bare checkpoint is a generator alone"):
        release(tmp_path / "whole", tmp_path / "bare", bare=True)
    assert not (tmp_path / "bare").exists()


def test_something_else_is_not_replaced(trained, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("long work")
    with pytest.raises(ValueError, match="papers"):
        release(trained, tmp_path / "papers")
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "long work"
