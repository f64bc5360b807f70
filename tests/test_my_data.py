"""The way of a new user with data of their own: the recipe, its report and results, and the adapter from the shell."""

import io
import json
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout

import jsonschema
import pytest
import torch
import yaml
from tiny import WORDS

from modeling_tagi import TagiModel
from modeling_tagi.commands.main import main
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.evaluation.results import EXAMPLES, SCHEMA, chosen_examples
from modeling_tagi.training.recipes import FOLDER

FILLED = ("backbone.name", "data.path", "output_dir")
SHORT = {
    "task_adapters.steps": 1, "finetuning.steps": 2, "max_input_length": 48, "max_target_length": 8, "tagi.r": 2,
    "tagi.generator_hidden_size": 8, "evaluation.references": "[start_prompted, no_instruction]",
}  # fmt: skip
EMOJI = "say <b>the</b> 🍎"


def tables(folder):
    tasks = {"train": ["first a", "first b", "first c", "first d"], "unseen": [EMOJI, "last", "third"]}
    for split, instructions in tasks.items():
        records = [
            Record(text, text, " ".join([WORDS[(n + k) % 12] for k in range(3)] + [split]), (WORDS[n % 12],))
            for text in instructions for n in range(6)
        ]  # fmt: skip
        write_table(records, folder / f"{split}.jsonl")


@pytest.fixture(scope="module")
def trained(make_backbone, tokenizer, tmp_path_factory):
    """The folder of a run by my-data.yaml with its three fields filled in, and what it printed."""
    place = tmp_path_factory.mktemp("mine")
    (place / "data").mkdir()
    tables(place / "data")
    make_backbone("t5_v1_1").save_pretrained(place / "backbone")
    tokenizer.save_pretrained(place / "backbone")
    recipe = yaml.safe_load((FOLDER / "my-data.yaml").read_text())
    recipe["backbone"]["name"], recipe["data"]["path"] = str(place / "backbone"), str(place / "data")
    recipe["output_dir"] = str(place / "run")
    (place / "my-data.yaml").write_text(yaml.safe_dump(recipe))
    short = [text for name, value in SHORT.items() for text in (f"--{name}", str(value))]
    said, noise = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(noise), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert main(["train", str(place / "my-data.yaml"), *short]) == 0, noise.getvalue()
    return place / "run", said.getvalue(), [str(one.message) for one in warned]


def test_the_recipe_has_three_fields_to_fill_and_asks_for_nothing_of_the_built_in_suite():
    recipe = yaml.safe_load((FOLDER / "my-data.yaml").read_text())
    assert recipe["backbone"].keys() == {"name"} and recipe["data"] == {"source": "tables", "path": "my-data"}
    assert recipe["output_dir"] == "outputs/my-data" and recipe["pretraining"]["steps"] == 0
    assert not {"text", "instruction_tuning", "train_tasks"} & recipe.keys() and "splits" not in recipe["evaluation"]


def test_data_that_are_not_there_are_told_of_before_the_language_model_is_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "my-data", "--backbone.name", "nowhere/at/all"]) == 2
    said = "tagi train: data.path: there is no my-data; give its place by --data.path FOLDER\n"
    assert capsys.readouterr().err == said and not list(tmp_path.iterdir())


def test_it_trains_on_tables(trained):
    folder, said, _ = trained
    assert list(json.loads((folder / "results.json").read_text())["splits"]) == ["unseen"]
    assert (folder / "model" / "model.safetensors").is_file()


def test_stages_end_with_their_loss_and_evaluation_with_its_result(trained):
    folder, said, _ = trained
    results = json.loads((folder / "results.json").read_text())
    ends = [line for line in said.splitlines() if ": done in" in line]
    losses = results["run"]["losses"]
    assert [line.partition(" s, ")[2] for line in ends[:2]] == [
        f"loss {losses[name]:.2f}" for name in ("task_adapters", "finetuning")
    ]
    low, high = results["splits"]["unseen"]["methods"]["tagi"]["exact_match_interval"]
    assert re.search(r"done in \d+ s, tagi on unseen: exact match \d", ends[2])
    assert f"[{low:.1f}, {high:.1f}]" in ends[2]


def test_results_are_as_their_schema_says(trained):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    results = json.loads((trained[0] / "results.json").read_text())
    jsonschema.validate(results, schema)
    assert set(results) <= set(schema["properties"]), "a field that the schema does not know"
    described = schema["$defs"]
    split = results["splits"]["unseen"]
    assert set(split) <= set(described["split"]["properties"])
    for method in split["methods"].values():
        assert set(method) <= set(described["method"]["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**results, "schema_version": 1}, schema)


def test_the_report_shows_ten_examples_with_every_methods_output(trained):
    folder, _, warned = trained
    examples = json.loads((folder / "results.json").read_text())["splits"]["unseen"]["examples"]
    assert len(examples) == EXAMPLES == 10 and {one["task"] for one in examples} == {EMOJI, "last", "third"}
    assert all(set(one["outputs"]) == {"tagi", "start_prompted", "no_instruction"} for one in examples)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert ">Examples<" in page and "say &lt;b&gt;the&lt;/b&gt; 🍎" in page and EMOJI not in page
    for one in examples:
        assert one["input"] in page
    assert not [text for text in warned if "Glyph" in text]  # the plots have the name of the task, too


def test_examples_are_spread_over_the_tasks():
    many = [Record(f"task {n // 3}", "say", str(n), ("x",)) for n in range(90)]
    assert chosen_examples(many) == list(range(0, 90, 9))
    assert chosen_examples(many[:6]) == list(range(6))
    assert [many[n].task for n in chosen_examples(many[:12])].count("task 0") == 3


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "made"
    assert main(["generate", str(trained[0] / "model"), EMOJI, "--output_dir", str(folder)]) == 0
    return folder


def test_a_saved_adapter_answers_from_the_shell_as_its_instruction_does(trained, adapter, capsys):
    checkpoint, rest = str(trained[0] / "model"), ["red green", "blue one", "--max_new_tokens", "5"]
    assert main(["run", checkpoint, EMOJI, *rest]) == 0
    expected = capsys.readouterr().out
    assert main(["run", checkpoint, "--adapter", str(adapter), *rest]) == 0
    assert capsys.readouterr().out == expected
    assert main(["run", checkpoint, *rest, "--adapter", str(adapter)]) == 0
    assert capsys.readouterr().out == expected


def test_what_is_wrong_with_an_adapter_is_one_line(trained, adapter, make_model, tokenizer, tmp_path, capsys):
    checkpoint = str(trained[0] / "model")
    assert main(["run", checkpoint, "--adapter", str(tmp_path / "none"), "red"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi run: ") and "none" in line
    other = make_model("llama")
    other.tokenizer = tokenizer
    other.save_pretrained(tmp_path / "other")
    capsys.readouterr()
    assert main(["run", str(tmp_path / "other"), "--adapter", str(adapter), "red"]) == 2
    assert "the adapter was made for the backbone" in capsys.readouterr().err.splitlines()[-1]
    for arguments, why in (
        ([checkpoint], "there is no instruction; give one after the checkpoint, or --adapter FOLDER"),
        ([checkpoint, "--adapter", str(adapter), "red", "--demonstration", "a", "b"], "--demonstration belongs to an"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["run", *arguments])
        assert ended.value.code == 2 and why in capsys.readouterr().err


def test_the_generators_backbone_is_the_users(trained):
    model = TagiModel.from_pretrained(trained[0] / "model")
    assert not model.config.backbone_trained
    assert model.config.backbone_name_or_path is None  # a folder's, which a checkpoint with its backbone does not tell
    assert all(torch.isfinite(x).all() for x in model.parameters())
