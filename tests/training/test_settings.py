from pathlib import Path

import pytest

from modeling_tagi.studies.cells import cells
from modeling_tagi.studies.settings import load_study
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.setting_fields import RENAMED, RunSettings
from modeling_tagi.training.settings import load_settings

CONFIGS = Path(__file__).parents[2] / "hub_configs"
EVERY = sorted({file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.y*ml")}
               - {file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("accelerate/*")})  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def load(text, **overrides):
        (tmp_path / "mine.yaml").write_text(text)
        return load_settings(tmp_path / "mine.yaml", {name.replace("__", "."): v for name, v in overrides.items()})

    return load


@pytest.mark.parametrize("name", EVERY)
def test_every_config_that_comes_along_loads(name):
    if name.startswith("studies/"):
        assert cells(load_study(CONFIGS / name))
        return
    settings = load_settings(CONFIGS / name)
    assert isinstance(settings, RunSettings) and settings.output_dir == f"outputs/{Path(name).stem}"


def test_the_default_config_is_there():
    assert "quickstart.yaml" in EVERY


def test_the_defaults_are_the_papers(load):
    assert Objective() == Objective(1.0, 5.0, 3.0, "factors", "sigmoid") == Objective.of(load("").finetuning)
    assert load("").finetuning.learning_rate == 1e-4


def test_overrides_reach_nested_fields(load):
    text = "seed: 3\nfinetuning:\n  temperature: 2\n  distillation_weight: 0\n  alignment: none\n"
    overrides = {"finetuning__steps": "7", "tagi__r": "4", "data__source": "p3", "data__options__seed": "2",
                 "evaluation__splits": "[a, b]", "backbone__name": "null", "bf16": "true"}
    settings = load(text, **overrides)
    assert (settings.seed, settings.finetuning.temperature, settings.finetuning.steps) == (3, 2.0, 7)
    assert settings.tagi == {"r": 4} and settings.data.options == {"seed": 2} and settings.data.source == "p3"
    assert settings.evaluation.splits == ["a", "b"] and settings.backbone.name is None and settings.bf16 is True


def test_a_section_without_fields_can_be_overridden(load):
    assert load("text:\ntagi: {}\n", text__steps="5").text.steps == 5


def test_the_output_folder_is_named_after_the_config(load):
    assert load("").output_dir == "outputs/mine"
    assert load("output_dir: elsewhere").output_dir == "elsewhere"


def test_a_number_written_as_text_is_a_number(load):
    settings = load("text:\n  learning_rate: 1e-4\nfinetuning:\n  alignment_weight: 5e-1\n")
    assert settings.text.learning_rate == 1e-4 and settings.finetuning.alignment_weight == 0.5
    assert load("", finetuning__alignment_weight="sigmoid_detached").finetuning.alignment_weight == "sigmoid_detached"
    assert isinstance(load("finetuning:\n  temperature: 3\n").finetuning.temperature, float)


@pytest.mark.parametrize("text, message", [
    ("finetuning:\n  step: 3\n", r"unknown field finetuning.step; did you mean finetuning.steps\?"),
    ("sed: 3\n", r"unknown field sed; did you mean seed\?"),
    ("alignment: none\n", r"unknown field alignment; did you mean finetuning.alignment\?"),
    ("{config: quickstart.yaml, methods: [tagi]}\n", "is a study of several runs; start it with: tagi study"),
    ("zzz: 3\n", "unknown field zzz; the fields are output_dir, label, seed"),
    ("seed: one\n", "seed is 'one', but must be of type int"),
    ("seed: true\n", "seed is True, but must be of type int"),
    ("seed: 1.5\n", "seed is 1.5, but must be of type int"),
    ("bf16: 1\n", "bf16 is 1, but must be of type bool"),
    ("text:\n  learning_rate: fast\n", "text.learning_rate is 'fast', but must be of type float"),
    ("evaluation:\n  max_records: many\n", "evaluation.max_records is 'many', but must be of type int or null"),
    ("data: builtin\n", "data is 'builtin', but must hold fields: source, path"),
    ("text:\n  steps: -1\n", "text.steps is -1, but must be 0 or more"),
    ("text:\n  batch_size: 0\n", "text.batch_size is 0, but must be 1 or more"),
    ("finetuning:\n  tasks_per_batch: 0\n", "finetuning.tasks_per_batch is 0, but must be 1 or more"),
    ("finetuning:\n  train: everything\n", "finetuning.train is 'everything'.*'generator_and_norms'"),
    ("finetuning:\n  alignment: factor\n", "alignment is 'factor', but must be one of 'factors', 'delta'"),
    ("finetuning:\n  alignment_weight: sigmod\n", "alignment_weight is 'sigmod'"),
    ("finetuning:\n  temperature: 0\n", "temperature is 0.0, but must be above 0"),
    ("task_adapters:\n  by: category\n", "task_adapters.by is 'category', but must be one of 'group', 'task'"),
    ("finetuning:\n  learning_rate: -1\n", "finetuning.learning_rate is -1.0, but must be from 0 to 10"),
    ("finetuning:\n  learning_rate: .nan\n", "finetuning.learning_rate is nan, but must be a finite number"),
    ("finetuning:\n  learning_rate: .inf\n", "finetuning.learning_rate is inf, but must be a finite number"),
    ("finetuning:\n  learning_rate: 1e30\n", r"finetuning.learning_rate is 1e\+30, but must be from 0 to 10"),
    ("evaluation:\n  oracle: {learning_rate: 1e30}\n", "evaluation.oracle.learning_rate is 1e.30, but must be from"),
    ("text:\n  warmup: 2\n", "text.warmup is 2.0, but must be from 0 to 1"),
    ("text:\n  weight_decay: 1e9\n", "text.weight_decay is 1000000000.0, but must be from 0 to 1"),
    ("text:\n  weight_decay: -1\n", "text.weight_decay is -1.0, but must be from 0 to 1"),
    ("text:\n  max_grad_norm: -1\n", "text.max_grad_norm is -1.0, but must be 0 or more"),
    ("text:\n  max_length: 2\n", "text.max_length is 2, but must be 3 or more"),
    ("max_input_length: 0\n", "max_input_length is 0, but must be 1 or more"),
    ("max_target_length: -1\n", "max_target_length is -1, but must be 2 or more"),
    ("seed: -1\n", "seed is -1, but must be from 0 to 4294967295"),
    ("seed: 4294967296\n", "seed is 4294967296, but must be from 0 to 4294967295"),
    ("backbone:\n  embedding_std: -1\n", "backbone.embedding_std is -1.0, but must be from 0 to 10"),
    ("finetuning:\n  distillation_weight: -5\n", "finetuning.distillation_weight is -5.0, but must be from 0 to 1000"),
    ("finetuning:\n  alignment_weight: .nan\n", "finetuning.alignment_weight is nan, but must be a finite number"),
    ("evaluation:\n  every: -1\n", "evaluation.every is -1, but must be 0 or more"),
    ("text:\n  schedule: zigzag\n", "text.schedule is 'zigzag', but must be one of 'linear', 'cosine'"),
    ("text:\n  schedule: reduce_lr_on_plateau\n", "text.schedule is 'reduce_lr_on_plateau', but must be one of"),
    ("text:\n  optimizer: sgdd\n", "text.optimizer is 'sgdd', but must be one of 'adamw_torch'.*'sgd'"),
    ("seed: 1\nseed: 2\n", "mine.yaml is not YAML: line 2, column 1: 'seed' is given twice, first in line 1"),
    ("text: {steps: 1, steps: 2}\n", "line 1, column 18: 'steps' is given twice, first in line 1"),
    ("seed: 1\ntext: [1, 2\nlabel: x\n", r"mine.yaml is not YAML: line \d, column \d: "),
    ("[" * 3000, "mine.yaml is not YAML: it is nested too deeply"),
    ("- a\n- b\n", "holds a list, but must hold fields"),
    ("a: [1, 2\n", "mine.yaml is not YAML"),
])
def test_a_config_that_makes_no_sense_is_refused_by_field(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


@pytest.mark.parametrize("overrides, message", [
    ({"finetuning__stepz": "3"}, r"unknown field finetuning.stepz; did you mean finetuning.steps\?"),
    ({"seed__x": "3"}, "--seed.x: 'seed' has no fields of its own"),
    ({"data__options": "{a: 1, a: 2}"}, "--data.options is .* which is not YAML .*'a' is given twice"),
    ({"finetuning__learning_rate": "-1"}, "finetuning.learning_rate is -1.0, but must be from 0 to 10"),
    ({"evaluation__splits": "[a"}, r"--evaluation.splits is '\[a', which is not YAML"),
])
def test_an_override_that_makes_no_sense_is_refused(load, overrides, message):
    with pytest.raises(ValueError, match=message):
        load("seed: 1\n", **overrides)


def test_a_config_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("seed: 1\nlabel: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml is not YAML: line 2 is not UTF-8 .*; save it as UTF-8"):
        load_settings(tmp_path / "latin.yaml")


def test_a_merge_key_still_joins_fields(load):
    settings = load("text: &stage {steps: 4, max_length: 9}\npretraining: {<<: *stage, steps: 5}\n")
    assert (settings.pretraining.steps, settings.pretraining.max_length) == (5, 9)


def test_distillation_and_alignment_need_task_adapters(load):
    with pytest.raises(ValueError, match="there are no task adapters: give task_adapters.steps"):
        load("finetuning:\n  steps: 10\n")
    for mended in ("task_adapters:\n  steps: 5\n", "task_adapters:\n  given: somewhere\n"):
        assert load(f"finetuning:\n  steps: 10\n{mended}").finetuning.needs_teacher
    without = load("finetuning:\n  steps: 10\n  distillation_weight: 0\n  alignment: none\n")
    assert not without.finetuning.needs_teacher


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration .*nowhere.yaml; see hub_configs/"):
        load_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text, message", [
    ("finetuning: {reads: prompt, distillation_weight: 0, alignment: none}", "train is 'generator': set it to all"),
    ("finetuning: {reads: input, train: all, losses: {update_norm: 1}, distillation_weight: 0, alignment: none}",
     "set finetuning.losses to {}"),
    ("finetuning: {losses: {norm: 1}}", "losses has 'norm', but knows 'update_norm'"),
    ("finetuning: {teacher_cache: top_k}", "teacher_cache is 'top_k', but must be 'states', a number of tokens"),
    ("finetuning: {teacher_cache: 0}", "teacher_cache is 0, but must be 'states', a number of tokens"),
    ("data: {source: p3, streaming: true}", "data.streaming is True, but must be of type int or null"),
    ("data: {source: p3, streaming: 0}", "data.streaming is 0, but must be 1 or more"),
    ("finetuning: {steps: 9, prediction_weight: 0, distillation_steps: 5, alignment: none}", "no loss left before"),
    ("finetuning: {freeze: [hypernetwork]}\ntagi: {fusion: none}", "leaves nothing to train"),
    ("{data: {source: p3, streaming: 8}, finetuning: {teacher_cache: states}}", "streaming keeps only some"),
    ("tagi: {fusion: both}", "fusion is 'both', but must be one of"),
    ("evaluation: {splits: []}", "splits is \\[\\], but something must be scored"),
    ('label: "a\\nb"', "label is 'a.*b', but must be one line"),
    ("backbone: {vocab_size: 4}", "vocab_size is 4, but must be from 8 to"),
    ("backbone: {vocab_size: 3000000000}", "vocab_size is 3000000000, but must be from 8 to"),
    ("finetuning: {freeze: [fusoin]}", "freeze has 'fusoin', but knows"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_pushing_needs_a_place_and_is_left_out_of_studies(load, tmp_path):
    with pytest.raises(ValueError, match="push_every is 5, but there is nowhere to push to: give push_to_hub"):
        load("push_every: 5")
    assert load("{push_to_hub: user/one, push_every: 5, push_private: true}").push_private is True
    (tmp_path / "study.yaml").write_text("{config: mine.yaml, methods: [tagi], seeds: [0]}")
    made = cells(load_study(tmp_path / "study.yaml"))
    assert made and all(cell.settings.push_to_hub is None for cell in made)


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_a_name_of_before_is_refused_with_what_it_is_called_now(load, old, new):
    *sections, last = old.split(".")
    text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections))
    in_a_file = f"{text}{'  ' * len(sections)}{last}: null\n"
    for text, overrides in ((in_a_file, {}), ("", {old.replace(".", "__"): "1"})):
        with pytest.raises(ValueError) as error:
            load(text, **overrides)
        said = f"{old} is called {new} now" if new is not None else f"there is no {old} any more; leave it out"
        assert str(error.value).startswith(said)


def test_fields_of_a_section_of_before_are_refused_too(load):
    with pytest.raises(ValueError, match="prompted is called instruction_tuning now; rename it"):
        load("", prompted__steps="3")
