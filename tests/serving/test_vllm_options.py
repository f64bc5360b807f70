import ast
import configparser
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_tagi.commands.main import main
from modeling_tagi.serving import vllm_options
from modeling_tagi.serving.vllm_options import instruction_of, lora_rank, served_config, server, short_names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def generator(make_model, make_backbone, tokenizer, tmp_path):
    """A checkpoint of rank 4 that names its backbone, a folder."""
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    model = make_model("llama", "none", backbone=make_backbone("llama"), backbone_in_checkpoint=False,
                       backbone_name_or_path=str(tmp_path / "backbone"))  # fmt: skip
    model.save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def model_of(command):
    return command[max(place for place, word in enumerate(command) if word in ("serve", "--model")) + 1]


def options_of(command):
    """What vLLM is given behind the model, by name."""
    given = command[command.index(model_of(command)) + 1:]
    return {name: None if value.startswith("--") else value for name, value in zip(given, [*given[1:], "--"])
            if name.startswith("--")}  # fmt: skip


def test_a_models_name_is_an_instruction_or_a_short_name():
    names = {"last": "Write the last word."}
    assert instruction_of("tagi: Write the first word. ", names) == "Write the first word."
    assert instruction_of("last", names) == "Write the last word."
    assert instruction_of("tagi:", names) == ""  # ours, and refused when it is read
    assert instruction_of("backbone", names) is None and instruction_of("TAGI:x", names) is None


def test_a_short_name_is_not_the_backbones(tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text("last: {instruction: Write the last word., demonstrations: [[a b, b]]}\n")
    assert short_names(file) == {"last": "Write the last word.\n\nExample 1: Input: a b Output: b"}
    file.write_text("backbone: Write the last word.\n")
    with pytest.raises(ValueError, match="backbone is the model without an adapter here"):
        short_names(file)


@pytest.mark.parametrize("rank, expected", [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (321, 512), (512, 512)])
def test_the_lowest_rank_that_vllm_takes_is_chosen(rank, expected):
    assert lora_rank(rank) == expected


def test_a_rank_that_vllm_does_not_take_is_refused():
    assert lora_rank(8, "64") == 64 and lora_rank(16, "16") == 16
    with pytest.raises(ValueError, match="--max-lora-rank is '24', but vLLM takes one of 1, 8, 16, 32, 64, 128, 256"):
        lora_rank(8, "24")
    with pytest.raises(ValueError, match="rank 17, but vLLM would take at most 16; leave the option out"):
        lora_rank(17, "16")
    with pytest.raises(ValueError, match="rank 513, but vLLM would take at most 512; train a generator with a lower"):
        lora_rank(513)


@pytest.mark.parametrize(
    "family, fields, message",
    [
        ("t5", {"fusion": "none"}, r"\(t5\) is an encoder-decoder; serve it with `tagi serve"),
        ("llama", {"fusion": "concat"}, "its fusion is 'concat', .* serve it with `tagi serve"),
        ("llama", {"fusion": "none", "r": 600}, "rank 600, but vLLM would take at most 512"),
    ],
)
def test_a_generator_that_vllm_cannot_serve_is_refused(family, fields, message, make_model, tmp_path):
    make_model(family, generator_hidden_size=1, **{"fusion": "none", **fields}).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        served_config(str(tmp_path))


def test_a_folder_without_a_generator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no config.json of a TAGI model"):
        served_config(str(tmp_path))


def test_the_server_is_started_with_what_the_generator_needs(generator, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    (tmp_path / "names.yaml").write_text("last: Write the last word.\n")
    command, environment = server(str(generator), ["--port", "8001"], tmp_path / "kept", tmp_path / "names.yaml")
    assert command[0] == sys.executable and model_of(command) == str(tmp_path / "backbone")
    assert options_of(command) == {
        "--enable-lora": None, "--max-lora-rank": "8", "--max-loras": "8", "--max-cpu-loras": "64",
        "--served-model-name": "backbone", "--port": "8001",
    }  # fmt: skip
    assert environment == {
        "TAGI_VLLM_CHECKPOINT": str(generator), "TAGI_VLLM_ADAPTERS": str(tmp_path / "kept"),
        "TAGI_VLLM_NAMES": str(tmp_path / "names.yaml"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip


def test_what_the_user_gives_comes_first(generator, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    command, environment = server(str(generator), ["--max_lora_rank=64", "--max-loras", "100", "--revision", "x"])
    assert options_of(command) == {
        "--enable-lora": None, "--max-cpu-loras": "100", "--served-model-name": "backbone", "--max_lora_rank=64": None,
        "--max-loras": "100", "--revision": "x",
    }  # fmt: skip
    assert environment["VLLM_PLUGINS"] == "others,tagi_resolver" and environment["VLLM_NO_USAGE_STATS"] == "0"
    with pytest.raises(ValueError, match="--max-lora-rank is '1'|rank 4, but vLLM would take at most 1"):
        server(str(generator), ["--max-lora-rank", "1"])


def test_a_backbone_that_the_checkpoint_alone_has_is_written_once(make_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_options, "cached_assets_path", lambda *names, namespace: tmp_path / namespace)
    model = make_model("llama", "none")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "whole")
    command, _ = server(str(tmp_path / "whole"))
    folder = model_of(command)
    assert Path(folder).parent == tmp_path / "backbones"
    backbone = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(x, backbone[name]) for name, x in model.backbone.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder)("one two")["input_ids"] == tokenizer("one two")["input_ids"]
    written = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert server(str(tmp_path / "whole"))[0] == command
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == written


def test_the_command_shows_what_it_would_start(generator, capsys):
    assert main(["vllm", str(generator), "--json", "--port", "8001"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["command"][-2:] == ["--port", "8001"]
    assert shown["environment"]["TAGI_VLLM_CHECKPOINT"] == str(generator)
    with pytest.raises(SystemExit):
        main(["vllm", str(generator), "another"])
    assert "'another' is a second checkpoint" in capsys.readouterr().err


def test_without_vllm_the_command_says_what_to_install(generator, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "vllm").is_dir()])
    assert main(["vllm", str(generator)]) == 2
    assert "vLLM is not installed here: pip install vllm" in capsys.readouterr().err


def test_the_plugin_that_setup_cfg_names_is_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, place = setup["options.entry_points"]["vllm.general_plugins"].strip().split(" = ")
    module, function = place.split(":")
    assert name == vllm_options.PLUGIN
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())  # which imports vLLM
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
