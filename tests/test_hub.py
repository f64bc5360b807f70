import errno
import json
import os
import subprocess
import sys

import pytest
from hub_stand_in import log_in
from safetensors import SafetensorError

from modeling_tagi.hub import KINDS, HubError, filling, is_repository, kind_in, naming, require_folder_for

# What a folder of each kind has; the first files are those that it has however early it was cut off.
MADE = {
    "adapter": ["adapter_config.json", "adapter_model.safetensors"],
    "checkpoint": ["config.json", "model.safetensors", "modeling_tagi.py"],
    "model": ["config.json", "model.safetensors"],
    "study": ["study.yaml", "cells/tagi-seed0/cell.yaml"],
    "run": ["settings.yaml", "stages/text/done.json", "task_adapters/index.json", "results.json"],
    "bank": ["index.json", "first/adapter_config.json"],
    "evaluation": ["results.json", "results.md", "report/index.html"],
    "report": ["index.html", "report.md"],
}  # fmt: skip
WRITTEN = [kind for kind in KINDS if kind != "model"]


def make(folder, kind):
    for name in MADE[kind]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    if kind in ("checkpoint", "model"):
        (folder / "config.json").write_text(json.dumps({"model_type": "tagi" if kind == "checkpoint" else "t5"}))
    return folder


@pytest.mark.parametrize("held", KINDS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_folder_is_refused_unless_it_holds_the_same(tmp_path, kind, held):
    folder = make(tmp_path / "taken", held)
    assert kind_in(folder) == held
    if kind == held:
        assert require_folder_for(kind, folder) == folder
        return
    with pytest.raises(ValueError, match=f"taken holds {KINDS[held][0]} .*; choose another folder") as caught:
        require_folder_for(kind, folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", WRITTEN)
def test_an_absent_or_empty_folder_takes_any(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for name in (".gitattributes", "README.md"):
        (tmp_path / "empty" / name).write_text("")
    for name in ("empty", "new", "new/below/it"):
        assert require_folder_for(kind, str(tmp_path / name)) == tmp_path / name
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", WRITTEN)
def test_no_name_no_folder_and_below_a_file_are_refused(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    for folder, message in (
        ("", "is '', which names none"),
        ("a\0b", "has a NUL in its name"),
        (tmp_path / "file", "file is a file; .* a folder"),
        (tmp_path / "loose", "loose is a link to nothing; .* a folder"),
        (tmp_path / "file" / "x" / "y", "lies below .*file, which is no folder; choose another"),
    ):
        with pytest.raises(ValueError, match=message):
            require_folder_for(kind, folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_folder_with_files_of_ones_own_is_refused(tmp_path, kind):
    for name in ("a.py", "config.json", "thesis.tex", "x.csv", "z"):
        (tmp_path / name).write_text("null")
    with pytest.raises(ValueError, match="holds a.py, config.json.* no part of .*; choose another folder"):
        require_folder_for(kind, tmp_path)


def test_a_checkpoint_goes_beside_what_a_trainer_and_a_tokenizer_left(tmp_path):
    for name in ("checkpoint-10/trainer_state.json", "runs/events", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    require_folder_for("checkpoint", tmp_path)
    with pytest.raises(ValueError, match="holds checkpoint-10, runs, tokenizer.json and 1 more"):
        require_folder_for("adapter", tmp_path)


def test_what_was_cut_off_can_be_written_again(tmp_path):
    for kind, names in {
        "adapter": ["tagi_memory.safetensors"], "bank": ["a/adapter_config.json", "b/adapter_model.safetensors"],
        "run": ["cell.yaml", "log.txt"], "study": ["cells/x/cell.yaml"], "evaluation": ["results.json"],
        "checkpoint": ["config.json", "modeling_tagi.py"],
    }.items():  # fmt: skip
        for name in names:
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / name).write_text("")
        require_folder_for(kind, tmp_path / kind)


# Names of repositories


@pytest.mark.parametrize(
    "name, good",
    [("user/name", True), ("gpt2", True), ("/home/me/model", False), ("a/b/c", False), ("", False), (None, False)],
)
def test_what_can_be_a_repository(name, good):
    assert is_repository(name) is good


def test_a_folder_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert not is_repository("runs/one")


# Files beside, then in place


def test_a_folder_is_filled_when_the_block_ends_well(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("old-1", "old-2", "mine", "last"):
        (tmp_path / "x" / name).write_text("old")
    with filling(tmp_path / "x", last="last", stale=["old-*"]) as beside:
        (beside / "old-2").write_text("new")
        (beside / "last").write_text("new")
        assert (tmp_path / "x" / "last").read_text() == "old"
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == {
        "mine": "old", "old-2": "new", "last": "new",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_stays_as_it_was_when_the_block_fails(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "last").write_text("old")
    with pytest.raises(OSError, match="full"), filling(tmp_path / "x", last="last", stale=["*"]) as beside:
        (beside / "last").write_text("half")
        raise OSError("full")
    assert (tmp_path / "x" / "last").read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_what_the_disk_says_is_said_of_the_folder(tmp_path):
    for error in (OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: No space left (os error 28)")):
        with pytest.raises(OSError) as caught, filling(tmp_path / "x", last="last"):
            raise error
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "x")
    for error in (OSError(errno.ENOENT, "gone", "file"), OSError("no number"), SafetensorError("header too small")):
        with pytest.raises(type(error)) as caught, naming("x"):
            raise error
        assert caught.value is error


def test_folders_are_refused_without_torch():
    code = "import sys, modeling_tagi.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Where each kind is written


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def writers(make_model):
    """Kind -> what writes one to a folder."""
    from modeling_tagi.banks.adapter_bank import AdapterBank
    from modeling_tagi.commands.scored_data import settings_of
    from modeling_tagi.studies.settings import StudySettings
    from modeling_tagi.studies.study import run_study
    from modeling_tagi.training.run import Run
    from modeling_tagi.training.settings import RunSettings
    from modeling_tagi.training.stages import STAGES

    model = make_model("t5", "none")
    adapter = model.generate_adapter([5, 6])

    def evaluate(folder):
        from modeling_tagi.commands.main import main

        main(["evaluate", "no-model", "--data", "builtin", "--output_dir", str(folder)])

    return {
        "adapter": adapter.save_pretrained,
        "checkpoint": model.save_pretrained,
        "study": lambda folder: run_study(StudySettings(config="nowhere.yaml", output_dir=str(folder))),
        "run": lambda folder: Run(RunSettings(output_dir=str(folder)), [], STAGES),
        "bank": lambda folder: AdapterBank(folder).add(["first"], adapter),
        "evaluation": evaluate,
    }, settings_of


@pytest.mark.parametrize("kind", ["adapter", "checkpoint", "study", "run", "bank", "evaluation"])
def test_no_kind_is_written_over_another(writers, tmp_path, capsys, kind):
    write = writers[0][kind]
    for held in KINDS:
        if held == kind:
            continue
        folder = make(tmp_path / held, held)
        before = snapshot(folder)
        with pytest.raises((ValueError, SystemExit)) as caught:
            write(folder)
        said = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
        assert "holds" in said and "choose another folder" in said and snapshot(folder) == before


@pytest.mark.parametrize("kind", ["adapter", "checkpoint", "study", "run", "evaluation"])
def test_a_folder_without_a_name_is_not_the_current_one(writers, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, SystemExit)) as caught:
        writers[0][kind]("")
    said = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert "is '', which names none" in said and not os.listdir(tmp_path)


def test_generate_refuses_a_checkpoints_folder_before_it_loads_one(tmp_path, capsys):
    from modeling_tagi.commands.main import main

    make(tmp_path / "model", "checkpoint")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "no/model", "say no", "--output_dir", str(tmp_path / "model")])
    assert ended.value.code == 2 and "holds a TAGI checkpoint (config.json)" in capsys.readouterr().err


def test_a_report_does_not_replace_a_folder_of_that_name(tmp_path, monkeypatch):
    from modeling_tagi.evaluation.report import write as report

    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="report holds thesis.tex, which is no part of a report"):
        report.write_report(tmp_path, ("title", "lead", []))
    assert (tmp_path / "report" / "thesis.tex").read_text() == "mine"


# Pushing without the package, as a checkpoint's own code does


def test_without_publishers_the_files_alone_go_up_and_stale_ones_go(make_model, hub, monkeypatch):
    monkeypatch.setattr("modeling_tagi.hub.PUBLISHERS", {})
    make_model("t5").generate_adapter([5, 6]).push_to_hub("user/adapter", private=True)
    assert hub.repositories["user/adapter"].private and "tagi_memory.safetensors" in hub.files("user/adapter")
    adapter = make_model("t5", "none").generate_adapter([5, 6])
    commit = adapter.push_to_hub("user/adapter", tag="v1", commit_message="without fusion")
    names = {"adapter_config.json", "adapter_model.safetensors", "tagi_adapter.json"}
    assert set(hub.files("user/adapter", "v1")) - {".gitattributes"} == names
    assert commit.oid == hub.revision("user/adapter", "v1")
    assert hub.repositories["user/adapter"].messages[-1] == "without fusion"
    adapter.push_to_hub("user/adapter", revision="trial")
    assert hub.revision("user/adapter", "trial") and hub.revision("user/adapter") == commit.oid


def test_without_publishers_an_error_is_one_line_too(make_model, hub, monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_tagi.hub.PUBLISHERS", {})
    log_in(hub, monkeypatch, tmp_path, token=None)
    for made in (make_model("t5", "none"), make_model("t5", "none").generate_adapter([5, 6])):
        with pytest.raises(HubError, match="^cannot push to user/one: there is no token"):
            made.push_to_hub("user/one")
