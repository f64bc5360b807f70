import os
from pathlib import Path

import pytest
import yaml

from modeling_tagi.common.methods import METHODS
from modeling_tagi.studies.cells import cells
from modeling_tagi.studies.settings import START, TAGI_REFERENCES, load_study
from modeling_tagi.training.settings import build_settings

QUICKSTART = Path(__file__).parents[2] / "hub_configs" / "quickstart.yaml"


@pytest.fixture
def study(tmp_path):
    def make(**fields):
        values = {"config": str(QUICKSTART), "output_dir": str(tmp_path / "study"), **fields}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        return load_study(tmp_path / "study.yaml")

    return make


def by_name(study):
    return {cell.name: cell for cell in cells(study)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_run_with_settings_of_its_own(method):
    values = yaml.safe_load(QUICKSTART.read_text())
    settings = build_settings(values, {"method": method})
    assert (settings == build_settings(values)) == (method == "tagi")


def test_hint_is_concatenation_with_pretraining_and_without_a_teacher():
    settings = build_settings(yaml.safe_load(QUICKSTART.read_text()), {"method": "hint"})
    assert settings.tagi["fusion"] == "concat" and settings.pretraining.steps
    assert not settings.finetuning.needs_teacher and not settings.task_adapters.steps


def test_a_field_given_beside_the_method_comes_after_it():
    settings = build_settings({"backbone": {"name": "x"}}, {"tagi.fusion": "cross_attention", "method": "hint"})
    assert settings.tagi == {"fusion": "cross_attention"}


def test_a_grid_is_methods_times_seeds_times_tasks(study):
    found = by_name(study(methods=["prompted", "tagi"], seeds=[0, 1], train_tasks=[None, 50]))
    assert sorted(name for name in found if not name.startswith(START)) == sorted(
        f"{method}-seed{s}{tasks}" for method in ("prompted", "tagi") for s in (0, 1) for tasks in ("", "-tasks50")
    )
    assert found["tagi-seed1-tasks50"].settings.train_tasks == 50 and found["tagi-seed1-tasks50"].settings.seed == 1


def test_methods_share_the_start_of_their_seed(study):
    found = by_name(study(methods=["prompted", "hint", "tagi"], seeds=[0, 1]))
    assert {cell.after for cell in found.values() if cell.after} == {f"{START}-seed0", f"{START}-seed1"}
    start, tagi, hint = (found[name] for name in (f"{START}-seed1", "tagi-seed1", "hint-seed1"))
    folder = Path(start.settings.output_dir)
    assert not start.settings.finetuning.steps and start.settings.instruction_tuning.steps
    assert start.settings.task_adapters.steps
    for cell in (tagi, hint):
        assert cell.settings.backbone.name == str(folder / "stages" / "instruction_tuning" / "backbone")
        assert not cell.settings.text.steps and not cell.settings.instruction_tuning.steps
    assert tagi.settings.task_adapters.given == str(folder / "task_adapters")
    assert hint.settings.task_adapters.given is None


def test_a_method_with_another_backbone_gets_a_start_of_its_own(study):
    found = by_name(study(methods=["tagi", {"taught_longer": {"base": "tagi", "instruction_tuning.steps": 9}}]))
    assert found["tagi-seed0"].after != found["taught_longer-seed0"].after
    assert found[found["taught_longer-seed0"].after].settings.instruction_tuning.steps == 9


def test_a_start_of_a_methods_own_has_a_name_of_its_own_and_no_references(study):
    found = by_name(study(methods=["tagi", {"taught_longer": {"base": "tagi", "instruction_tuning.steps": 9}}]))
    other = found[found["taught_longer-seed0"].after]
    assert other.method == f"{START}-2" and other.settings.evaluation.references == ["start_prompted"]


def test_without_a_method_called_tagi_the_first_that_is_has_the_wrong_instructions(study):
    found = by_name(study(methods=["hint", {"mine": {"base": "tagi", "tagi.r": 2}}]))
    assert found["mine-seed0"].settings.evaluation.references == list(TAGI_REFERENCES)
    assert found["mine-seed0"].settings.label == "mine"


def test_a_method_of_ones_own_has_its_fields(study):
    found = by_name(study(methods=[{"strong": {"base": "tagi", "finetuning.distillation_weight": 7}}]))
    assert found["strong-seed0"].settings.finetuning.distillation_weight == 7


def test_a_further_grid_adds_cells_and_repeats_none(study):
    found = cells(study(methods=["tagi"], also=[{"methods": ["tagi"], "train_tasks": [None, 50]}]))
    assert sorted(cell.name for cell in found if cell.method == "tagi") == ["tagi-seed0", "tagi-seed0-tasks50"]


def test_references_are_scored_once(study):
    found = by_name(study(methods=["hint", "tagi"]))
    assert found[f"{START}-seed0"].settings.evaluation.references == [
        "start_prompted", "no_instruction", "nearest_adapter", "oracle"
    ]  # fmt: skip
    assert found["tagi-seed0"].settings.evaluation.references == list(TAGI_REFERENCES)
    assert found["hint-seed0"].settings.evaluation.references == []


def test_a_start_comes_before_what_needs_it(study):
    order = [cell.name for cell in cells(study(methods=["tagi", "hint"], seeds=[0, 1]))]
    for cell in cells(study(methods=["tagi", "hint"], seeds=[0, 1])):
        assert cell.after is None or order.index(cell.after) < order.index(cell.name)


@pytest.mark.parametrize("fields, message", [
    ({"methds": ["tagi"]}, "unknown field 'methds'; did you mean 'methods'"),
    ({"methods": ["tagy"]}, "method 'tagy' must be one of prompted, input_only"),
    ({"methods": [{"mine": {"base": "tagi", "finetuning.stps": 1}}]}, "finetuning.stps; did you mean"),
    ({"config": "nowhere.yaml"}, "there is no configuration"),
    ({"workers": 0}, "workers is 0"),
    ({"references": ["oracel"]}, "references has 'oracel'"),
    ({"also": [{"method": ["tagi"]}]}, "must hold fields of methods, seeds, train_tasks"),
    ({"methods": ["tagi", {"tagi": {"base": "hint"}}]}, "tagi-seed0 twice"),
    ({"methods": [{"mine": {"base": "tagi", "tagi.fusion": "crosattention"}}]}, "fusion is 'crosattention'"),
    ({"methods": [{"oracle": {"base": "tagi"}}]}, "'oracle', which is a reference's name"),
    ({"seeds": 3}, "seeds is 3, but must be a list of int"),
    ({"train_tasks": 60}, "train_tasks is 60, but must be a list of int or null"),
    ({"overrides": ["x"]}, "overrides is .'x'., but must be a dict"),
])  # fmt: skip
def test_a_study_that_makes_no_sense_is_refused(study, fields, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cells(study(**fields))


@pytest.mark.parametrize("name", ["../../x", "/abs", "x" * 300, "a\0b", ".", "..", "a/b"])
def test_no_name_of_a_method_leaves_the_studys_folder(name, tmp_path, study):
    found = cells(study(methods=[{name: {"base": "tagi"}}, "tagi"], output_dir=str(tmp_path / "out")))
    assert [cell.method for cell in found] == ["start_prompted", name, "tagi"]
    for cell in found:
        assert Path(os.path.normpath(cell.settings.output_dir)).parent == tmp_path / "out" / "cells"
        assert len(cell.name) < 120 and cell.name.isprintable()


def test_a_study_takes_from_its_configuration_what_it_does_not_set_itself(tmp_path, study):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"base": str(QUICKSTART), "train_tasks": 50, "seed": 3}))
    found = cells(study(config=str(recipe), methods=["tagi"], also=[{"methods": ["hint"], "train_tasks": [None, 7]}]))
    assert [cell.name for cell in found if cell.method != "start_prompted"] == [
        "tagi-seed3-tasks50", "hint-seed3", "hint-seed3-tasks7"
    ]  # fmt: skip
    assert {cell.settings.train_tasks for cell in found} == {50, None, 7}
