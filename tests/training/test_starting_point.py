"""Runs that train a checkpoint's generator further (`start_from`)."""

import pytest
import torch
import yaml
from tiny import tiny_settings, write_tiny_data

from modeling_tagi import TagiModel
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.training.settings import build_settings, load_settings


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, make_backbone, tokenizer):
    folder = tmp_path_factory.mktemp("backbone")
    make_backbone("t5").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def values(tmp_path_factory, backbone):
    """Returns the fields of a run that finetunes a generator for the frozen backbone, and nothing else."""
    folder = tmp_path_factory.mktemp("start")
    write_tiny_data(folder, unseen=["next"])
    found = tiny_settings(folder, steps=0)
    found["backbone"] = {"name": backbone}
    found["tagi"]["standardise"] = True
    found["evaluation"] = {"references": [], "max_records": 2}
    found["finetuning"] |= {"steps": 2, "train": "generator", "distillation_weight": 0, "alignment": "none",
                            "learning_rate": 1e-2}  # fmt: skip
    return {**found, "output_dir": str(folder / "first")}


@pytest.fixture(scope="module")
def first(values):
    """Returns the checkpoint of a run from a fresh generator."""
    run_experiment(build_settings(values))
    return f"{values['output_dir']}/model"


def further(values, first, folder, **finetuning):
    """Returns the fields of a run that starts from a checkpoint and says nothing of the generator's shape."""
    return {**values, "tagi": {}, "start_from": first, "output_dir": str(folder / "further"), "seed": 5,
            "finetuning": {**values["finetuning"], **finetuning}}  # fmt: skip


def states(folder):
    return TagiModel.from_pretrained(folder).state_dict()


def test_a_run_trains_the_checkpoints_generator_further(values, first, tmp_path):
    still = further(values, first, tmp_path / "still", learning_rate=0.0)
    run_experiment(build_settings(still))
    before, same = states(first), states(f"{still['output_dir']}/model")
    assert before.keys() == same.keys() and all(torch.equal(before[name], same[name]) for name in before)
    # other words to train on, whose statistics are not those that the generator has learnt to read
    assert any(name.startswith("standardised.") for name in before)

    moved = further(values, first, tmp_path / "moved")
    run_experiment(build_settings(moved))
    after = states(f"{moved['output_dir']}/model")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "hypernetwork" in changed and not changed & {"backbone", "standardised"}

    # what was trained from another start is not taken for this one's
    with pytest.raises(ValueError, match="holds a run with other settings: its stage finetuning was begun with them"):
        run_experiment(build_settings({**moved, "start_from": None, "tagi": values["tagi"]}))


def test_the_settings_are_filled_in_from_the_checkpoint(values, first, tmp_path):
    settings = build_settings(further(values, first, tmp_path))
    assert settings.tagi["r"] == 2 and settings.tagi["standardise"] is True
    again = build_settings({**further(values, first, tmp_path), "tagi": settings.tagi})
    assert again == settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tagi": {"r": 3}}, "tagi.r is 3, but the generator in .*, which start_from names, has 2; leave tagi.r out"),
        ({"start_from": "/no/such/folder"}, "start_from is '/no/such/folder', which cannot be read"),
        ({"backbone": {}}, "does not say where its backbone is: give it as backbone.name"),
        ({"text": {"steps": 2}}, "text.steps changes the backbone"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(values, first, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_settings({**further(values, first, tmp_path), **changes})


def test_a_plain_language_model_is_no_start(values, first, backbone, tmp_path):
    with pytest.raises(ValueError, match="no TAGI checkpoint; a plain language model goes in backbone.name"):
        build_settings({**further(values, first, tmp_path), "start_from": backbone})


def test_a_trained_backbone_is_refused(values, first, tmp_path):
    settings = {**values, "output_dir": str(tmp_path / "all"), "finetuning": {**values["finetuning"], "train": "all"}}
    run_experiment(build_settings(settings))
    with pytest.raises(ValueError, match="whose backbone was trained with its generator"):
        build_settings(further(values, f"{tmp_path}/all/model", tmp_path))


def test_another_backbone_is_refused_before_the_first_step(values, first, tmp_path, make_backbone, tokenizer):
    make_backbone("t5", seed=3).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    settings = {**further(values, first, tmp_path), "backbone": {"name": str(tmp_path / "other")}}
    with pytest.raises(ValueError, match="was made for a backbone with the SHA-256"):
        run_experiment(build_settings(settings))


def test_a_yaml_file_says_it(values, first, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(further(values, first, tmp_path)))
    assert load_settings(tmp_path / "mine.yaml").start_from == first
