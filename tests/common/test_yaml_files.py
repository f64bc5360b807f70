import pytest

from modeling_tagi.common.yaml_files import joined, read_recipe, read_yaml
from modeling_tagi.studies.cells import cells
from modeling_tagi.studies.settings import load_study
from modeling_tagi.training.settings import load_settings


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{next(iter(files))}.yaml"

    return write


def test_a_recipe_is_its_base_with_its_own_fields_on_top(write):
    path = write(
        mine="base: theirs.yaml\nseed: 2\nfinetuning: {steps: 5}\n",
        theirs="base: first.yaml\nseed: 1\nfinetuning: {steps: 4, learning_rate: 0.1}\n",
        first="bf16: true\nfinetuning: {tasks_per_batch: 7, steps: 3}\n",
    )
    finetuning = {"steps": 5, "learning_rate": 0.1, "tasks_per_batch": 7}
    assert read_recipe(path) == {"bf16": True, "seed": 2, "finetuning": finetuning}
    assert read_yaml(path)["base"] == "theirs.yaml"


def test_a_list_or_a_null_takes_the_place_of_what_was_there():
    below = {"splits": [1, 2], "options": {"a": 1}, "kept": {"b": 2}}
    assert joined(below, {"splits": [3], "options": None}) == {"splits": [3], "options": None, "kept": {"b": 2}}
    assert below == {"splits": [1, 2], "options": {"a": 1}, "kept": {"b": 2}}


def test_a_base_is_seen_from_the_file_that_names_it(write, tmp_path, monkeypatch):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "mine.yaml").write_text("base: ../theirs.yaml\nseed: 2\n")
    write(theirs="base: first.yaml\n", first="label: far\n")
    monkeypatch.chdir("/")
    assert read_recipe(tmp_path / "deeper" / "mine.yaml") == {"label": "far", "seed": 2}


def test_settings_come_from_the_whole_chain_and_the_folder_from_the_file_itself(write):
    path = write(mine="base: theirs.yaml\n", theirs="seed: 4\ntagi: {r: 3}\n")
    settings = load_settings(path, {"tagi.lora_alpha": "5"})
    assert (settings.seed, settings.tagi, settings.output_dir) == (4, {"r": 3, "lora_alpha": 5}, "outputs/mine")


def test_a_study_runs_a_configuration_that_has_a_base(write):
    steps = "text: {steps: 1}\nbackbone: {config: {model_type: t5}}\n"
    path = write(study="config: mine.yaml\nmethods: [prompted]\n", mine="base: theirs.yaml\n", theirs=steps)
    assert cells(load_study(path))[-1].settings.backbone.config == {"model_type": "t5"}


@pytest.mark.parametrize("files, message", [
    ({"mine": "base: mine.yaml\n"}, r"its own base \(mine.yaml -> mine.yaml\); take the line `base: mine.yaml` out"),
    ({"mine": "base: b.yaml\n", "b": "base: c.yaml\n", "c": "base: ./b.yaml\n"},
     r"its own base \(mine.yaml -> b.yaml -> c.yaml -> b.yaml\)"),
    ({"mine": "base: [a.yaml, b.yaml]\n"}, r"base is \['a.yaml', 'b.yaml'\], but must be the name of one YAML file"),
    ({"mine": "base: b.yaml\n", "b": "- 1\n"}, "b.yaml holds a list, but must hold fields"),
])  # fmt: skip
def test_a_base_that_cannot_be_is_refused(write, files, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(write(**files))


def test_a_missing_base_is_named_with_the_file_that_names_it(write):
    path = write(mine="base: b.yaml\n", b="base: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match="b.yaml names the base nowhere.yaml, but there is no /"):
        read_recipe(path)


def test_a_study_itself_has_no_base(write):
    path = write(study="base: other.yaml\nconfig: mine.yaml\n", other="seeds: [1]\n", mine="")
    with pytest.raises(ValueError, match="unknown field 'base'"):
        load_study(path)


def test_a_backbone_of_another_type_keeps_nothing_of_the_bases(write):
    path = write(
        mine="base: theirs.yaml\nbackbone: {config: {model_type: llama, hidden_size: 8}}\n",
        theirs="backbone: {vocab_size: 50, config: {model_type: t5, d_model: 4}}\n",
    )
    assert read_recipe(path)["backbone"] == {"vocab_size": 50, "config": {"model_type": "llama", "hidden_size": 8}}
