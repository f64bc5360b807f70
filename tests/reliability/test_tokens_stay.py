"""A token goes to the Hub alone: into no file that is pushed, kept or printed, and into no message."""

import json
import logging
from pathlib import Path

import hub_stand_in
import pytest
import yaml
from tiny import tiny_settings, write_tiny_data

from modeling_tagi import TagiAdapter, TagiModel, load_function
from modeling_tagi.commands.main import main, train

TOKEN = "hf_" + "TokenThatMustNotBeSeen"


@pytest.fixture
def told(hub, monkeypatch, caplog, capsys):
    """A Hub to which the process is logged in by `TOKEN`, and a function to all that was said and pushed since."""
    monkeypatch.setitem(hub_stand_in.TOKENS, TOKEN, "write")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)

    def said(*folders: Path) -> str:
        printed = "".join(capsys.readouterr())
        pushed = [content for repository in hub.repositories.values() for files in repository.commits.values()
                  for content in files.values()]  # fmt: skip
        kept = [file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()]
        messages = [text for repository in hub.repositories.values() for text in repository.messages]
        texts = b"\n".join([*pushed, *kept]).decode(errors="replace")
        return "\n".join([printed, caplog.text, texts, *messages, *hub.requests])

    said.hub = hub
    return said


@pytest.mark.slow
def test_a_run_that_is_pushed_keeps_no_token(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_data(tmp_path, unseen=["next"])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(str(tmp_path))))
    options = ["--output_dir", "run", "--push_to_hub", "user/run", "--evaluation.references", "[]"]
    assert train(["tiny.yaml", *options]) == 0
    files = {file.name for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert {"settings.yaml", "index.html", "README.md", "config.json"} <= files
    assert told.hub.files("user/run") and TOKEN not in told(tmp_path)


def test_pushes_and_loads_keep_no_token(told, make_model, tokenizer, tmp_path):
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "model")
    model.push_to_hub("user/model", token=TOKEN, private=True)
    loaded = TagiModel.from_pretrained("user/model", token=TOKEN).eval()
    adapter = loaded.generate_adapter("say it")
    adapter.push_to_hub("user/adapter", token=TOKEN)
    TagiAdapter.from_pretrained("user/adapter", token=TOKEN).save_pretrained(tmp_path / "adapter")
    loaded.function("say it").save(tmp_path / "function")
    load_function(tmp_path / "function", token=TOKEN).save(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "saved")
    for words in (["push", tmp_path / "adapter", "user/two"], ["run", "user/model", "say it", "abc", "--json"],
                  ["generate", "user/model", "say it", "--output_dir", tmp_path / "made", "--json"]):  # fmt: skip
        assert main([str(word) for word in words]) == 0
    assert TOKEN not in told(tmp_path) and TOKEN not in repr((vars(loaded).keys(), loaded.config, adapter))


def failing(hub, name):
    """Makes the Hub fail in one way."""
    if name == "refuses":
        hub_stand_in.TOKENS[TOKEN] = "read"
    elif name == "does not know the token":
        del hub_stand_in.TOKENS[TOKEN]
    else:
        hub.breaks = lambda command, path: name == "breaks off" and "whoami" not in path


@pytest.mark.parametrize("name", ["refuses", "does not know the token", "breaks off", "has no such repository"])
def test_errors_tell_no_token(told, name, make_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TAGI_TRACEBACK", "1")
    make_model("t5").save_pretrained(tmp_path / "model")
    failing(told.hub, name)
    calls = [lambda: TagiModel.from_pretrained("user/none", token=TOKEN),
             lambda: TagiModel.from_backbone("user/none", token=TOKEN),
             lambda: TagiAdapter.from_pretrained("user/none", token=TOKEN)]  # fmt: skip
    for call in calls:
        with pytest.raises((OSError, ValueError)) as error:
            call()
        assert TOKEN not in str(error.getrepr(showlocals=False, style="long"))
    pushed = main(["push", str(tmp_path / "model"), "user/new"])
    assert pushed == (0 if name == "has no such repository" else 2)
    assert main(["run", "user/none", "say it", "abc"]) == 2
    assert TOKEN not in told()


def test_a_token_in_a_file_is_not_pushed(told, make_model, tmp_path, capsys):
    make_model("t5").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.json").write_text(json.dumps({"mine": TOKEN}))
    assert main(["push", str(tmp_path / "model"), "user/new"]) == 2
    assert "notes.json hold an access token" in capsys.readouterr().err and "user/new" not in told.hub.repositories
    assert TOKEN not in told()
