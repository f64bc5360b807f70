import copy
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from transformers import T5ForConditionalGeneration

from modeling_tagi.commands.scored_data import settings_of
from modeling_tagi.common.folder_lock import alone_in
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.evaluation.checkpoint_scores import evaluate_checkpoint
from modeling_tagi.evaluation.evaluated_data import read_splits
from modeling_tagi.tokens import prompt_text
from modeling_tagi.training.run import SETTINGS_FILE


def options(**fields):
    defaults = {
        "path": None, "source": None, "t0_eval": None, "options": [], "splits": None, "max_records": None,
        "batch_size": 8, "no_rank": False, "references": ["start_prompted"], "task_adapters": None, "oracle": [],
        "max_input_length": 64, "max_target_length": 4, "seed": 0, "output_dir": None,
    }  # fmt: skip
    return Namespace(**{**defaults, **{name: str(x) if name == "path" else x for name, x in fields.items()}})


def records(task, number=3, **fields):
    return [Record(task, f"say {task}", f"{task} {n}", (f"{n}",), **fields) for n in range(number)]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    for split in ("first", "second"):
        write_table(records(split), place / f"{split}.jsonl")
    return place


def test_without_a_train_split_every_file_is_a_split_and_nothing_is_checked(folder):
    splits, train, leaks = read_splits(settings_of(options(path=folder)))
    assert splits == {"first": records("first"), "second": records("second")}
    assert train == [] and leaks is None


def test_a_train_split_is_checked_with_and_not_scored(folder):
    write_table(records("trained"), folder / "train.jsonl")
    splits, train, leaks = read_splits(settings_of(options(path=folder)))
    assert list(splits) == ["first", "second"] and train == records("trained") and leaks["leaks"] == 0
    write_table(records("first"), folder / "train.jsonl")
    with pytest.raises(ValueError, match="evaluation splits share with 'train' what should be new"):
        read_splits(settings_of(options(path=folder)))


def test_a_file_is_a_split_of_its_name(folder):
    splits, _, _ = read_splits(settings_of(options(path=folder / "second.jsonl")))
    assert splits == {"second": records("second")}
    write_table(records("trained"), folder / "train.jsonl")
    splits, train, _ = read_splits(settings_of(options(path=folder / "train.jsonl")))
    assert splits == {"evaluation": records("trained")} and train == []


def test_columns_may_have_other_names(tmp_path):
    text = '{"task": "t", "prompt": "say it", "input": "x", "targets": "y"}\n'
    (tmp_path / "mine.jsonl").write_text(text)
    named = options(path=tmp_path / "mine.jsonl", options=[("columns", {"instruction": "prompt"})])
    splits, _, _ = read_splits(settings_of(named))
    assert splits == {"mine": [Record("t", "say it", "x", ("y",))]}


def test_two_files_of_one_split_are_refused(folder):
    (folder / "first.json").write_text("[]")
    with pytest.raises(ValueError, match="has first.json and first.jsonl for one split; remove one of them"):
        read_splits(settings_of(options(path=folder)))


def test_the_built_in_tasks_need_no_folder():
    made = options(path="builtin", options=[("train_instances", 2), ("eval_instances", 1)])
    splits, train, leaks = read_splits(settings_of(made))
    assert set(splits) == {"dev", "unseen", "new_wordings"} and train and leaks["leaks"] == 0


def test_a_training_runs_folder_is_left_alone(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / SETTINGS_FILE).write_text("seed: 0\n")
    with pytest.raises(ValueError, match="--output_dir: .*run holds a training run .*; choose another folder"):
        settings_of(options(path=folder, output_dir=str(run)))


@pytest.fixture(scope="module")
def checkpoint(make_model, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint")
    model = make_model("t5", max_instruction_length=32)
    model.tokenizer = tokenizer
    model.save_pretrained(place / "model")
    model.backbone.save_pretrained(place / "same")
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(-1)
    model.backbone.save_pretrained(place / "other")
    for name in ("same", "other"):
        tokenizer.save_pretrained(place / name)
    return place


def test_a_baseline_may_be_the_checkpoints_own_or_another(checkpoint, tokenizer, tmp_path):
    # right answers are those of the backbone called "same"
    backbone = T5ForConditionalGeneration.from_pretrained(checkpoint / "same")
    asked = records("first") + records("second")
    prompts = tokenizer([prompt_text(r.instruction, r.input) for r in asked], return_tensors="pt", padding=True)
    output = backbone.generate(**prompts, max_new_tokens=4, do_sample=False)
    answers = [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    # random weights may have nothing to say
    mine = [replace(r, targets=(answer,)) for r, answer in zip(asked, answers) if answer]
    assert mine
    write_table(mine, tmp_path / "mine.jsonl")
    settings = settings_of(options(path=tmp_path / "mine.jsonl"))
    found = {
        name: evaluate_checkpoint(str(checkpoint / "model"), settings, name and str(checkpoint / name))
        for name in (None, "same", "other", "model")
    }
    methods = {name: results["splits"]["mine"]["methods"] for name, results in found.items()}
    right = {name: scores["start_prompted"]["rouge_l"] for name, scores in methods.items()}
    assert right == {None: 100, "same": 100, "other": right["other"], "model": 100} and right["other"] < 100
    assert all(scores["tagi"] == methods[None]["tagi"] for scores in methods.values())
    assert found[None]["baseline"] == "the checkpoint's own backbone"
    assert found["other"]["baseline"] == str(checkpoint / "other")


def test_an_instruction_that_cannot_be_read_whole_is_refused(checkpoint, tmp_path):
    write_table([Record("long", "say " * 20, "x", ("y",))], tmp_path / "long.jsonl")
    settings = settings_of(options(path=tmp_path / "long.jsonl", output_dir=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="an instruction of task 'long' has .* but this checkpoint reads at most 32"):
        evaluate_checkpoint(str(checkpoint / "model"), settings)
    assert not (tmp_path / "out").exists()


def test_the_stock_backbone_of_a_chat_checkpoint_is_asked_in_a_chat_too(
    folder, make_model, tokenizer, tmp_path, monkeypatch
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    model = make_model("llama", "none", input_format="chat")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "chat")
    model.backbone.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    formats = []
    monkeypatch.setattr(
        "modeling_tagi.evaluation.checkpoint_scores.score_methods",
        lambda own, start, *others: formats.extend([own.tokens.input_format, start.tokens.input_format]) or {},
    )
    evaluate_checkpoint(str(tmp_path / "chat"), settings_of(options(path=folder)), str(tmp_path / "stock"))
    assert formats == ["chat", "chat"]


def test_two_evaluations_do_not_work_in_one_folder(folder, tmp_path):
    settings = settings_of(options(path=folder, output_dir=str(tmp_path / "scores")))
    with alone_in(tmp_path / "scores"):
        with pytest.raises(ValueError, match="another process is at work in .*scores; wait, or choose another"):
            evaluate_checkpoint("no/model", settings)
